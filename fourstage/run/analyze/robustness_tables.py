"""What `fourstage analyze robustness` prints and writes: tables, timm's columns and arrays."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from fourstage.analysis.networks import LoadedNetwork
from fourstage.analysis.paired_answers import PairedAnswers, compare_answers
from fourstage.analysis.statistics import bootstrap_means
from fourstage.files import write_text
from fourstage.report.analyses.robustness import NetworkRobustness
from fourstage.run.analyze.outputs import as_csv, with_interval

HEAD = ("network", "test set", "images", "top-1 %", "interval")
ERRORS = ("mCE",)  # column of ImageNet-C
PAIRED = ("to the first", "p")  # columns where there are several networks


def head_of(found: Sequence[NetworkRobustness]) -> tuple[str, ...]:
    """Return the head of the printed table."""
    return (*HEAD, *(ERRORS if _has_mce(found) else ()), *(PAIRED if _is_paired(found) else ()))


def printed(found: Sequence[NetworkRobustness]) -> Iterator[tuple[str, ...]]:
    paired, errors = _is_paired(found), _has_mce(found)
    for one in found:
        mce = "-" if one.errors is None or one.errors.mce is None else f"{one.errors.mce:.1f}"
        if one.plain is not None:
            low, high = one.plain.interval
            count = str(len(one.plain.correct_N))
            name = "unchanged" if one.by_corruption else one.test_set
            row = (one.name, name, count, f"{one.plain.top1:.1f}", f"[{low:.1f}, {high:.1f}]")
            yield (*row, *(("-",) if errors else ()), *(_words_of(one.paired) if paired else ()))
        if one.by_corruption:
            mean, low, high = mean_accuracy(one)
            count = str(len(next(iter(one.by_corruption.values())).correct_N))
            start = "" if one.plain is not None else one.name
            interval = "-" if np.isnan(low) else f"[{low:.1f}, {high:.1f}]"
            row = (start, f"{one.test_set}, mean", count, f"{mean:.1f}", interval)
            yield (*row, *((mce,) if errors else ()), *((_difference(one.paired_mean), "-") if paired else ()))


def _has_mce(found: Sequence[NetworkRobustness]) -> bool:
    return any(one.errors is not None and one.errors.mce is not None for one in found)


def _is_paired(found: Sequence[NetworkRobustness]) -> bool:
    return any(one.paired is not None or one.paired_mean is not None for one in found)


def _words_of(paired: PairedAnswers | None) -> tuple[str, str]:
    if paired is None:
        return "-", "-"
    return _difference((paired.difference, paired.low, paired.high)), f"{paired.p:.2g}"


def _difference(paired: tuple[float, float, float] | None) -> str:
    return "-" if paired is None else with_interval(*paired, "+.1f")


def with_pairs(found: Sequence[NetworkRobustness]) -> list[NetworkRobustness]:
    """Compare each network with the first one of its test set, image by image."""
    first: dict[str, NetworkRobustness] = {}
    out = []
    for one in found:
        reference = first.setdefault(one.test_set, one)
        out.append(one if reference is one else _compared(one, reference))
    return out


def _compared(one: NetworkRobustness, reference: NetworkRobustness) -> NetworkRobustness:
    paired = paired_mean = None
    if one.plain is not None and reference.plain is not None:
        paired = compare_answers(one.plain.correct_N, reference.plain.correct_N)
    if one.by_corruption:
        paired_mean = _mean_difference(one, reference)
    return replace(one, paired=paired, paired_mean=paired_mean)


def _mean_difference(one: NetworkRobustness, reference: NetworkRobustness) -> tuple[float, float, float]:
    """Return the difference of the means over corruptions, and its interval over images where all have the same."""
    rows = [accuracy.correct_N - reference.by_corruption[key].correct_N for key, accuracy in one.by_corruption.items()]
    return _mean_of(rows)


def mean_accuracy(one: NetworkRobustness) -> tuple[float, float, float]:
    """Return the mean over corruptions and severities, and its interval over images where all have the same ones."""
    return _mean_of([accuracy.correct_N for accuracy in one.by_corruption.values()])


def _mean_of(rows: Sequence[np.ndarray]) -> tuple[float, float, float]:
    """Return the mean of means over images, per cent, and its interval; NaN where the rows have other images."""
    mean = 100 * float(np.mean([row.mean() for row in rows]))
    if len({len(row) for row in rows}) > 1:
        return mean, float("nan"), float("nan")
    low_1, high_1 = bootstrap_means(100 * np.mean(rows, axis=0)[None])
    return mean, float(low_1[0]), float(high_1[0])


COLUMNS = (
    *("network", "weights", "test_set", "corruption", "severity", "images"),
    *("top1", "low", "high", "top5", "ce", "relative_ce"),
    *("difference", "difference_low", "difference_high", "p"),
)
NO_PAIR = (None,) * 4


def rows_of(found: Sequence[NetworkRobustness]) -> Iterator[tuple[object, ...]]:
    """Yield a row for each severity, with the CE of its corruption, and a row of means with the mCE.

    The last columns compare a network with the first one on the same images.
    """
    for one in found:
        start = (one.name, one.weights, one.test_set)
        if one.plain is not None:
            count, top5, pair = len(one.plain.correct_N), one.plain.top5, one.paired
            pairs = NO_PAIR if pair is None else (pair.difference, pair.low, pair.high, pair.p)
            yield (*start, "", 0, count, one.plain.top1, *one.plain.interval, top5, None, None, *pairs)
        for (name, severity), accuracy in one.by_corruption.items():
            row = (*start, name, severity, len(accuracy.correct_N), accuracy.top1, *accuracy.interval, accuracy.top5)
            ces = (None, None) if one.errors is None else (one.errors.ce.get(name), one.errors.relative_ce.get(name))
            yield (*row, *ces, *NO_PAIR)
        if one.by_corruption and (one.errors is None or one.errors.mce is not None):
            count = len(next(iter(one.by_corruption.values())).correct_N)
            row = (*start, "mean of all", "", count, *(None if np.isnan(v) else v for v in mean_accuracy(one)), None)
            errors = (None, None) if one.errors is None else (one.errors.mce, one.errors.relative_mce)
            yield (*row, *errors, *(one.paired_mean or NO_PAIR[:3]), None)


TIMM = ("model", "img_size", "top1", "top1_err", "top5", "top5_err", "param_count", "crop_pct", "interpolation")


def write_for_timm(
    folder: Path, networks: Sequence[LoadedNetwork], found: Sequence[NetworkRobustness], side: int | None
) -> Iterator[Path]:
    """Write the columns of timm's tables of results, a file for each kind of labels; yield their paths.

    Args:
        side: of the images, pixels; None: each network's own.
    """
    by_name = {loaded.name: loaded for loaded in networks}
    for file, is_real in (("timm.csv", False), ("timm-real.csv", True)):
        own = [one for one in found if one.test_set.endswith(", ReaL") == is_real]
        if own:
            write_text(folder / file, as_csv(TIMM, [_row_for_timm(by_name[one.name], one, side) for one in own]))
            yield folder / file


def _row_for_timm(loaded: LoadedNetwork, one: NetworkRobustness, side: int | None) -> tuple[object, ...]:
    assert one.plain is not None, "a published test set is measured as it is"
    assert one.plain.top5 is not None, "the best five classes of its images are kept"
    p, shares = loaded.preparation, (one.plain.top1, one.plain.top5)
    numbers = [round(value, 4) for share in shares for value in (share, 100 - share)]
    millions = round(sum(parameter.numel() for parameter in loaded.network.parameters()) / 1e6, 2)
    size = side or p.image_size[0]
    name = loaded.name.removeprefix("timm/").partition("=")[0]  # of NAME=FILE
    return (name, size, *numbers, millions, p.crop_pct, p.interpolation)


def arrays_of(found: Sequence[NetworkRobustness]) -> dict[str, np.ndarray]:
    out: dict[str, np.ndarray] = {}
    for one in found:
        key = f"{one.name} {one.weights}__{one.test_set}"
        if one.plain is not None:
            out[f"{key}__correct"] = one.plain.correct_N.astype(bool)
        for (name, severity), accuracy in one.by_corruption.items():
            out[f"{key}__{name}__{severity}"] = accuracy.correct_N.astype(bool)
    return out
