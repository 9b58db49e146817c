"""The result of a comparison as plain values, for tables and pages.

A arms, S seeds, V settings of an invariance, T maps, H x W pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fourstage.analysis.invariance import Family
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
class Column:
    """What an analysis says about one arm.

    Attributes:
        key: such as "erf_width_px", for files.
        label: for readers, with the unit.
        digits: behind the decimal point.
        values: (S,) by seed; () for a mean over pairs of seeds.
        summary: None: unknown.
    """

    key: str
    label: str
    digits: int
    values: tuple[float, ...]
    summary: Summary | None


@dataclass(frozen=True)
class FieldMap:
    """The mean receptive field of an arm: each run's map over its sum, averaged over seeds."""

    map_HW: np.ndarray
    cells: tuple[int, int]
    unit_centre: tuple[float, float]


@dataclass(frozen=True)
class Consistency:
    """How an arm's predictions of one family of changed images agree with those of the standard view, per cent."""

    settings_V: np.ndarray
    values_SV: np.ndarray


@dataclass(frozen=True)
class Pictures:
    """What the figures of the analyses draw, by arm; empty where an analysis was not made.

    Attributes:
        similarity_TAA: mean CKA between trainings of two arms, and on the diagonal of one, by map; NaN: unknown.
        similar: the arms of its rows and columns.
    """

    fields: Mapping[str, FieldMap]
    consistency: Mapping[Family, Mapping[str, Consistency]]
    similar: tuple[str, ...]
    similarity_TAA: np.ndarray


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
        columns: what analyses say; all arms have the same, in the same order.
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
    columns: tuple[Column, ...] = ()


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
        remarks: sentences on how the columns of the arms were measured, and why some are unknown.
        pictures: None: no analysis was made.
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
    remarks: tuple[str, ...] = ()
    pictures: Pictures | None = None
