"""The page of robustness: accuracy by corruption and severity, and of published test sets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fourstage.analysis.paired_answers import PairedAnswers
from fourstage.analysis.robustness import Accuracy, CorruptionErrors
from fourstage.report.analyses.layout import analysis_page, figure, notes, panels, section
from fourstage.report.curves import Curve, curve_chart, legend
from fourstage.report.markup import Markup, table


@dataclass(frozen=True)
class NetworkRobustness:
    """One network on one test set.

    Attributes:
        plain: on the test set itself, or on images before they are corrupted; None: not measured.
        by_corruption: by the name of a corruption and its severity.
        errors: against AlexNet's, of ImageNet-C alone.
        paired: `plain` less that of the first network of the table on these images; None: this is the first.
        paired_mean: the same of the mean over corruptions: the difference and its interval, per cent; the interval is
            NaN where corruptions have other images.
    """

    name: str
    weights: str
    test_set: str
    plain: Accuracy | None
    by_corruption: Mapping[tuple[str, int], Accuracy]
    errors: CorruptionErrors | None
    paired: PairedAnswers | None = None
    paired_mean: tuple[float, float, float] | None = None


def robustness_page(found: Sequence[NetworkRobustness], data: str, remarks: Sequence[str]) -> str:
    """Return the page: the table, and accuracy over severity for each corruption, all on the same axis."""
    corrupted = [one for one in found if one.by_corruption]
    return analysis_page(
        "Robustness",
        f"Top-1 accuracy on {data}.",
        [
            section("Numbers", _table(found)),
            section("By severity", _charts(corrupted), legend([f"{one.name}, {one.weights}" for one in corrupted]))
            if corrupted
            else None,
            section("By corruption", _by_corruption(corrupted)) if corrupted else None,
            section("How to read this", notes([*remarks, *_REMARKS])),
        ],
    )


def _table(found: Sequence[NetworkRobustness]) -> Markup:
    rows = []
    for one in found:
        start = (one.name, one.weights)
        if one.plain is not None:
            low, high = one.plain.interval
            what = "unchanged images" if one.by_corruption else one.test_set
            cells = (f"{one.plain.top1:.2f}", f"{low:.2f} to {high:.2f}", str(len(one.plain.correct_N)))
            rows.append((*start, what, *cells, *_paired(one), "", ""))
        if one.by_corruption:
            mean = np.mean([accuracy.top1 for accuracy in one.by_corruption.values()])
            errors = (None, None) if one.errors is None else (one.errors.mce, one.errors.relative_mce)
            cells = (f"{mean:.2f}", "", "", _difference(one.paired_mean), "")
            rows.append(
                (*start, f"{one.test_set}, mean", *cells, *("" if e is None else _signed(f"{e:.2f}") for e in errors))
            )
    kept = [k for k in range(len(_HEAD)) if any(row[k] for row in rows)]
    shown = [tuple(row[k] for k in kept) for row in rows]
    return table([_HEAD[k] for k in kept], shown, caption="Top-1 accuracy", class_="numbers")


_HEAD = (
    *("network", "weights", "test set", "top-1 %", "95 % interval", "images"),
    *("to the first network", "p", "mCE %", "relative mCE %"),
)


def _paired(one: NetworkRobustness) -> tuple[str, str]:
    if one.paired is None:
        return "", ""
    return _difference((one.paired.difference, one.paired.low, one.paired.high)), f"{one.paired.p:.2g}"


def _difference(paired: tuple[float, float, float] | None) -> str:
    if paired is None:
        return ""
    value, low, high = paired
    interval = "" if np.isnan(low) else f" ({low:+.2f} to {high:+.2f})"
    return _signed(f"{value:+.2f}{interval}")


def _signed(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")


def _charts(found: Sequence[NetworkRobustness]) -> Markup:
    names = list(dict.fromkeys(name for one in found for name, _ in one.by_corruption))
    drawn = []
    for i, name in enumerate(names):
        curves = [_curve(one, name) for one in found]
        chart = curve_chart(
            f"corruption{i}", f"accuracy under {name}", curves, x_name="severity (0: unchanged)", y_name="top-1, %",
            y_range=(0.0, 100.0), size=(360, 250), named=False,
        )  # fmt: skip
        drawn.append(figure(chart, name.replace("_", " ")))
    return panels(drawn)


def _curve(one: NetworkRobustness, name: str) -> Curve:
    known = {severity: accuracy for (own, severity), accuracy in one.by_corruption.items() if own == name}
    if one.plain is not None:
        known = {0: one.plain, **known}
    severities = sorted(known)
    ends = np.array([known[s].interval for s in severities])
    values = np.array([known[s].top1 for s in severities])
    return Curve(f"{one.name}, {one.weights}", np.array(severities, float), values, ends[:, 0], ends[:, 1])


def _by_corruption(found: Sequence[NetworkRobustness]) -> Markup:
    measured = any(one.errors and one.errors.ce for one in found)
    rows = []
    for one in found:
        for name in dict.fromkeys(name for name, _ in one.by_corruption):
            own = [accuracy.top1 for (known, _), accuracy in one.by_corruption.items() if known == name]
            ce = one.errors.ce.get(name) if one.errors else None
            cells = (f"{np.mean(own):.2f}", *(("" if ce is None else f"{ce:.2f}",) if measured else ()))
            rows.append((one.name, one.weights, name.replace("_", " "), *cells))
    head = ("network", "weights", "corruption", "mean top-1 %", *(("CE %",) if measured else ()))
    return table(head, rows, caption="Means over severities", class_="numbers")


_REMARKS = (
    "Intervals are Wilson's, over images. They leave out the variation between seeds of a training.",
    "The difference to the first network and its interval are of the same images, and p is of McNemar's exact test, "
    "not adjusted for several networks. Another seed may change the order.",
    "mCE is the mean over fifteen corruptions of the network's error divided by AlexNet's, summed over severities "
    "(https://arxiv.org/abs/1903.12261). It is defined for the published images of ImageNet-C alone. In "
    "the relative mCE, the error of unchanged images is taken off each of these errors first.",
)
