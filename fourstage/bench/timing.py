"""Time several workloads in rounds: they take turns, so that other load on the machine slows down all of them alike."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

Step = Callable[[], None]
Watch = Callable[[], float]  # reads a clock in seconds, after the device has finished its work

ROUNDS, FEWEST = 10, 5  # at most and at least
LATENCIES = (4, 20)  # single images timed in a round: at least, at most


@dataclass(frozen=True)
class Spread:
    """A median and its quartiles: half of the values are between `low` and `high`."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Turn:
    """The work of one model in each round.

    Attributes:
        step: runs one pass or one training step.
        steps: steps that make one timed sample.
        samples: timed samples in a round.
        untimed: steps before the first sample, which are not timed.
    """

    step: Step
    steps: int = 1
    samples: int = 1
    untimed: int = 0


def spread(values: Sequence[float]) -> Spread:
    """Return the median and the quartiles."""
    return Spread(median(values), quantile(values, 0.25), quantile(values, 0.75))


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value below which `share` of the values is, interpolated linearly between two of them."""
    ordered = sorted(values)
    at = share * (len(ordered) - 1)
    below, above = ordered[math.floor(at)], ordered[math.ceil(at)]
    return below + (above - below) * (at - math.floor(at))


def ratio(values: Sequence[float], others: Sequence[float]) -> Spread:
    """Return the spread of the values over `others`, round by round."""
    return spread([one / other for one, other in zip(values, others, strict=True)])


def geometric_mean(values: Sequence[float]) -> float:
    """Return the geometric mean."""
    return math.exp(sum(math.log(value) for value in values) / len(values))


def pace(step: Step, watch: Watch) -> float:
    """Return the seconds of one step that has been warmed up."""
    start = watch()
    step()
    return max(watch() - start, 1e-9)


def rounds_for(paces: Sequence[float], seconds: float) -> int:
    """Return the number of rounds in which the slowest model can run one step each within its `seconds`."""
    return min(ROUNDS, max(FEWEST, int(seconds / max(paces))))


def throughput_turn(step: Step, pace: float, seconds: float, rounds: int) -> Turn:
    """Return a turn of one sample, with as many steps as fill this model's share of a round."""
    return Turn(step, steps=max(1, round(seconds / rounds / pace)))


def latency_turn(step: Step, pace: float, seconds: float, rounds: int) -> Turn:
    """Return a turn of single timed steps. The first step of a round is untimed: caches hold another model's data."""
    fewest, most = LATENCIES
    return Turn(step, samples=min(most, max(fewest, round(seconds / rounds / pace))), untimed=1)


def run_rounds(turns: Sequence[Turn], rounds: int, watch: Watch, tick: Callable[[], None]) -> list[list[list[float]]]:
    """Run all turns in each round, in an order that is reversed from round to round.

    Args:
        tick: is called after each round.

    Returns:
        Seconds per step: one list per turn, of one list per round, of one value per sample.
    """
    taken: list[list[list[float]]] = [[] for _ in turns]
    for number in range(rounds):
        order = range(len(turns)) if number % 2 == 0 else reversed(range(len(turns)))
        for at in order:
            taken[at].append(_samples(turns[at], watch))
        tick()
    return taken


def _samples(turn: Turn, watch: Watch) -> list[float]:
    for _ in range(turn.untimed):
        turn.step()
    out = []
    for _ in range(turn.samples):
        start = watch()
        for _ in range(turn.steps):
            turn.step()
        out.append((watch() - start) / turn.steps)
    return out
