"""Where the base files of a configuration are: beside it, in a folder that the user names, or in an installed package.

A package is found by its specification and is never imported. MMEngine reads `mmdet::a.py` from the configurations of
the package (https://mmengine.readthedocs.io/en/latest/advanced_tutorials/config.html), and `from mmdet.configs.a import
*` from its modules.
"""

import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

NAME = re.compile(r"[A-Za-z]\w*", re.ASCII)
OPTION = "--configs FOLDER"


def base_file(path: Path, name: str, folders: Sequence[Path]) -> Path:
    """Return the file that `_base_` of a configuration names.

    Raises:
        ValueError: it is no Python file, or of a package that is not installed and in none of `folders`.
        FileNotFoundError: it is missing.
    """
    package, inside, rest = name.rpartition("::")
    if inside:
        places = [Path(".mim/configs") / rest, Path("configs") / rest, Path(rest)]
        return of_package(path, name, package, places, folders)
    base = path.parent / Path(name).expanduser()
    if base.suffix != ".py":
        raise ValueError(f"{path} is based on {name!r}, and a base file here is a Python file that ends in .py")
    if not base.is_file():
        raise FileNotFoundError(f"{path} is based on {base}, which is missing; put it there or correct _base_")
    return base


def of_package(path: Path, name: str, package: str, places: Sequence[Path], folders: Sequence[Path]) -> Path:
    if not NAME.fullmatch(package) or any(place.suffix != ".py" or ".." in place.parts for place in places):
        raise ValueError(f"{path} is based on {name!r}, and a base of a package is such as 'mmdet::_base_/a.py'")
    roots = [*(root for folder in folders for root in (folder / package, folder)), *_installed(package)]
    candidates = [root / place for root in roots for place in places]
    if (found := next((one for one in candidates if one.is_file()), None)) is not None:
        return found
    where = " and ".join(map(str, folders)) if folders else f"no folder is given with {OPTION}"
    lacks = f"which has no such file ({', '.join(map(str, _installed(package)))})"
    state = lacks if _installed(package) else "which is not installed"
    raise ValueError(
        f"{path} is based on {name!r} of the package {package}, {state}, and {where}"
        f"{' has none either' if folders else ''}; give the folder with its configurations, as {OPTION}"
    )


def _installed(package: str) -> list[Path]:
    """Return the folder of an installed package, and the one above it, which has `configs` in a checkout."""
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):  # ValueError: a module without a specification
        return []
    found = [Path(place) for place in spec.submodule_search_locations or ()] if spec is not None else []
    return [*found, *(place.parent for place in found if (place.parent / "configs").is_dir())]
