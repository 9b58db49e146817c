"""The learning rate as a function of the step alone, so that it needs no saved state."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then a curve.

    Args:
        spans: the steps that the curve covers. "rest": those after warm-up, which rises straight to the peak. "whole":
            all steps; warm-up is a factor on the curve that rises from `warmup_lr / peak` to 1, as in OpenMMLab's older
            releases. "behind": all steps, with the beginning of the curve replaced by a warm-up that rises straight to
            the peak, so that the rate drops a little where they meet, as in timm without warmup_prefix.
        every: steps between changes of the rate.
        lag: steps by which the rate is delayed, as in loops that set it after the step that it is meant for.
        peak: the rate after warm-up.
        total: optimiser steps of the training.
        warmup: steps of warm-up, from `warmup_lr` up to `peak`.
        inclusive: whether the last step of warm-up has the peak, not the first one after it.
        milestones: steps from which curve "step" multiplies the rate by `gamma`.
    """

    peak: float
    total: int
    curve: Literal["cosine", "linear", "poly", "step", "constant"] = "cosine"
    warmup: int = 0
    warmup_lr: float = 0.0
    min_lr: float = 0.0
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    power: float = 1.0
    spans: Literal["rest", "whole", "behind"] = "rest"
    every: int = 1
    lag: int = 0
    inclusive: bool = False

    def lr(self, step: int) -> float:
        """Return the rate of update number `step`, counted from 0."""
        step = max(0, step // self.every * self.every - self.lag)
        if self.spans == "whole":
            missing = 1 - step / self.warmup if step < self.warmup else 0.0  # the share of warm-up that is to come
            return self._plain(step, 0) * (1 - (1 - self.warmup_lr / self.peak) * missing)
        if step < self.warmup:
            rising = self.warmup - self.inclusive
            if not rising:  # the only step is the last one
                return self.peak
            return self.warmup_lr + (self.peak - self.warmup_lr) * step / rising
        return self._plain(step, 0 if self.spans == "behind" else self.warmup)

    def _plain(self, step: int, first: int) -> float:
        """Return the rate without warm-up, for a curve that begins at step `first`."""
        if self.curve == "step":
            return self.peak * self.gamma ** sum(step >= milestone for milestone in self.milestones)
        return self.min_lr + (self.peak - self.min_lr) * self._value((step - first) / max(1, self.total - first))

    def _value(self, done: float) -> float:
        """Return a value from 1 at the beginning (`done` = 0) to 0 at the end."""
        match self.curve:
            case "cosine":
                return cosine(1.0, 0.0, done)
            case "linear":
                return 1 - done
            case "poly":
                return (1 - done) ** self.power
            case _:
                return 1.0


def cosine(start: float, end: float, done: float) -> float:
    """Return a value on half a cosine from `start` (`done` = 0) to `end` (`done` = 1)."""
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2
