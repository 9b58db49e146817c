"""Two networks on the same images: McNemar's exact test and the interval of the difference."""

import math

import numpy as np
import pytest
from scipy import stats

from fourstage.analysis.paired_answers import compare_answers, mcnemar


def answers(both: int, only_a: int, only_b: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    counts = (both, only_a, only_b, neither)
    return np.repeat([1, 1, 0, 0], counts), np.repeat([1, 0, 1, 0], counts)


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (5, 0), (3, 11), (40, 41), (2600, 2400)])
def test_mcnemar_is_the_binomial_test_of_the_discordant_images(only_a: int, only_b: int) -> None:
    total = only_a + only_b
    expected = stats.binomtest(only_a, total).pvalue if total else 1.0
    assert mcnemar(only_a, only_b) == pytest.approx(expected)
    assert mcnemar(only_b, only_a) == pytest.approx(expected)


def test_five_images_that_one_network_alone_gets_right() -> None:
    found = compare_answers(*answers(80, 5, 0, 15))
    assert (found.only_a, found.only_b) == (5, 0)
    assert found.difference == pytest.approx(5)
    assert found.p == pytest.approx(2 / 2**5)


def test_the_interval_of_many_images_is_that_of_the_paired_formula() -> None:
    only_a, only_b, count = 2600, 2400, 50_000
    found = compare_answers(*answers(39_000, only_a, only_b, count - 39_000 - only_a - only_b))
    share = (only_a - only_b) / count
    half = 100 * 1.959964 * math.sqrt((only_a + only_b) / count - share**2) / math.sqrt(count)
    assert found.low == pytest.approx(found.difference - half, abs=0.002)
    assert found.high == pytest.approx(found.difference + half, abs=0.002)


def newcombe(both: int, only_a: int, only_b: int, neither: int) -> tuple[float, float]:
    """Return method 10 of Newcombe 1998, written a second time: Wilson's limits are the roots of his equation."""
    count, z = both + only_a + only_b + neither, 1.959963984540054

    def limits(right: int) -> np.ndarray:
        p = right / count
        return np.sort(np.roots([1 + z**2 / count, -2 * p - z**2 / count, p**2]).real) - p

    (below_a, above_a), (below_b, above_b) = limits(both + only_a), limits(both + only_b)
    margins = (both + only_a) * (both + only_b) * (neither + only_a) * (neither + only_b)
    spread = both * neither - only_a * only_b
    phi = (spread if spread <= 0 else max(spread - count / 2, 0)) / math.sqrt(margins) if margins else 0
    share = (only_a - only_b) / count
    low = share - math.sqrt(below_a**2 + 2 * phi * below_a * above_b + above_b**2)
    return 100 * low, 100 * (share + math.sqrt(below_b**2 + 2 * phi * below_b * above_a + above_a**2))


TABLES = {
    "positively correlated": (60, 12, 5, 23),
    "so few that the correction cuts the correlation at zero": (6, 3, 2, 2),
    "negatively correlated": (20, 30, 35, 15),
    "not symmetric": (36, 12, 2, 0),
    "one network right on every image": (53, 1, 0, 0),
    "one image": (0, 0, 1, 0),
}


@pytest.mark.parametrize("counts", TABLES.values(), ids=TABLES)
def test_the_interval_is_newcombes_method_10(counts: tuple[int, int, int, int]) -> None:
    found = compare_answers(*answers(*counts))
    assert (found.low, found.high) == pytest.approx(newcombe(*counts), abs=1e-6)


def test_networks_that_agree_on_all_images_have_an_interval_of_some_width() -> None:
    found = compare_answers(*answers(10, 0, 0, 0))
    assert found.difference == 0
    assert found.low < 0 < found.high
    assert found.p == 1


def test_the_order_of_networks_turns_the_interval_around() -> None:
    a, b = answers(60, 12, 5, 23)
    one, other = compare_answers(a, b), compare_answers(b, a)
    assert (one.difference, one.low, one.high) == pytest.approx((-other.difference, -other.high, -other.low))
    assert one.p == other.p


def test_the_interval_holds_in_95_of_100_simulated_test_sets() -> None:
    rng, truth, held = np.random.default_rng(0), 100 * (0.08 - 0.03), []
    for _ in range(1000):
        found = compare_answers(*answers(*rng.multinomial(200, [0.7, 0.08, 0.03, 0.19])))
        held.append(found.low <= truth <= found.high)
    assert 0.93 <= np.mean(held) <= 0.975


@pytest.mark.parametrize("sizes", [(0, 0), (3, 4)])
def test_answers_to_other_images_are_refused(sizes: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"answers to the same images, at least one; got {sizes[0]} and {sizes[1]}"):
        compare_answers(*(np.ones(size) for size in sizes))
