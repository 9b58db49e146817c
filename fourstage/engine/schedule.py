"""The learning rate as a function of the step: nothing to save, nothing to restore."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then a curve.

    Args:
        spans: what the curve covers. "rest": the steps after warm-up, which climbs straight to the peak. "whole": all
            steps; warm-up then climbs from the share `warmup_lr / peak` of the curve's own rate to all of it, as
            OpenMMLab's older releases have it. "behind": all steps too, but its beginning hides behind a warm-up that
            climbs straight to the peak, so that the rate falls a little where they meet: timm without warmup_prefix.
        every: the rate is set anew each so many steps and stands between.
        lag: the rate is the one of so many steps earlier, as in loops that set it after the step that it is for.
        peak: the rate after warm-up.
        total: optimiser steps of the whole training.
        warmup: steps of warm-up, from `warmup_lr` up to `peak`.
        inclusive: whether the last step of warm-up has the peak, not the first one after it.
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
    spans: Literal["rest", "whole", "behind"] = "rest"
    every: int = 1
    lag: int = 0
    inclusive: bool = False

    def lr(self, step: int) -> float:
        """The rate of update number `step`, counted from 0."""
        step = max(0, step // self.every * self.every - self.lag)
        if self.spans == "whole":
            share = 1 - (1 - self.warmup_lr / self.peak) * max(0.0, 1 - step / max(1, self.warmup))
            return self._plain(step, 0) * share
        if step < self.warmup:
            return self.warmup_lr + (self.peak - self.warmup_lr) * step / max(1, self.warmup - self.inclusive)
        return self._plain(step, 0 if self.spans == "behind" else self.warmup)

    def _plain(self, step: int, first: int) -> float:
        """The rate without warm-up, for a curve that begins at step `first`."""
        if self.kind == "step":
            return self.peak * self.gamma ** sum(step >= milestone for milestone in self.milestones)
        return self.min_lr + (self.peak - self.min_lr) * self._curve((step - first) / max(1, self.total - first))

    def _curve(self, done: float) -> float:
        """From 1 at the beginning (`done` = 0) to 0 at the end."""
        match self.kind:
            case "cosine":
                return cosine(1.0, 0.0, done)
            case "linear":
                return 1 - done
            case "poly":
                return (1 - done) ** self.power
            case _:
                return 1.0


def cosine(start: float, end: float, done: float) -> float:
    """From `start` to `end` by half a cosine; `done` goes from 0 to 1."""
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2
