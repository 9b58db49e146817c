"""Run folders by name: which there are, and the sentence where there is none. Any package may import this module."""

import shlex
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

from fourstage.files import is_hub_name

RECIPE = "recipe.yaml"  # the file that makes a folder a run folder
COMPARISON = "comparison.json"  # the file that makes a folder one of `fourstage compare`, with runs in ARM/seed-N
DEFAULT = Path("runs")  # where runs are that were given no folder
CHECKPOINTS = (".pt", ".pth", ".safetensors", ".bin", ".ckpt")  # endings of files, which are no run folders
SHOWN = 5


def runs_in(folder: Path) -> list[str]:
    """Return the names of the runs in a folder, sorted."""
    if not folder.is_dir():
        return []
    return sorted(one.name for one in folder.iterdir() if (one / RECIPE).is_file())


def names_a_run(word: str, names: Iterable[str]) -> bool:
    """Return whether a word that names no file can only mean a run: it is a path, or the name of one in `runs/`.

    Args:
        names: what else the word may name, such as recipes; a run may have the name of its recipe.
    """
    path = Path(word)
    if word in names or is_hub_name(word) or path.exists() or path.suffix in (".yaml", ".yml", *CHECKPOINTS):
        return False
    return len(path.parts) > 1 or (DEFAULT / path / RECIPE).is_file()


def no_run(path: Path) -> str:
    """Return the sentence on a path that is no run folder: what it is, and which runs are near."""
    if path.is_dir():
        if (path / COMPARISON).is_file():
            return _of_comparison(path)
        inside = runs_in(path)
        if not inside and (comparisons := [one for one in _folders_in(path) if (one / COMPARISON).is_file()]):
            return f"{path} is not a run folder, and holds comparisons alone: {_of_comparison(comparisons[0])}"
        instead = f"name one of the runs in it: {_listed(path, inside)}" if inside else _none()
        return f"{path} is not a run folder: it has no {RECIPE}; {instead}"
    if path.exists():
        return f"{path} is a file, and a run is a folder; {_none()}"
    if (DEFAULT / path / RECIPE).is_file():
        return f"there is no run {path} here; did you mean {DEFAULT / path}?"
    parent = path.parent
    if not (inside := runs_in(parent)):
        return f"there is no run {path}, and no other run in {parent}; {_none()}"
    near = get_close_matches(path.name, inside, n=1)
    hint = f"did you mean {parent / near[0]}? " if near else ""
    return f"there is no run {path}; {hint}{'The' if hint else 'the'} runs in {parent} are {_listed(parent, inside)}"


def runs_of_comparison(folder: Path) -> list[str]:
    """Return the runs in a folder of `fourstage compare`, as ARM/seed-N, sorted."""
    return [f"{arm.name}/{name}" for arm in _folders_in(folder) for name in runs_in(arm)]


def _of_comparison(folder: Path) -> str:
    """Return the sentence on a comparison where one run is needed."""
    shown = shlex.quote(str(folder))
    table = f"type `fourstage compare {shown}` for its table and its page"
    if not (inside := runs_of_comparison(folder)):
        return f"{folder} is a comparison without a run so far; type the command that began it again"
    return f"{folder} is a comparison, not a run; {table}, or name one of its runs: {_listed(folder, inside)}"


def _folders_in(folder: Path) -> list[Path]:
    return sorted(one for one in folder.iterdir() if one.is_dir())


def _none() -> str:
    return "name a folder that `fourstage train` wrote"


def _listed(folder: Path, names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(str(folder / name) for name in names[:SHOWN]) + more
