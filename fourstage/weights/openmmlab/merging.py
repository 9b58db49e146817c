"""How OpenMMLab lays the values of a configuration over those of its base files."""

from pathlib import Path
from typing import Any

DELETE = "_delete_"


def merged(below: Any, above: Any, path: Path, where: str) -> Any:
    """Return a value of a base file with the value of a later file laid over it.

    Raises:
        ValueError: a dictionary over a list, without `_delete_`.
    """
    if not isinstance(above, dict):
        return above
    if above.get(DELETE) is True or not isinstance(below, dict):
        if isinstance(below, list | tuple) and above.get(DELETE) is not True:
            raise ValueError(
                f"{path}: {where} is a dictionary, and in a base file it is a list; add _delete_=True to replace it"
            )
        return without_marks(above)
    out = dict(below)
    for key, value in above.items():
        if key != DELETE:
            out[key] = merged(out[key], value, path, f"{where}.{key}") if key in out else without_marks(value)
    return out


def without_marks(value: Any) -> Any:
    """Return a value without the keys `_delete_`, which have done their work."""
    if isinstance(value, dict):
        return {key: without_marks(one) for key, one in value.items() if key != DELETE}
    if isinstance(value, list | tuple):
        return type(value)(map(without_marks, value))
    return value
