"""Everything that changes while a network learns."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fourstage.engine.devices import gather_shards, share_of


@dataclass
class Training:
    """A network with its optimiser and their progress. `restore` is the inverse of `state`."""

    task: nn.Module
    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    ema: AveragedModel | None = None
    step: int = 0  # updates made
    evaluated: int = 0  # step of the last complete evaluation
    best: dict[str, Any] = field(default_factory=dict)  # {"value", "step", "which", "metrics"} by the main metric
    window: dict[str, Tensor] = field(default_factory=dict)  # this process's sums since the last log line
    logged: int = 0  # step of the last log line
    seconds: float = 0.0  # spent training, over all starts

    def state(self, *, keep: bool = True) -> dict[str, Any]:
        """Return all but the window, which each process has for itself. All processes call it; see `gather_shards`."""
        return {
            "step": self.step,
            "evaluated": self.evaluated,
            "best": dict(self.best),
            "seconds": self.seconds,
            "logged": self.logged,
            "model": gather_shards(self.task.state_dict(), keep=keep),
            "ema": None if self.ema is None else gather_shards(self.ema.module.state_dict(), keep=keep),
            "optimizer": gather_shards(self.optimizer.state_dict(), keep=keep),
            "scaler": self.scaler.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Fill all from a state. Raises ValueError where its optimiser has other groups of parameters."""
        for group, before in zip_longest(self.optimizer.param_groups, state["optimizer"]["param_groups"], fillvalue={}):
            now, then = group.get("names"), before.get("names")
            if now != then:
                raise ValueError(_regrouped(now or (), then or ()))
        self.step, self.evaluated, self.best = state["step"], state["evaluated"], dict(state["best"])
        self.seconds, self.logged = state["seconds"], state["logged"]
        fill(self.task, state["model"])
        self.optimizer.load_state_dict(self._sharded(state["optimizer"]))
        self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            fill(self.ema.module, state["ema"])

    def _sharded(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return an optimiser's state with each tensor sharded like its parameter."""
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        numbers = [number for group in state["param_groups"] for number in group["params"]]
        moments = {
            number: {
                name: share_of(value, parameter) if getattr(value, "shape", None) == parameter.shape else value
                for name, value in state["state"].get(number, {}).items()
            }
            for number, parameter in zip(numbers, parameters, strict=True)
        }
        return {**state, "state": {number: values for number, values in moments.items() if values}}

    def add(self, logged: Mapping[str, Tensor]) -> None:
        """Add a step's losses to the window. Every step has the same names."""
        assert not self.window or self.window.keys() == logged.keys(), (
            f"the task gave {sorted(self.window)} before and {sorted(logged)} at step {self.step}; a loss without "
            f"targets is 0, not left out"
        )
        self.window = {name: self.window[name] + value if self.window else value for name, value in logged.items()}


def _regrouped(now: Sequence[str], then: Sequence[str]) -> str:
    moved = set(now) ^ set(then)  # empty where only the order is another
    name = next((name for name in (*now, *then) if name in moved or not moved), "a parameter")
    return f"{name} has another place among the optimiser's groups of parameters"


def fill(task: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load all weights into a task, sharded where the task is sharded."""
    own = task.state_dict()
    task.load_state_dict({name: share_of(value, own[name]) if name in own else value for name, value in state.items()})


def set_training_mode(task: nn.Module) -> None:
    """Set training mode, except for frozen modules: their norms and drop path stay in evaluation mode."""
    task.train()
    for module in task.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


@contextmanager
def unchanged_buffers(task: nn.Module) -> Generator[None]:
    """Give the buffers of a task, such as the statistics of its norms, their values from before the context."""
    before = [buffer.clone() for buffer in task.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(task.buffers(), before, strict=True):
                buffer.copy_(value)


def averaged(task: nn.Module, decay: float | None) -> AveragedModel | None:
    """Return a moving average of a task's weights and buffers, or None. Integers, such as indices, are copied.

    It starts from the current weights; torch's own would start from those after the first step.
    """
    return None if decay is None else _MovingAverage(task, decay)


class _MovingAverage(AveragedModel):
    """An average whose update does not wait for the device: torch's own copies a count to a GPU in each step."""

    def __init__(self, task: nn.Module, decay: float) -> None:
        super().__init__(task, use_buffers=True)
        self._average = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        kinds: dict[Any, tuple[list[Tensor], list[Tensor]]] = {}  # no single call takes tensors of two kinds
        for old, new in zip(_values(self.module), _values(model), strict=True):
            averages, values = kinds.setdefault((old.device, old.dtype, _is_sharded(old)), ([], []))
            averages.append(old)
            values.append(new)
        for averages, values in kinds.values():
            if averages[0].is_floating_point():
                self._average(averages, values, None)
            else:
                for old, new in zip(averages, values, strict=True):
                    old.copy_(new)


def _values(task: nn.Module) -> Iterator[Tensor]:
    """Yield a task's parameters and buffers."""
    return chain((p.detach() for p in task.parameters()), task.buffers())


def _is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "placements")
