"""One update of the weights. Knows no task, no rank and no logger."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, get_total_norm
from torch.optim import Optimizer

from fourstage.engine.batch_statistics import enough_values
from fourstage.engine.devices import gather_shards, unsynced

RESERVED = {"total", "grad_norm", "skipped"}


def train_step(
    task: nn.Module,
    batches: Sequence[Any],
    optimizer: Optimizer,
    scaler: torch.amp.GradScaler,
    *,
    autocast: torch.autocast,
    grad_clip: float | None,
    halt: "Halt",
) -> dict[str, Tensor]:
    """Make one update.

    Args:
        task: what DDP wraps: `task(batch)` gives named losses.
        batches: one per micro-batch that is accumulated.
        grad_clip: largest global L2 norm of the gradient; None leaves it as it is.
        halt: notes the first gradient that is not finite; from then on no step changes the weights.

    Returns:
        Every loss (mean over `batches`), their `total`, and `grad_norm` before clipping: detached scalars still on the
        device, so the caller decides when to pay for the host sync. With a scaler also `skipped`: 1 where it skipped
        the step because the gradient overflowed; `grad_norm` is 0 then. Without a scaler the caller stops the run.
    """
    optimizer.zero_grad(set_to_none=True)
    logged: dict[str, Tensor] = {}
    for i, batch in enumerate(batches):
        with nullcontext() if i == len(batches) - 1 else unsynced(task):
            with autocast, enough_values():
                losses: dict[str, Tensor] = task(batch)
            total = torch.stack([_float(loss) for loss in losses.values()]).sum()
            scaler.scale(total / len(batches)).backward()
        assert not losses.keys() & RESERVED, f"a loss may not be called {losses.keys() & RESERVED}"
        for name, value in {**losses, "total": total}.items():
            logged[name] = logged.get(name, torch.zeros((), device=value.device)) + value.detach() / len(batches)
    scaler.unscale_(optimizer)
    logged["grad_norm"] = _norm_and_clip(task, grad_clip)
    if scaler.is_enabled():
        fits = logged["grad_norm"].isfinite()
        logged["grad_norm"] = torch.where(fits, logged["grad_norm"], 0.0)
        logged["skipped"] = 1 - fits.float()
        halt.note(logged["total"])
        scaler.step(optimizer)
        scaler.update()
    else:
        halt.step(optimizer, logged["grad_norm"])
    return logged


class Halt:
    """Stops all updates at the first gradient that is not finite, without a host sync at each step.

    When the host notices it, many steps later, the weights are still those from before the bad step.

    Attributes:
        step_1: (1,) int64: the number of that step; -1 if there was none.
    """

    def __init__(self, device: torch.device, first_step: int) -> None:
        self.step_1 = torch.full((1,), -1, device=device)
        self._now_1 = torch.full((1,), first_step, device=device)

    def note(self, value: Tensor) -> None:
        """Note this step if its `value` is the first that is not finite; called once per step."""
        bad = (self.step_1 < 0) & ~value.isfinite()
        self.step_1 = torch.where(bad, self._now_1, self.step_1)
        self._now_1 += 1

    def step(self, optimizer: Optimizer, grad_norm: Tensor) -> None:
        """Call `optimizer.step()` unless this or an earlier gradient is not finite."""
        self.note(grad_norm)
        halted_1 = self.step_1 >= 0
        if getattr(optimizer, "_step_supports_amp_scaling", False):  # torch's fused optimisers read it on the device
            optimizer.found_inf = halted_1.float().squeeze()  # pyright: ignore[reportAttributeAccessIssue]
            optimizer.step()
        elif not halted_1.item():
            optimizer.step()

    @property
    def step_number(self) -> int | None:
        """The step whose gradient was not finite, or None. Waits for the device."""
        number = int(self.step_1.item())
        return None if number < 0 else number


def _float(loss: Tensor) -> Tensor:
    """Return a half-precision loss as float32; other precisions stay."""
    return loss.float() if loss.dtype in (torch.float16, torch.bfloat16) else loss


def _norm_and_clip(task: nn.Module, grad_clip: float | None) -> Tensor:
    """Clip the gradient and return its L2 norm from before, over all processes."""
    if grad_clip is not None:
        return gather_shards(clip_grad_norm_(task.parameters(), grad_clip))
    return gather_shards(get_total_norm([p.grad for p in task.parameters() if p.grad is not None]))
