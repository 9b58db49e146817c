"""Rounds, medians and ratios, on a clock that the tests turn by hand."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourstage.bench import timing
from fourstage.bench.timing import Turn


class Clock:
    """Time that passes only when somebody works."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def __call__(self) -> float:
        return self.now

    def worker(self, name: str, seconds: float) -> Callable[[], None]:
        def step() -> None:
            self.log.append(name)
            self.now += seconds

        return step


def test_workloads_take_turns_in_an_order_that_is_reversed_each_round() -> None:
    clock, ticks = Clock(), []
    turns = [
        Turn(clock.worker("a", 0.5), steps=2),
        Turn(clock.worker("b", 0.25), samples=3, untimed=1),
    ]
    taken = timing.run_rounds(turns, 2, clock, lambda: ticks.append(clock.now))
    assert clock.log == [*"aabbbb", *"bbbbaa"]
    assert taken == [[[0.5], [0.5]], [[0.25] * 3] * 2]
    assert ticks == [2.0, 4.0]


def test_the_slowest_decides_on_the_rounds_and_the_others_fill_their_share() -> None:
    assert timing.rounds_for([0.01, 0.1], 10) == timing.ROUNDS
    assert timing.rounds_for([0.01, 1.2], 10) == 8
    assert timing.rounds_for([9.0], 10) == timing.FEWEST
    step = Clock().worker("a", 1)
    assert timing.throughput_turn(step, pace=0.1, seconds=10, rounds=5).steps == 20
    assert timing.throughput_turn(step, pace=99, seconds=10, rounds=5).steps == 1
    fewest, most = timing.LATENCIES
    assert timing.latency_turn(step, pace=99, seconds=10, rounds=5).samples == fewest
    assert timing.latency_turn(step, pace=1e-6, seconds=10, rounds=5).samples == most


def test_pace_is_the_time_of_one_step() -> None:
    clock = Clock()
    assert timing.pace(clock.worker("a", 0.75), clock) == 0.75
    assert timing.pace(clock.worker("a", 0), clock) > 0  # nothing is divided by 0 later


def test_median_and_quartiles() -> None:
    spread = timing.spread([4, 1, 3, 2, 5])
    assert (spread.low, spread.median, spread.high) == (2, 3, 4)
    assert timing.quantile([10, 20], 0.25) == 12.5
    assert timing.quantile([7], 0.95) == 7
    assert timing.quantile(range(101), 0.95) == 95


def test_a_ratio_is_taken_round_by_round() -> None:
    # a machine that slows down to a tenth for a while, while one model is always twice the other
    other = [10.0, 1.0, 10.0, 1.0, 5.0]
    spread = timing.ratio([2 * value for value in other], other)
    assert (spread.low, spread.median, spread.high) == (2, 2, 2)
    with pytest.raises(ValueError, match="shorter"):
        timing.ratio([1.0, 2.0], [1.0])


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=20))
def test_the_median_is_between_the_quartiles_and_means_do_not_depend_on_order(values: list[float]) -> None:
    spread = timing.spread(values)
    assert min(values) <= spread.low <= spread.median * (1 + 1e-12)
    assert spread.median * (1 - 1e-12) <= spread.high <= max(values)
    assert timing.geometric_mean(values) == pytest.approx(timing.geometric_mean(values[::-1]))
    assert timing.geometric_mean([1 / value for value in values]) == pytest.approx(1 / timing.geometric_mean(values))
