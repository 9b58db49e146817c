"""Which checkpoint of a run to use: the newest one that is not damaged. Checkpoints of a run may come from anyone."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fourstage.weights.reading.safe import AGAIN, read_checkpoint

# What a state needs to continue a run, beside "fourstage".
CONTENT: Mapping[str, type | tuple[type, ...]] = {
    "step": int,
    "evaluated": int,
    "seconds": (int, float),
    "log": int,
    "finished": bool,
    "classes": list,
    "best": dict,
    "recipe": dict,
    "conditions": dict,
    "model": dict,
    "ema": (dict, type(None)),
    "optimizer": dict,
    "scaler": dict,
    "windows": dict,
}


@dataclass(frozen=True)
class Newest:
    """The state to continue from."""

    state: dict[str, Any] | None  # None: the run has no checkpoint yet
    note: str = ""  # one sentence where it is not that of the last checkpoint
    damaged: bool = False  # whether the last checkpoint is there, but damaged


def newest_state(last: Path, previous: Path, best: Path) -> Newest:
    """Return the state in the last checkpoint of a run, or in the previous one where the last is damaged or missing.

    Args:
        best: the best checkpoint, for the message where both are damaged.

    Raises:
        ValueError: both are damaged, or the only one is.
    """
    if not last.exists() and not previous.exists():
        return Newest(None)
    problem = f"{last} is missing"
    if last.exists():
        try:
            return Newest(read_state(last))
        except ValueError as error:
            problem = str(error)
    if previous.exists():
        try:
            state = read_state(previous)
        except ValueError as error:
            problem = f"{problem}, and {error}"
        else:
            note = f"{problem}; continuing from {previous.name}, which loses no exactness, only the steps since then."
            return Newest(state, note, damaged=last.exists())
    hint = "add --fresh to start again"
    if not best_problem(best):
        hint += f", or start a new run from the best weights with weights={best} and another --out"
    raise ValueError(f"{problem}; {hint}")


def read_state(path: Path) -> dict[str, Any]:
    """Read the state of a training. Raises ValueError where the file is damaged, or is none."""
    content = _read(path)
    content.setdefault("logged", _logged_before(content))
    wrong = next((key for key, kind in CONTENT.items() if not isinstance(content.get(key), kind)), None)
    if wrong is None and not _is_plausible(content):
        wrong = "windows"
    if wrong is None and not (isinstance(content["logged"], int) and 0 <= content["logged"] <= content["step"]):
        wrong = "logged"
    if wrong is not None:
        raise ValueError(f"{path} is damaged, or is not the checkpoint of a training ({wrong} is missing or wrong)")
    return content


def read_best(path: Path) -> dict[str, Any]:
    """Read the best checkpoint of a run. Raises ValueError where the file is damaged, or is none."""
    content = _read(path)
    if not isinstance(content.get("model"), dict):
        raise ValueError(f"{path} is damaged, or is not the best checkpoint of a run (model is missing or wrong)")
    return content


def damaged_line(log: Path) -> int:
    """Return the number of the first line of a log that is damaged; 0: none is."""
    if not log.is_file():
        return 0
    with log.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                if line.endswith(b"\n") and not isinstance(json.loads(line), dict):
                    return number
            except (ValueError, RecursionError):
                return number
    return 0


def best_problem(path: Path) -> str:
    """Return why the best checkpoint of a run cannot be used, without a full stop; "": it can."""
    if not path.exists():
        return f"{path} is missing"
    try:
        read_best(path)
    except ValueError as error:
        return str(error)
    return ""


def _read(path: Path) -> dict[str, Any]:
    try:
        content = read_checkpoint(path).content
    except ValueError as error:
        raise ValueError(str(error).removesuffix(f": {AGAIN}")) from None  # a run saves again by itself
    if content.get("fourstage") != 1:
        raise ValueError(f"{path} is not a checkpoint of a run")
    return content


def _is_plausible(content: Mapping[str, Any]) -> bool:
    """Return whether positions are natural numbers, and the sums of each process are tensors by the same names."""
    windows = content["windows"]
    sums = all(isinstance(one, dict) and all(isinstance(v, Tensor) for v in one.values()) for one in windows.values())
    processes = bool(windows) and windows.keys() == {str(rank) for rank in range(len(windows))}
    natural = min(content[key] for key in ("step", "evaluated", "log")) >= 0
    return sums and processes and len({frozenset(window) for window in windows.values()}) == 1 and natural


def _logged_before(content: Mapping[str, Any]) -> int:
    """Return the step of the last log line of a state without it: older versions logged multiples of `log_every`."""
    step, recipe = content.get("step"), content.get("recipe")
    every = recipe.get("log_every") if isinstance(recipe, dict) else None
    if not (isinstance(step, int) and isinstance(every, int) and every > 0):
        return 0
    return step - step % every
