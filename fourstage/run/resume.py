"""How a stopped training continues: from its newest checkpoint, on the same data and classes."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fourstage.engine.devices import Ranks
from fourstage.engine.training import Training
from fourstage.files import shown_path
from fourstage.plurals import plural
from fourstage.run.folder import RunFolder
from fourstage.run.states import best_problem, damaged_line
from fourstage.streams import print_lines

if TYPE_CHECKING:
    from fourstage.run.setup import Setup


def continue_from(setup: "Setup", folder: RunFolder, training: Training, *, show: bool) -> int:
    """Restore a training from its last checkpoint, if there is one. Return the position in its log.

    Raises:
        ValueError: the last checkpoint is missing beside the best one, or does not fit this training.
    """
    newest = folder.newest()
    state = newest.state
    if state is None:
        if folder.best.exists():
            raise ValueError(f"{folder.last} is missing, only {folder.best.name} is there; put it back, or add --fresh")
        return 0
    warnings = [*([newest.note] if newest.note else []), *check_same_data(state, setup)]
    setup.ranks.wait()  # until all have read it
    if newest.damaged and setup.ranks.first:
        folder.set_damaged_aside()
    _restore(training, state, folder)
    if training.best and (problem := best_problem(folder.best)):
        training.best, training.evaluated = {}, 0
        warnings.append(f"{problem}; the best of the evaluations from here on replaces it.")
    if line := damaged_line(folder.log):
        warnings.append(f"{folder.log}, line {line}, is damaged; remove that line, which no report can read.")
    if not folder.log.is_file() or folder.log.stat().st_size < state["log"]:
        warnings.append(f"{folder.log} lacks lines that were written before.")
    training.window = {name: value.to(setup.device) for name, value in window_of(state["windows"], setup.ranks).items()}
    if show:
        first = f"Continuing {shown_path(folder.path)} at step {training.step} of {setup.plan.total}."
        print_lines("\n".join([first, *warnings]))
    return state["log"]


def _restore(training: Training, state: Mapping[str, Any], folder: RunFolder) -> None:
    """Fill a training from a state. Raises ValueError where the state is of another network or optimiser."""
    try:
        training.restore(state)
    except (RuntimeError, LookupError, TypeError, AttributeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[-1].strip()
        raise ValueError(
            f"{folder.last} does not fit the network that the recipe builds, or its optimiser ({reason:.200}); restore "
            f"the files and packages that the run was started with, or add --fresh"
        ) from error


def window_of(windows: Mapping[str, Mapping[str, Tensor]], ranks: Ranks) -> Mapping[str, Tensor]:
    """Return this process's sums since the last log line; for another number of processes, the mean over all."""
    if len(windows) == ranks.size:
        return windows[str(ranks.rank)]
    every = [windows[rank] for rank in sorted(windows)]
    return {name: torch.stack([window[name] for window in every]).mean(dim=0) for name in every[0]}


def check_same_data(state: Mapping[str, Any], setup: "Setup") -> list[str]:
    """Raise ValueError if the classes or the data changed; return what prevents bitwise equal results."""
    then, now = tuple(state["classes"]), tuple(setup.splits.train.classes)
    if then != now:
        raise ValueError(
            f"the run was started with {plural(len(then), 'class', 'classes')}, but the data now has {len(now)}, or "
            "other names; restore "
            f"the data, or choose another --out"
        )
    before, after = state["conditions"], setup.conditions
    if before["data"] != after["data"] and state["recipe"]["data"] != setup.recipe.data:
        raise ValueError(
            f"the run was trained on {state['recipe']['data']}, but {setup.recipe.data} holds other images; give the "
            f"data that it was trained on, or choose another --out"
        )
    changed = [
        f"{key} {before.get(key)} before, {value} now" for key, value in after.items() if before.get(key) != value
    ]
    recomputed = state["recipe"].get("grad_checkpointing", False), setup.recipe.grad_checkpointing
    if recomputed[0] != recomputed[1] and setup.recipe.compile:  # which fuses other kernels; else bit for bit
        changed.append(f"grad_checkpointing {recomputed[0]} before, {recomputed[1]} now")
    if setup.device.type == "cuda" and not setup.recipe.deterministic:
        changed.append("GPU kernels are not deterministic; deterministic=true selects those that are")
    return [f"The run continues, but not bit for bit as it would have: {', '.join(changed)}."] if changed else []
