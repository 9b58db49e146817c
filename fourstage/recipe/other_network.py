"""What a recipe says of its own network or method alone, where a user chooses another: arguments, published numbers."""

import inspect
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from fourstage.methods import find_method
from fourstage.registry import arguments_of, name_of_network
from fourstage.user_files import import_files

ARGUMENTS = {"model": "model_args", "backbone": "backbone_args", "method": "method_args"}  # key -> key of its arguments


def for_other_network(
    before: Mapping[str, Any], after: Mapping[str, Any], given: Collection[str], files: Sequence[str]
) -> dict[str, Any]:
    """Return the values of a recipe without inherited ones that are for another network or method than the user chose.

    Args:
        before: values of the recipe.
        after: the same with the user's.
        given: dotted keys of the user's values; the network itself says what is wrong with those.
        files: Python files that may register the network, which run where it is not known without them.

    Raises:
        ValueError, OSError: a file fails.
    """
    out = dict(after)
    others = [key for key in ARGUMENTS if before.get(key) is not None and not _same(key, before[key], after.get(key))]
    if others and not any(key.startswith("expect") for key in given):
        out.pop("expect", None)
    for key in others:
        arguments, chosen = ARGUMENTS[key], after.get(key)
        inherited = after.get(arguments)
        if not inherited or arguments in given or not isinstance(inherited, Mapping) or not isinstance(chosen, str):
            continue
        known = _known(key, before, after)
        if known is None and files:
            import_files(files)
            known = _known(key, before, after)
        if known is not None:
            out[arguments] = {
                name: value
                for name, value in inherited.items()
                if name in known or any(f"{one}.".startswith(f"{arguments}.{name}.") for one in given)
            }
    return out


def _same(key: str, before: object, after: object) -> bool:
    """Return whether two values choose the same network, which may have several names, or the same method."""
    if key == "method" or before == after or not isinstance(before, str) or not isinstance(after, str):
        return before == after
    return name_of_network(before) == name_of_network(after)


def _known(key: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Collection[str] | None:
    """Return the arguments that the chosen network or method takes; None: it is not known here, or takes any."""
    if key != "method":
        return arguments_of(after[key], dense=key == "backbone")
    try:
        was, now = (inspect.signature(find_method(one[key], str(after.get("task"))).builder) for one in (before, after))
    except ValueError:
        return None
    # a word such as `heads` is a text of one method and a number of another
    return [
        name
        for name, parameter in now.parameters.items()
        if name not in was.parameters or was.parameters[name].annotation in (parameter.annotation, parameter.empty)
    ]
