"""Paired comparisons: hand-worked values, and simulated studies with the stated coverage and error rate."""

import math

import numpy as np
import pytest
from scipy.stats import norm

from fourstage.analysis.paired import Needed, Pair, compare_pairs, decide, image_draws

STUDIES, DRAWS = 1000, 500
SEED_SD, HARDNESS, TASTE = 0.1, 2.0, 0.6  # of a network's ability, of images, and of images for one arm


def study(draw: np.random.Generator, arms: dict[str, float], seeds: int, images: int) -> tuple[dict, dict, dict]:
    """Simulate right and wrong answers of networks with these abilities.

    An answer is right with the probability of a normal distribution at the ability of the arm, plus that of the seed,
    plus that of the image.

    Returns:
        By arm: (S, N) 100 or 0, the expected metric for other seeds and images, and that of these networks for other
        images.
    """
    easy_N = draw.normal(0, math.sqrt(HARDNESS), images)
    right, expected, of_networks = {}, {}, {}
    for arm, ability in arms.items():
        seed_S1, taste_N = draw.normal(0, SEED_SD, (seeds, 1)), draw.normal(0, math.sqrt(TASTE), images)
        right[arm] = 100.0 * (draw.random((seeds, images)) < norm.cdf(ability + seed_S1 + easy_N + taste_N))
        expected[arm] = 100 * norm.cdf(ability / math.sqrt(1 + SEED_SD**2 + HARDNESS + TASTE))
        of_networks[arm] = 100 * norm.cdf((ability + seed_S1) / math.sqrt(1 + HARDNESS + TASTE)).mean()
    return right, expected, of_networks


def compared(right: dict[str, np.ndarray], reference: str) -> list[Pair]:
    images = right[reference].shape[1]
    times_DN = image_draws(images, DRAWS)
    pairs = [(arm, reference) for arm in right if arm != reference]
    draws = {arm: times_DN @ values_SN.T / images for arm, values_SN in right.items()}
    return compare_pairs({arm: values.mean(axis=1) for arm, values in right.items()}, pairs, draws, images)


def test_coverage_of_all_three_intervals() -> None:
    draw = np.random.default_rng(1)
    together = over_images = over_seeds = 0
    for _ in range(STUDIES):
        right, expected, of_networks = study(draw, {"a": 0.6, "b": 0.5}, seeds=6, images=200)
        [pair] = compared(right, "b")
        assert pair.together is not None
        assert pair.over_images is not None
        together += pair.together.low <= expected["a"] - expected["b"] <= pair.together.high
        over_images += pair.over_images.low <= of_networks["a"] - of_networks["b"] <= pair.over_images.high
        over_seeds += pair.difference.low <= expected["a"] - expected["b"] <= pair.difference.high
    assert 0.93 <= together / STUDIES <= 0.97
    assert 0.93 <= over_images / STUDIES <= 0.97
    assert over_seeds / STUDIES < 0.935  # an interval over seeds alone does not hold for other images


def test_any_wrong_verdict_among_three_pairs_is_rare() -> None:
    draw = np.random.default_rng(2)
    wrong = 0
    for _ in range(STUDIES):
        right, _, _ = study(draw, dict.fromkeys("rabc", 0.5), seeds=8, images=100)  # arms differ on these images only
        wrong += any(decide(pair, 3).word != "undecided" for pair in compared(right, "r"))
    assert wrong / STUDIES <= 0.05


def test_large_differences_are_decided_in_the_right_direction() -> None:
    draw = np.random.default_rng(3)
    words = []
    for _ in range(50):
        right, _, _ = study(draw, {"good": 1.6, "bad": -0.6, "ref": 0.5}, seeds=8, images=200)
        words.append(tuple(decide(pair, 2).word for pair in compared(right, "ref")))
    assert words.count(("better", "worse")) >= 48


def test_the_number_of_seeds_that_would_do_decides_as_often_as_promised() -> None:
    draw = np.random.default_rng(4)
    [pair] = compare_pairs({"a": _spread(1.0, 1.0, 6), "b": np.zeros(6)}, [("a", "b")])
    found = decide(pair, 1).needed
    assert found == Needed(10)  # the textbook's number for a paired t test of one standard deviation, 80 % power
    decided = 0
    for _ in range(STUDIES):
        [pair] = compare_pairs({"a": draw.normal(1.0, 1.0, 10), "b": np.zeros(10)}, [("a", "b")])
        decided += decide(pair, 1).word == "better"
    assert 0.75 <= decided / STUDIES <= 0.9


def _spread(mean: float, sd: float, count: int) -> np.ndarray:
    """Values with exactly this mean and standard deviation."""
    steps_S = np.arange(count) - (count - 1) / 2
    return mean + sd * steps_S / steps_S.std(ddof=1)


def test_a_pair_by_hand() -> None:
    values = {"a": np.array([72.0, 74.0, 76.0]), "b": np.array([71.0, 72.0, 73.0])}  # differences 1, 2, 3
    [pair] = compare_pairs(values, [("a", "b")])
    assert (pair.difference.mean, pair.difference.sd, pair.p, pair.holm) == (2.0, 1.0, 0.25, 0.25)
    assert pair.better.value == 1.0
    assert pair.over_images is None
    assert pair.together is None


def test_variances_of_seeds_and_images_by_hand() -> None:
    """Three draws whose means are -1, 0 and 1, the same for both seeds: nothing of it is interaction."""
    drawn_DS = np.array([[0.0, 2.0], [1.0, 3.0], [-1.0, 1.0]])
    values = {"a": np.array([0.0, 2.0]), "b": np.zeros(2)}
    [pair] = compare_pairs(values, [("a", "b")], {"a": drawn_DS, "b": np.zeros((3, 2))}, images=5)
    assert pair.image_variance == pytest.approx(2 / 3)
    assert pair.over_images is not None
    assert pair.over_images.low == pytest.approx(0.05)
    assert pair.together is not None
    seeds, variance = 2 / 2, 2 / 2 + 2 / 3  # sd 1.414214 of the two differences
    freedom = (variance / seeds) ** 2
    assert freedom == pytest.approx(2.777778)
    assert pair.together.high - 1 == pytest.approx(3.3285 * math.sqrt(variance), abs=0.01)  # t(0.975, 2.78)


def test_draws_that_only_interact_count_once() -> None:
    drawn_DS = np.array([[1.0, -1.0], [-1.0, 1.0], [1.0, 1.0], [-1.0, -1.0]])  # independent from seed to seed
    values = {"a": np.array([0.5, 1.5]), "b": np.zeros(2)}
    [pair] = compare_pairs(values, [("a", "b")], {"a": drawn_DS, "b": np.zeros((4, 2))}, images=5)
    assert pair.image_variance == pytest.approx(0.0)


def test_below_six_seeds_nothing_is_decided() -> None:
    for seeds, word in ((5, "undecided"), (6, "better")):
        [pair] = compare_pairs({"a": _spread(9.0, 0.1, seeds), "b": np.zeros(seeds)}, [("a", "b")])
        verdict = decide(pair, 1)
        assert verdict.word == word
        assert verdict.needed == (Needed(6) if seeds < 6 else None)
        assert verdict.too_few == (seeds < 6)


def test_six_seeds_cannot_decide_four_pairs() -> None:
    values = {name: _spread(9.0, 0.1, 6) for name in "abcd"} | {"r": np.zeros(6)}
    for pair in compare_pairs(values, [(name, "r") for name in "abcd"]):
        verdict = decide(pair, 4)
        assert (verdict.word, verdict.needed, verdict.too_few) == ("undecided", Needed(8), True)


def test_few_images_need_more_images() -> None:
    values = {"a": _spread(1.0, 0.01, 6), "b": np.zeros(6)}
    noise_D1 = np.random.default_rng(5).normal(1.0, 2.0, (DRAWS, 1))
    draws = {"a": np.repeat(noise_D1, 6, axis=1), "b": np.zeros((DRAWS, 6))}
    [pair] = compare_pairs(values, [("a", "b")], draws, images=50)
    found = decide(pair, 1).needed
    assert found is not None
    assert found.images is not None
    assert found.images == pytest.approx(50 * 4 / ((1 / 2.8016) ** 2 / 2), rel=0.15)


def test_no_difference_needs_no_number_of_seeds() -> None:
    [pair] = compare_pairs({"a": np.ones(6), "b": np.ones(6)}, [("a", "b")])
    assert decide(pair, 1).word == "undecided"
    assert decide(pair, 1).needed is None


def test_arms_of_different_numbers_of_seeds() -> None:
    with pytest.raises(ValueError, match="a has 3 seeds and b 2; a paired comparison needs the same seeds"):
        compare_pairs({"a": np.ones(3), "b": np.ones(2)}, [("a", "b")])


def test_draws_of_which_none_has_a_metric_leave_the_images_unknown() -> None:
    values = {"a": np.array([1.0, 2.0, 3.0]), "b": np.array([1.0, 1.0, 1.0])}
    [pair] = compare_pairs(values, [("a", "b")], {"a": np.full((5, 3), np.nan), "b": np.zeros((5, 3))}, images=4)
    assert (pair.over_images, pair.together, pair.images) == (None, None, 0)


def test_an_undecided_pair_needs_more_than_it_has() -> None:
    """With one of six differences against the others, no sign test can decide, however large the mean is."""
    [pair] = compare_pairs({"a": np.array([10, 10, 10, 10, 10, -0.1]), "b": np.zeros(6)}, [("a", "b")])
    verdict = decide(pair, 1)
    assert verdict.word == "undecided"
    assert verdict.needed == Needed(7)


def test_other_seeds_and_images_are_never_surer_than_other_images_alone() -> None:
    """Two seeds that happen to agree do not hide that other images change the difference."""
    draw, studies, together, widths = np.random.default_rng(1), 400, 0, list[float]()
    for _ in range(studies):
        right, expected, _ = study(draw, {"a": 0.3, "b": 0.2}, seeds=2, images=120)
        [pair] = compared(right, "b")
        assert pair.together is not None
        assert pair.over_images is not None
        together += pair.together.low <= expected["a"] - expected["b"] <= pair.together.high
        widths.append((pair.together.high - pair.together.low) / (pair.over_images.high - pair.over_images.low))
    assert min(widths) > 0.9  # the ends of one are normal quantiles, those of the other of the draws
    assert together / studies > 0.93
