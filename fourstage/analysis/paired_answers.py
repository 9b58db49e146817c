"""Two networks compared by their answers to the same images, each right (1) or wrong (0). N images.

The pairs decide: images that both networks get right, or both get wrong, say nothing about which one is better.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from fourstage.tasks.parts.intervals import wilson


@dataclass(frozen=True)
class PairedAnswers:
    """The accuracy of a network A less that of a network B.

    Attributes:
        difference: per cent of the images; positive: A is better.
        low, high: its 95 % interval for other images.
        p: two-sided, of McNemar's exact test.
        only_a, only_b: images that one network alone gets right.
    """

    difference: float
    low: float
    high: float
    p: float
    only_a: int
    only_b: int


def compare_answers(a_N: np.ndarray, b_N: np.ndarray) -> PairedAnswers:
    """Compare the answers of two networks to the same images.

    The interval is Newcombe's for paired shares (Statistics in Medicine 17, 1998, method 10), of Wilson's intervals;
    it has a width also where the networks agree on every image.

    Raises:
        ValueError: other numbers of images, or none.
    """
    a_N, b_N = np.asarray(a_N, bool), np.asarray(b_N, bool)
    if a_N.shape != b_N.shape or a_N.size == 0:
        raise ValueError(f"pairs need answers to the same images, at least one; got {a_N.size} and {b_N.size}")
    only_a, only_b = int((a_N & ~b_N).sum()), int((b_N & ~a_N).sum())
    below, above = _reach(a_N, b_N), _reach(b_N, a_N)
    difference = 100 * (only_a - only_b) / a_N.size
    return PairedAnswers(difference, difference - below, difference + above, mcnemar(only_a, only_b), only_a, only_b)


def mcnemar(only_a: int, only_b: int) -> float:
    """Return the two-sided p of McNemar's exact test, by the images that one network alone gets right."""
    return min(1.0, 2 * float(stats.binom.cdf(min(only_a, only_b), only_a + only_b, 0.5)))


def _reach(a_N: np.ndarray, b_N: np.ndarray) -> float:
    """Return how far the interval of A - B reaches below the difference, per cent."""
    below_a = 100 * a_N.mean() - wilson(int(a_N.sum()), a_N.size)[0]
    above_b = wilson(int(b_N.sum()), b_N.size)[1] - 100 * b_N.mean()
    return math.sqrt(below_a**2 - 2 * _correlation(a_N, b_N) * below_a * above_b + above_b**2)


def _correlation(a_N: np.ndarray, b_N: np.ndarray) -> float:
    """Return the correlation of the answers, where it is positive with Newcombe's correction for few images."""
    both, neither = int((a_N & b_N).sum()), int((~a_N & ~b_N).sum())
    margins = math.prod(int(one.sum()) for one in (a_N, b_N, ~a_N, ~b_N))
    if margins == 0:
        return 0.0
    spread = both * neither - int((a_N & ~b_N).sum()) * int((b_N & ~a_N).sum())
    return (max(spread - a_N.size / 2, 0.0) if spread > 0 else spread) / math.sqrt(margins)
