"""Statistics over seeds: means, paired differences, exact tests. S seeds, K pairs of arms."""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import stats

from fourstage.tasks.parts.intervals import wilson

LEVEL = 0.95
FEWEST = 6  # seeds below which a sign-flip test cannot reach 0.05: its smallest p is 2 ** (1 - S)
EXACT = 16  # seeds up to which all 2 ** S flips are counted
DRAWN_FLIPS = 2**16  # of more seeds
NEARLY = 1e-9  # of all differences together: sums of the same differences in another order are equal


@dataclass(frozen=True)
class Summary:
    """The mean of some values, their standard deviation, and Student's interval of the mean; NaN for one value."""

    mean: float
    sd: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Share:
    """A share from 0 to 1 with Wilson's interval of 95 %."""

    value: float
    low: float
    high: float


def summarise(values_S: np.ndarray, level: float = LEVEL) -> Summary:
    """Return the mean of (S,) values with their spread. The interval holds for normally distributed values.

    Raises:
        ValueError: there is no value, or one is not finite.
    """
    values_S = np.asarray(values_S, float)
    if not values_S.size or not np.isfinite(values_S).all():
        raise ValueError(f"a mean needs at least one finite value; got {values_S.tolist()}")
    count, mean = len(values_S), float(values_S.mean())
    if count < 2:
        return Summary(mean, math.nan, math.nan, math.nan, count)
    sd = float(values_S.std(ddof=1))
    half = float(stats.t.ppf((1 + level) / 2, count - 1)) * sd / math.sqrt(count)
    return Summary(mean, sd, mean - half, mean + half, count)


def sign_flip_p(differences_S: np.ndarray) -> float:
    """Return the two-sided p of (S,) paired differences under the hypothesis that each may have either sign.

    It is the share of all 2 ** S choices of signs whose mean is at least as far from 0 as the observed one, so it is
    never below 2 ** (1 - S). Above `EXACT` seeds the choices are drawn, and the observed one counts among them.
    """
    differences_S = np.asarray(differences_S, float)
    observed = abs(differences_S.sum()) - NEARLY * np.abs(differences_S).sum()
    seeds = len(differences_S)
    if seeds <= EXACT:
        return float(np.mean(np.abs(_all_signs(seeds) @ differences_S) >= observed))
    signs_FS = 2.0 * np.random.default_rng(0).integers(0, 2, (DRAWN_FLIPS, seeds)) - 1
    return float((1 + np.sum(np.abs(signs_FS @ differences_S) >= observed)) / (1 + DRAWN_FLIPS))


@cache
def _all_signs(seeds: int) -> np.ndarray:
    """Return (2 ** S, S) every choice of signs."""
    return 1.0 - 2.0 * ((np.arange(2**seeds)[:, None] >> np.arange(seeds)) & 1)


def smallest_p(seeds: int) -> float:
    """Return the smallest p that a two-sided sign-flip test of S differences can have."""
    return min(1.0, 2.0 ** (1 - seeds))


def fewest_seeds(pairs: int, alpha: float = 1 - LEVEL) -> int:
    """Return the number of seeds from which K pairs can be decided at all: Holm multiplies the smallest p by K."""
    return max(FEWEST, next(seeds for seeds in range(1, 64) if pairs * smallest_p(seeds) <= alpha + 1e-12))


def holm(p_K: np.ndarray) -> np.ndarray:
    """Return (K,) p-values adjusted for K tests by Holm's step-down method.

    Source: Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    p_K = np.asarray(p_K, float)
    order_K = np.argsort(p_K, kind="stable")
    factors_K = np.arange(len(p_K), 0, -1)
    adjusted_K = np.empty_like(p_K)
    adjusted_K[order_K] = np.minimum(1, np.maximum.accumulate(factors_K * p_K[order_K]))
    return adjusted_K


def share_better(differences_S: np.ndarray) -> Share:
    """Return the share of (S,) differences above 0, in which an equal pair counts half: P(A > B)."""
    differences_S = np.asarray(differences_S, float)
    count = len(differences_S)
    better = float(np.sum(differences_S > 0) + 0.5 * np.sum(differences_S == 0))
    low, high = wilson(better, count)
    return Share(better / count, low / 100, high / 100)
