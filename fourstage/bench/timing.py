"""Measuring in rounds: everybody takes turns, so that what slows the machine down for a while slows all alike."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

Step = Callable[[], None]
Watch = Callable[[], float]  # seconds so far, once all work that was ordered is done

ROUNDS, FEWEST = 10, 5  # as many rounds as there is time for
LATENCIES = (4, 20)  # single images timed in a round: at least, at most


@dataclass(frozen=True)
class Spread:
    """A median, and the quartiles around it: half of the rounds lie between `low` and `high`."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Turn:
    """What one contestant does in each round.

    Attributes:
        step: the work.
        steps: how often it is done for one sample.
        samples: how many samples are taken.
        unseen: steps before them that nobody times.
    """

    step: Step
    steps: int = 1
    samples: int = 1
    unseen: int = 0


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles."""
    return Spread(median(values), quantile(values, 0.25), quantile(values, 0.75))


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which a share of the values lies, between two of them in proportion."""
    ordered = sorted(values)
    at = share * (len(ordered) - 1)
    below, above = ordered[math.floor(at)], ordered[math.ceil(at)]
    return below + (above - below) * (at - math.floor(at))


def ratio(values: Sequence[float], others: Sequence[float]) -> Spread:
    """How many times `others` the values are, round by round."""
    return spread([one / other for one, other in zip(values, others, strict=True)])


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(math.log(value) for value in values) / len(values))


def pace(step: Step, watch: Watch) -> float:
    """Seconds of one step that has been warmed up."""
    start = watch()
    step()
    return max(watch() - start, 1e-9)


def rounds_for(paces: Sequence[float], seconds: float) -> int:
    """How many rounds fit where the slowest does one step a round in its `seconds`."""
    return min(ROUNDS, max(FEWEST, int(seconds / max(paces))))


def throughput_turn(step: Step, pace: float, seconds: float, rounds: int) -> Turn:
    """As many steps in one sample as fill this contestant's share of a round."""
    return Turn(step, steps=max(1, round(seconds / rounds / pace)))


def latency_turn(step: Step, pace: float, seconds: float, rounds: int) -> Turn:
    """Single steps, each timed; the first of a round, which finds the caches full of another's data, is not."""
    fewest, most = LATENCIES
    return Turn(step, samples=min(most, max(fewest, round(seconds / rounds / pace))), unseen=1)


def race(turns: Sequence[Turn], rounds: int, watch: Watch, tick: Callable[[], None]) -> list[list[list[float]]]:
    """Let everybody take a turn in each round, forwards and backwards by turns.

    Args:
        tick: is called after each round.

    Returns:
        Seconds per step: one list per contestant, of one list per round, of one value per sample.
    """
    taken: list[list[list[float]]] = [[] for _ in turns]
    for number in range(rounds):
        order = range(len(turns)) if number % 2 == 0 else reversed(range(len(turns)))
        for at in order:
            taken[at].append(_samples(turns[at], watch))
        tick()
    return taken


def _samples(turn: Turn, watch: Watch) -> list[float]:
    for _ in range(turn.unseen):
        turn.step()
    out = []
    for _ in range(turn.samples):
        start = watch()
        for _ in range(turn.steps):
            turn.step()
        out.append((watch() - start) / turn.steps)
    return out
