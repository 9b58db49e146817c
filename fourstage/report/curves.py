"""Several lines in one chart, told apart by colour, dashes and names at their ends; with bands for intervals.

n points of a line; coordinates are SVG units from the top left.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fourstage.report.charts import Axis, ticks
from fourstage.report.colour_scales import SERIES
from fourstage.report.markup import Markup, tag
from fourstage.report.number_format import significant

DASHES = ("", "7 3", "2 3", "9 3 2 3")  # a line's dashes differ from its neighbours' in print without colours


@dataclass(frozen=True, slots=True)
class Curve:
    """One line, with an interval around each point where `low_n` and `high_n` are given."""

    name: str
    x_n: np.ndarray
    y_n: np.ndarray
    low_n: np.ndarray | None = None
    high_n: np.ndarray | None = None


def curve_chart(
    key: str,
    title: str,
    curves: Sequence[Curve],
    *,
    x_name: str,
    y_name: str,
    y_range: tuple[float, float] | None = None,
    size: tuple[int, int] = (520, 300),
    named: bool = True,
) -> Markup:
    """Draw curves over a common axis, with a legend below them.

    Args:
        key: prefix of the ids in the chart; unique in the page, letters and digits only.
        title: text for screen readers.
        y_range: of the vertical axis; None: that of the values. Give all charts of a quantity the same.
        named: whether the chart has a legend of its own; charts side by side may share one.
    """
    finite = [c.y_n[np.isfinite(c.y_n)] for c in curves]
    if not any(len(values) for values in finite):
        return tag("p", "No finite value was measured.", class_="nothing")
    x_all = np.concatenate([c.x_n for c in curves])
    low, high = y_range or _range(curves)
    x = Axis(float(x_all.min()), _above(float(x_all.min()), float(x_all.max())), 58, size[0] - 14, ())
    y = Axis(low, _above(low, high), size[1] - 52, 28, ())
    marks = [_curve(curve, i, x, y) for i, curve in enumerate(curves)]
    content = [tag("title", title, id=f"{key}-title"), *_frame(x, y, x_name, y_name), *marks]
    svg = tag(
        "svg", *content, class_="chart curves", viewBox=f"0 0 {size[0]} {size[1]}", role="img",
        aria_labelledby=f"{key}-title",
    )  # fmt: skip
    return tag(
        "div",
        svg,
        legend([curve.name for curve in curves]) if named and len(curves) > 1 else None,
        class_="with-legend",
    )


def legend(names: Sequence[str]) -> Markup:
    """Return the names of curves, each behind a sample of its line."""
    rows = []
    for i, name in enumerate(names):
        line = tag("line", x1=0, x2=26, y1=6, y2=6, stroke_dasharray=_dashes(i) or None)
        sample = tag("svg", tag("g", line, class_=f"curve s{i % SERIES}"), viewBox="0 0 26 12", width=26, height=12)
        rows.append(tag("li", sample, tag("span", name)))
    return tag("ul", *rows, class_="legend-of")


def _dashes(i: int) -> str:
    return DASHES[i % len(DASHES)]


def _above(low: float, high: float) -> float:
    return high if high > low else low + max(abs(low), 1.0) * 1e-3


def _range(curves: Sequence[Curve]) -> tuple[float, float]:
    values = [v[np.isfinite(v)] for c in curves for v in (c.y_n, c.low_n, c.high_n) if v is not None]
    every = np.concatenate(values)
    low, high = float(every.min()), float(every.max())
    room = 0.05 * (high - low) or max(abs(high), 1e-6) * 0.1
    return (0.0 if low >= 0 and low < 0.4 * high else low - room), high + room


def _frame(x: Axis, y: Axis, x_name: str, y_name: str) -> list[Markup]:
    out = []
    y_ticks = ticks(y.low, y.high, most=7)
    for value, place in zip(y_ticks, y.place(np.array(y_ticks)), strict=True):
        out.append(tag("line", class_="grid", x1=_n(x.start), x2=_n(x.end), y1=_n(place), y2=_n(place)))
        out.append(tag("text", significant(value), x=_n(x.start - 8), y=_n(place + 4), text_anchor="end"))
    x_ticks = ticks(x.low, x.high, most=9)
    for value, place in zip(x_ticks, x.place(np.array(x_ticks)), strict=True):
        out.append(tag("line", class_="tick", x1=_n(place), x2=_n(place), y1=_n(y.start), y2=_n(y.start + 4)))
        out.append(tag("text", significant(value), x=_n(place), y=_n(y.start + 19), text_anchor="middle"))
    out.append(tag("line", class_="axis", x1=_n(x.start), x2=_n(x.end), y1=_n(y.start), y2=_n(y.start)))
    out.append(tag("text", x_name, x=_n((x.start + x.end) / 2), y=_n(y.start + 40), text_anchor="middle"))
    out.append(tag("text", y_name, x=4, y=12, text_anchor="start"))
    return out


def _curve(curve: Curve, i: int, x: Axis, y: Axis) -> Markup:
    known_n = np.isfinite(curve.y_n)
    px_n = x.place(np.asarray(curve.x_n, float))
    drawn = []
    if curve.low_n is not None and curve.high_n is not None:
        drawn.append(_band(curve.low_n, curve.high_n, px_n, y))
    edges = np.flatnonzero(np.diff(np.concatenate([[0], known_n.astype(int), [0]])))
    py_n = y.place(np.clip(np.where(known_n, curve.y_n, y.low), y.low, y.high))
    pieces = []
    for begin, end in edges.reshape(-1, 2):
        points = [f"{_n(a)} {_n(b)}" for a, b in zip(px_n[begin:end], py_n[begin:end], strict=True)]
        pieces.append("M" + "L".join(points if len(points) > 1 else points * 2))
    drawn.append(tag("path", d="".join(pieces), stroke_dasharray=_dashes(i) or None))
    if known_n.sum() <= 24:
        drawn += [tag("circle", cx=_n(a), cy=_n(b), r=2.6) for a, b in zip(px_n[known_n], py_n[known_n], strict=True)]
    return tag("g", *drawn, class_=f"curve s{i % SERIES}")


def _band(low_n: np.ndarray, high_n: np.ndarray, px_n: np.ndarray, y: Axis) -> Markup | None:
    known_n = np.isfinite(low_n) & np.isfinite(high_n)
    if not known_n.any():
        return None
    up = zip(px_n[known_n], y.place(np.clip(high_n[known_n], y.low, y.high)), strict=True)
    down = zip(px_n[known_n][::-1], y.place(np.clip(low_n[known_n][::-1], y.low, y.high)), strict=True)
    points = [f"{_n(a)} {_n(b)}" for a, b in (*up, *down)]
    return tag("path", d=f"M{'L'.join(points)}Z", class_="band")


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
