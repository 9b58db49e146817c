"""One update. Knows no task, no rank and no logger."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, get_total_norm
from torch.optim import Optimizer

from fourstage.engine.devices import unsynced

RESERVED = {"total", "grad_norm", "skipped"}


def train_step(
    task: nn.Module,
    batches: Sequence[Any],
    optimizer: Optimizer,
    scaler: torch.amp.GradScaler,
    *,
    autocast: torch.autocast,
    grad_clip: float | None,
) -> dict[str, Tensor]:
    """Make one update.

    Args:
        task: what DDP wraps: `task(batch)` gives named losses.
        batches: one per accumulated part.
        grad_clip: largest global L2 norm of the gradient; None leaves it as it is.

    Returns:
        Every loss (mean over `batches`), their `total`, and `grad_norm` before clipping: detached scalars still on the
        device, so the caller decides when to pay for the host sync. With a scaler also `skipped`: 1 where it left the
        step out because the gradient overflowed, and then `grad_norm` is 0. Elsewhere the caller stops the run.
    """
    optimizer.zero_grad(set_to_none=True)
    logged: dict[str, Tensor] = {}
    for i, batch in enumerate(batches):
        with nullcontext() if i == len(batches) - 1 else unsynced(task):
            with autocast:
                losses: dict[str, Tensor] = task(batch)
            total = torch.stack([loss.float() for loss in losses.values()]).sum()
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
    scaler.step(optimizer)
    scaler.update()
    return logged


def _norm_and_clip(task: nn.Module, grad_clip: float | None) -> Tensor:
    """The gradient's L2 norm, from before it is clipped."""
    if grad_clip is not None:
        return clip_grad_norm_(task.parameters(), grad_clip)
    return get_total_norm([p.grad for p in task.parameters() if p.grad is not None])
