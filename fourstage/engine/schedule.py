"""The learning rate as a function of the step: nothing to save, nothing to restore."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then a curve over the steps that are left.

    Args:
        peak: the rate after warm-up.
        total: optimiser steps of the whole training.
        warmup: steps of warm-up, from `warmup_lr` up to `peak`.
        milestones: of kind "step", the steps from which the rate is multiplied by `gamma`.
    """

    peak: float
    total: int
    kind: Literal["cosine", "linear", "poly", "step", "constant"] = "cosine"
    warmup: int = 0
    warmup_lr: float = 0.0
    min_lr: float = 0.0
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    power: float = 1.0

    def lr(self, step: int) -> float:
        """The rate of update number `step`, counted from 0."""
        if step < self.warmup:
            return self.warmup_lr + (self.peak - self.warmup_lr) * step / self.warmup
        if self.kind == "step":
            return self.peak * self.gamma ** sum(step >= milestone for milestone in self.milestones)
        return self.min_lr + (self.peak - self.min_lr) * self._curve(
            (step - self.warmup) / max(1, self.total - self.warmup)
        )

    def _curve(self, done: float) -> float:
        """From 1 at the beginning (`done` = 0) to 0 at the end."""
        match self.kind:
            case "cosine":
                return (1 + math.cos(math.pi * done)) / 2
            case "linear":
                return 1 - done
            case "poly":
                return (1 - done) ** self.power
            case _:
                return 1.0
