"""The result of a comparison as plain values, for tables and pages."""

from dataclasses import dataclass

from fourstage.analysis.paired import Pair, Verdict
from fourstage.analysis.seeds import Summary


@dataclass(frozen=True)
class Speed:
    """Images per second over interleaved rounds: the median and the quartiles; and peak bytes, where known."""

    median: float
    low: float
    high: float
    batch: int
    peak: int | None


@dataclass(frozen=True)
class ArmResult:
    """One arm of a comparison.

    Attributes:
        network: the name of what was trained.
        parameters, macs: of the network for one image; None: unknown.
        infer, train: None: not measured.
        values: (S,) the metric by seed.
        tuning: the tuning budget in words.
        hours: of all its trainings together; None: unknown.
        runs: their folders, by seed.
    """

    name: str
    network: str
    parameters: int | None
    macs: int | None
    infer: Speed | None
    train: Speed | None
    values: tuple[float, ...]
    summary: Summary
    tuning: str
    hours: float | None
    runs: tuple[str, ...]


@dataclass(frozen=True)
class PairResult:
    """An arm compared with the reference, and the verdict as one sentence."""

    arm: str
    reference: str
    pair: Pair
    verdict: Verdict
    sentence: str


@dataclass(frozen=True)
class Comparison:
    """Everything that the table and the page of a comparison show.

    Attributes:
        metric: its name in the records.
        label: its name for readers.
        higher_is_better: whether a higher metric is better; differences of pairs are positive where the arm is better.
        seeds: S of them, the same for all arms.
        images: N validation images; 0: unknown.
        missing: cells that have not ended, in words.
        warnings: sentences on what makes the comparison unfair.
        conditions: what is the same for all arms, as (name, value).
    """

    title: str
    metric: str
    label: str
    percent: bool
    higher_is_better: bool
    seeds: tuple[int, ...]
    images: int
    arms: tuple[ArmResult, ...]
    pairs: tuple[PairResult, ...]
    missing: tuple[str, ...]
    warnings: tuple[str, ...]
    conditions: tuple[tuple[str, str], ...]
