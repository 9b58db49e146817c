"""Statistics over seeds: hand-worked values, and simulations with the stated coverage and error rate."""

import math

import numpy as np
import pytest
from scipy import stats

from fourstage.analysis.seeds import (
    DRAWN_FLIPS,
    EXACT,
    fewest_seeds,
    holm,
    share_better,
    sign_flip_p,
    smallest_p,
    summarise,
)

STUDIES = 1000


def test_mean_standard_deviation_and_interval_by_hand() -> None:
    found = summarise(np.array([1.0, 2.0, 3.0]))  # t with 2 degrees of freedom: 4.302653
    assert (found.mean, found.sd, found.count) == (2.0, 1.0, 3)
    assert found.low == pytest.approx(2 - 4.302653 / math.sqrt(3), abs=1e-6)
    assert found.high == pytest.approx(2 + 4.302653 / math.sqrt(3), abs=1e-6)


def test_one_value_has_no_spread() -> None:
    found = summarise(np.array([71.5]))
    assert found.mean == 71.5
    assert all(map(math.isnan, (found.sd, found.low, found.high)))


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_values_that_have_no_mean(values: list[float]) -> None:
    with pytest.raises(ValueError, match="at least one finite value"):
        summarise(np.array(values))


def test_interval_covers_the_true_mean_in_95_of_100_studies() -> None:
    draw = np.random.default_rng(1)
    found = [summarise(draw.normal(3.0, 0.4, 6)) for _ in range(STUDIES)]
    assert 0.93 <= np.mean([one.low <= 3.0 <= one.high for one in found]) <= 0.97


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([1, 2, 3], 2 / 8),  # all of one sign: only both extremes of the 8 choices
        ([1, 2, 3, -0.5], 4 / 16),  # sums of at least 5.5: 6.5 and 5.5, with both signs
        ([1, -1], 1.0),
        ([0, 0, 0], 1.0),
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], 2 / 64),
        ([0.1] * 3 + [-0.1] * 3, 1.0),  # sums of equal numbers differ in their last bits
    ],
)
def test_sign_flip_by_hand(differences: list[float], p: float) -> None:
    assert sign_flip_p(np.array(differences, float)) == pytest.approx(p)


def test_sign_flip_equals_scipy() -> None:
    differences_S = np.random.default_rng(2).normal(0.4, 1.0, 9)
    theirs = stats.permutation_test(
        (differences_S,), np.mean, permutation_type="samples", n_resamples=10**4
    )  # more than 2 ** 9
    assert sign_flip_p(differences_S) == pytest.approx(theirs.pvalue)


def test_many_seeds_draw_the_flips() -> None:
    differences_S = np.random.default_rng(3).normal(0.35, 1.0, EXACT + 8)
    drawn = sign_flip_p(differences_S)
    assert drawn == sign_flip_p(differences_S)
    assert drawn == pytest.approx(float(np.asarray(stats.ttest_1samp(differences_S, 0))[1]), abs=0.02)
    assert sign_flip_p(np.ones(40)) == 1 / (1 + DRAWN_FLIPS)


def test_error_rate_of_the_sign_flip_test() -> None:
    draw = np.random.default_rng(4)
    rejected = np.mean([sign_flip_p(draw.standard_t(3, 8)) <= 0.05 for _ in range(STUDIES)])
    assert 0.02 <= rejected <= 0.065  # exact: 6 / 128 = 0.047


def test_fewest_seeds() -> None:
    assert [smallest_p(seeds) for seeds in (1, 5, 6)] == [1.0, 1 / 16, 1 / 32]
    assert [fewest_seeds(pairs) for pairs in (1, 2, 3, 4, 10)] == [6, 7, 7, 8, 9]


def test_holm_by_hand() -> None:
    assert holm(np.array([0.01, 0.04, 0.03])).tolist() == pytest.approx([0.03, 0.06, 0.06])
    assert holm(np.array([0.5, 0.6])).tolist() == [1.0, 1.0]
    assert holm(np.array([0.02])).tolist() == [0.02]


def test_share_better_by_hand() -> None:
    found = share_better(np.array([1.0] * 81 + [-1.0] * 19))  # Wilson of 81 / 100
    assert (found.value, found.low, found.high) == pytest.approx((0.81, 0.722212, 0.874852), abs=1e-6)
    assert share_better(np.array([1.0, 0.0, 0.0, -1.0])).value == 0.5
    assert share_better(np.ones(6)).high == 1.0
