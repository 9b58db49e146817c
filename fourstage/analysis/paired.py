"""Two arms compared over seeds and over images, and the verdict. S seeds, N images, D draws, K pairs.

A difference of two trained networks varies for two reasons: another seed trains other networks, and other images are
easier for one of them. The variance of the mean difference is

    seeds / S + images + interaction / S

where `seeds` is the variance between seeds on the same images. The spread of the S differences measures the first and
the last term together. Draws of images with replacement, scored again for every network, measure the last two. The
draws of each seed alone tell these two apart, so that the interaction is counted once. The variance is never taken to
be less than what the draws of all networks together show. Source of the crossed model:
Owen, "The pigeonhole bootstrap", 2007, whose plain form counts the interaction three times.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Literal

import numpy as np
from scipy import stats

from fourstage.analysis.seeds import (
    FEWEST,
    LEVEL,
    Share,
    Summary,
    fewest_seeds,
    holm,
    share_better,
    sign_flip_p,
    summarise,
)
from fourstage.plurals import plural

DRAWS = 1000
ALPHA = 1 - LEVEL
POWER = 0.8  # chance that the number of seeds which "would do" shows a difference as large as the observed one
MOST_SEEDS = 1000  # larger numbers are no advice
Word = Literal["better", "worse", "undecided"]


@dataclass(frozen=True)
class Interval:
    """An interval of 95 %."""

    low: float
    high: float


@dataclass(frozen=True)
class Needed:
    """Seeds and images, more than there are, that decide a pair by the observed difference with a chance of `POWER`."""

    seeds: int
    images: int | None = None  # None: the present images do


@dataclass(frozen=True)
class Pair:
    """An arm A compared with an arm B.

    Attributes:
        difference: A - B over seeds; positive: A is better.
        over_images: of the mean difference of exactly these networks, for other images; None: unknown.
        together: for other seeds and other images; None: the images' share is unknown.
        image_variance: of the mean difference, without its interaction with seeds.
        p, holm: of the exact sign-flip test over seeds; the second is adjusted for all pairs of the comparison.
        p_together, holm_together: of the t test that belongs to `together`; None: the images' share is unknown.
        better: P(A > B).
        images: N; 0: unknown.
    """

    difference: Summary
    over_images: Interval | None
    together: Interval | None
    image_variance: float
    p: float
    holm: float
    p_together: float | None
    holm_together: float | None
    better: Share
    images: int


@dataclass(frozen=True)
class Verdict:
    """What the data says about a pair."""

    word: Word
    needed: Needed | None = None  # of an undecided pair; None: no number of seeds and images would do
    too_few: bool = False  # whether there are fewer seeds than any difference needs


@lru_cache(maxsize=4)
def image_draws(images: int, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Return (D, N) how often each image is in each draw of N images with replacement. Not to be written to."""
    times_DN = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=draws)
    times_DN.flags.writeable = False
    return times_DN


def compare_pairs(
    values: Mapping[str, np.ndarray],
    pairs: Sequence[tuple[str, str]],
    draws: Mapping[str, np.ndarray] | None = None,
    images: int = 0,
) -> list[Pair]:
    """Return the comparison of each pair of arms, with p-values adjusted for all of them together.

    Args:
        values: by arm, (S,) a metric by seed, in the same order of seeds for all arms; higher is better.
        pairs: (A, B) names of arms.
        draws: by arm, (D, S) the same metric of each network for the draws of `image_draws`, each draw scored as a data
            set of its own; None: unknown.
        images: N.

    Raises:
        ValueError: arms of different numbers of seeds, or a value that is not finite.
    """
    drawn = [None if draws is None else draws[a] - draws[b] for a, b in pairs]
    out = [_pair(_difference(values, a, b), drawn_DS, images) for (a, b), drawn_DS in zip(pairs, drawn, strict=True)]
    adjusted = holm(np.array([pair.p for pair in out])).tolist()
    known = [pair.p_together for pair in out if pair.p_together is not None]
    together = holm(np.array(known)).tolist() if len(known) == len(out) else [None] * len(out)
    return [
        replace(pair, holm=one, holm_together=other) for pair, one, other in zip(out, adjusted, together, strict=True)
    ]


def decide(pair: Pair, pairs: int) -> Verdict:
    """Return whether A is better or worse than B.

    It is decided where two p-values, adjusted for all K pairs, are at most 0.05: the exact one over seeds, and, where
    the images' share is known, the one over seeds and images together. The chance of any wrong verdict among the pairs
    then stays below 5 %, also for other images.
    """
    seeds = pair.difference.count
    of_images = 0.0 if pair.holm_together is None else pair.holm_together
    if seeds >= FEWEST and max(pair.holm, of_images) <= ALPHA + 1e-12:
        return Verdict("better" if pair.difference.mean > 0 else "worse")
    return Verdict("undecided", needed(pair, pairs), too_few=seeds < fewest_seeds(pairs))


def needed(pair: Pair, pairs: int) -> Needed | None:
    """Return the seeds, and if need be the images, with which a pair would be decided; None: more than are practical.

    The true difference is taken to be the observed one, and the spreads to stay as they are.
    """
    effect, sd = abs(pair.difference.mean), pair.difference.sd
    if not effect or math.isnan(sd):
        return None
    # the largest variance of the mean difference
    allowed = (effect / (_normal(1 - ALPHA / 2 / pairs) + _normal(POWER))) ** 2
    if pair.image_variance < 0.8 * allowed:
        seeds = _seeds_for(effect, sd, allowed - pair.image_variance, pairs)
        return None if seeds is None else Needed(max(seeds, pair.difference.count + 1))
    images = math.ceil(pair.images * pair.image_variance / (allowed / 2))
    seeds = _seeds_for(effect, sd, allowed / 2, pairs)
    return None if seeds is None else Needed(max(seeds, pair.difference.count), images)


def _seeds_for(effect: float, sd: float, allowed: float, pairs: int) -> int | None:
    """Return the fewest seeds that leave a variance of `allowed` and that the adjusted test of seeds can show."""
    seeds_n = np.arange(fewest_seeds(pairs), MOST_SEEDS + 1)
    error_n = sd / np.sqrt(seeds_n)
    shown_n = effect >= (_quantiles(pairs) + _normal(POWER)) * error_n
    enough_n = np.flatnonzero(shown_n & (error_n**2 <= allowed))
    return int(seeds_n[enough_n[0]]) if len(enough_n) else None


def _difference(values: Mapping[str, np.ndarray], a: str, b: str) -> np.ndarray:
    if len(values[a]) != len(values[b]):
        raise ValueError(
            f"{a} has {plural(len(values[a]), 'seed')} and {b} {len(values[b])}; a paired comparison needs the same "
            "seeds"
        )
    return np.asarray(values[a], float) - np.asarray(values[b], float)


def _pair(difference_S: np.ndarray, drawn_DS: np.ndarray | None, images: int) -> Pair:
    """Return the comparison of one pair, with p-values that are not adjusted yet."""
    difference, better, p = summarise(difference_S), share_better(difference_S), sign_flip_p(difference_S)
    if drawn_DS is not None:
        drawn_DS = drawn_DS[np.isfinite(drawn_DS).all(axis=1)]  # a draw without objects has no AP
    if drawn_DS is None or not len(drawn_DS):
        return Pair(difference, None, None, 0.0, p, p, None, None, better, 0)
    mean_D = drawn_DS.mean(axis=1)
    low, high = np.percentile(mean_D, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    over_images = Interval(float(low), float(high))
    if difference.count < 2:
        return Pair(difference, over_images, None, float(mean_D.var()), p, p, None, None, better, images)
    image_variance = _without_interaction(drawn_DS)
    together, p_together = _together(difference, image_variance, float(mean_D.var()))
    return Pair(difference, over_images, together, image_variance, p, p, p_together, p_together, better, images)


def _without_interaction(drawn_DS: np.ndarray) -> float:
    """Return the variance of the mean difference that images cause for any seeds.

    The mean over seeds has the variance `images + interaction / S`, and a single seed `images + interaction`.
    """
    seeds = drawn_DS.shape[1]
    of_mean, of_one = float(drawn_DS.mean(axis=1).var()), float(drawn_DS.var(axis=0).mean())
    return max(0.0, of_mean - (of_one - of_mean) / (seeds - 1))


def _together(difference: Summary, image_variance: float, of_mean: float) -> tuple[Interval, float]:
    """Return the interval for other seeds and images, and the p of no difference.

    Args:
        of_mean: variance of the mean difference over images for these seeds, which is `images + interaction / S`.

    Both are by Student's t with the degrees of freedom of Satterthwaite, "An approximate distribution of estimates of
    variance components", 1946; the variance over images counts as known, as images are many.
    """
    seed_variance = difference.sd**2 / difference.count
    # few seeds may lie closer together than their interaction with images alone spreads them
    variance = max(seed_variance + image_variance, of_mean)
    freedom = (difference.count - 1) * (variance / seed_variance) ** 2 if seed_variance else math.inf
    freedom = min(freedom, 1e6)
    half = float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * math.sqrt(variance)
    if not variance:
        p = 0.0 if difference.mean else 1.0
    else:
        p = 2 * float(stats.t.sf(abs(difference.mean) / math.sqrt(variance), freedom))
    return Interval(difference.mean - half, difference.mean + half), p


@cache
def _normal(share: float) -> float:
    return float(stats.norm.ppf(share))


@cache
def _quantiles(pairs: int) -> np.ndarray:
    """Return Student's quantiles of a test adjusted for K pairs, from `fewest_seeds` to `MOST_SEEDS` seeds."""
    return stats.t.ppf(1 - ALPHA / 2 / pairs, np.arange(fewest_seeds(pairs), MOST_SEEDS + 1) - 1)
