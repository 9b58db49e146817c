"""Charts of a comparison: the metric of each run, and differences with their intervals. Coordinates as in `charts`."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fourstage.analysis.comparison import Comparison
from fourstage.report.charts import Axis, ticks
from fourstage.report.markup import Markup, shortened, tag
from fourstage.report.number_format import signed, significant

WIDTH = 620
ROW = 58  # height of one arm or pair
LETTER = 9.6  # upper bound of the width of a letter of a name, at the size that phones have
MOST_LETTERS = 18


@dataclass(frozen=True)
class Bar:
    """A horizontal interval with its centre, and what it is, for the tooltip."""

    low: float
    high: float
    middle: float
    words: str
    look: str  # class: "accent", or "quiet" for one that decides nothing
    offset: float = 0.0  # from the middle of the row


def metric_chart(comparison: Comparison) -> Markup:
    """Draw each run as a dot, and each arm's mean with its interval."""
    bars, dots = [], []
    for arm in comparison.arms:
        mean = arm.summary
        known = np.isfinite(mean.low)
        interval = f", 95 % interval {mean.low:.2f} to {mean.high:.2f}" if known else ", one seed gives no interval"
        words = f"{arm.name}: mean {mean.mean:.2f}{interval}"
        bars.append(
            [Bar(mean.low if known else mean.mean, mean.high if known else mean.mean, mean.mean, words, "accent", 9)]
        )
        dots.append(
            [(value, f"seed {seed}: {value:.2f}") for seed, value in zip(comparison.seeds, arm.values, strict=True)]
        )
    return _chart("metric", comparison.label, [arm.name for arm in comparison.arms], bars, dots, zero=False)


def difference_chart(comparison: Comparison) -> Markup:
    """Draw each mean difference with its intervals, from top to bottom over seeds, over images, and over both."""
    rows = []
    for row in comparison.pairs:
        mean = row.pair.difference
        kinds = (("seeds", mean), ("images", row.pair.over_images), ("both", row.pair.together))
        known = [(word, one) for word, one in kinds if one is not None and np.isfinite(one.low)]
        step = 13
        rows.append(
            [
                Bar(one.low, one.high, mean.mean, f"over {word}: {signed(one.low)} to {signed(one.high)}",
                    "accent" if word == "both" else "quiet", step * (i - (len(known) - 1) / 2))
                for i, (word, one) in enumerate(known)
            ]
        )  # fmt: skip
    names = [row.arm for row in comparison.pairs]
    if not any(rows):
        return tag("p", "One seed gives no interval.", class_="nothing")
    return _chart(
        "difference", f"difference to {comparison.pairs[0].reference}", names, rows, [[]] * len(rows), zero=True
    )


def _chart(
    key: str,
    title: str,
    names: Sequence[str],
    bars: Sequence[Sequence[Bar]],
    dots: Sequence[Sequence[tuple[float, str]]],
    *,
    zero: bool,
) -> Markup:
    shown = shortened(names, MOST_LETTERS)
    start = 14 + LETTER * max(map(len, shown))
    values = [value for row in bars for bar in row for value in (bar.low, bar.high)]
    values += [value for row in dots for value, _ in row] + ([0.0] if zero else [])
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 0.5
    x = Axis(low - room, high + room, start, WIDTH - 14, ticks(low - room, high + room, most=6))
    bottom = ROW * len(names) + 6
    content = [tag("title", title, id=f"{key}-title"), tag("desc", _words(names, bars), id=f"{key}-desc")]
    for value, place in zip(x.ticks, x.place(np.array(x.ticks, float)), strict=True):
        content.append(
            tag("line", class_="axis" if zero and value == 0 else "grid", x1=_n(place), x2=_n(place), y1=4, y2=bottom)
        )
        content.append(
            tag("text", significant(value).replace("-", "\u2212"), x=_n(place), y=bottom + 18, text_anchor="middle")
        )
    for i, (name, full) in enumerate(zip(shown, names, strict=True)):
        middle = ROW * (i + 0.5)
        content.append(
            tag("text", tag("title", full), name, x=_n(start - 12), y=_n(middle + 4), text_anchor="end", class_="label")
        )
        for value, words in dots[i]:
            content.append(_dot(x, value, middle - 9, words))
        content += [_bar(x, bar, middle) for bar in bars[i]]
    content.append(tag("text", title, x=_n((start + WIDTH - 14) / 2), y=bottom + 38, text_anchor="middle"))
    return tag(
        "svg", *content, class_="chart arms-chart", viewBox=f"0 0 {WIDTH} {bottom + 46}", role="img",
        aria_labelledby=f"{key}-title", aria_describedby=f"{key}-desc",
    )  # fmt: skip


def _bar(x: Axis, bar: Bar, middle: float) -> Markup:
    low, high, centre = x.place(np.array([bar.low, bar.high, bar.middle]))
    y = middle + bar.offset
    ends = [tag("line", x1=_n(end), x2=_n(end), y1=_n(y - 4), y2=_n(y + 4)) for end in (low, high)]
    line = tag("line", x1=_n(low), x2=_n(high), y1=_n(y), y2=_n(y))
    mark = tag("line", class_="mean", x1=_n(centre), x2=_n(centre), y1=_n(y - 6), y2=_n(y + 6))
    return tag("g", tag("title", bar.words), line, *ends, mark, class_=f"whisker {bar.look}")


def _dot(x: Axis, value: float, y: float, words: str) -> Markup:
    [place] = x.place(np.array([value]))
    return tag("g", tag("title", words), tag("circle", cx=_n(place), cy=_n(y), r=4), class_="seed-dot")


def _words(names: Sequence[str], bars: Sequence[Sequence[Bar]]) -> str:
    return "; ".join(f"{name}: {', '.join(bar.words for bar in row)}" for name, row in zip(names, bars, strict=True))


def _n(value: float) -> str:
    return f"{value:.1f}"
