"""Charts as inline SVG. Colours and fonts come from the page's style, which has a light and a dark theme.

n points; coordinates are SVG units from the top left, about one to a screen pixel.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fourstage.report.markup import Markup, tag
from fourstage.report.number_format import significant

LARGEST = 1e30  # larger values are treated as infinite, because axes would overflow
MAX_DOTS = 12  # a line of up to 12 points also has dots
MAX_POINTS = 600  # a longer line is thinned to about this number; extremes are kept
HUES = 6  # colours of lines that are compared, and as many dashes; the style has both
LETTER = 8.6  # upper bound of the width of a label's letter


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a chart. A value that is not finite leaves a gap.

    Attributes:
        look: "accent", "quiet", or "raw", a faint line below the smoothed one, without a label; or `compared_look`.
    """

    name: str
    x_n: np.ndarray
    y_n: np.ndarray
    look: str = "accent"


@dataclass(frozen=True, slots=True)
class Axis:
    """A range of values and the range of pixels that shows it."""

    low: float
    high: float
    start: float  # pixel of `low`
    end: float  # pixel of `high`
    ticks: tuple[float, ...]
    log: bool = False

    def place(self, values_n: np.ndarray) -> np.ndarray:
        """Return the pixels of the values."""
        low, high = (math.log10(self.low), math.log10(self.high)) if self.log else (self.low, self.high)
        values_n = np.log10(values_n) if self.log else values_n
        return self.start + (values_n - low) / (high - low) * (self.end - self.start)


def compared_look(place: int) -> str:
    """Return the look of a line among several: a colour and a dash, so that it is also distinct in print."""
    return f"hue-{place % HUES} dash-{(place + place // HUES) % HUES}"


def legend(entries: Sequence[tuple[str, object]]) -> Markup:
    """Return a list of looks and what they mean."""
    items = []
    for look, meaning in entries:
        stroke = tag("g", tag("path", d="M1 6L43 6"), class_=f"line {look}")
        swatch = tag("svg", stroke, class_="swatch", viewBox="0 0 44 12", aria_hidden="true")
        items.append(tag("li", swatch, tag("span", meaning)))
    return tag("ul", *items, class_="legend-lines")


def line_chart(
    key: str,
    title: str,
    series: Sequence[Series],
    *,
    size: tuple[int, int] = (440, 260),
    percent: bool = False,
    from_zero: bool = False,
    x_name: str = "epoch",
    labelled: bool = True,
) -> Markup:
    """Draw lines over epochs with their last values at their ends.

    Args:
        key: prefix of the ids in the chart; unique in the page, letters only.
        title: text for screen readers.
        size: (width, height) of the view box.
        percent: limit the value axis to 100.
        from_zero: begin the value axis at zero, unless it is logarithmic.
        x_name: what is on the horizontal axis.
        labelled: write the lines' names and last values at their ends; else a `legend` belongs to the chart.

    Returns:
        An <svg>, or a sentence where no value is finite.
    """
    known = [_drawable(line) for line in series]
    if not any(len(line.x_n[np.isfinite(line.y_n)]) for line in known):
        return tag("p", "No finite value was logged.", class_="nothing")
    ends = [line for line in known if line.look != "raw"] if labelled else []
    x, y = _axes(known, ends, size, percent, from_zero)
    labels = _end_labels(ends, x, y, percent)
    content = [
        tag("title", title, id=f"{key}-title"),
        tag("desc", _summary(known), id=f"{key}-desc"),
        *_grid(x, y, x_name),
        *(_line(line, x, y) for line in sorted(known, key=lambda line: {"raw": 0, "quiet": 1}.get(line.look, 2))),
        *labels,
    ]
    hover = [_hover(line, x, y) for line in known if line.look != "raw"]
    return tag(
        "svg", *content, class_="chart", viewBox=f"0 0 {size[0]} {size[1]}", role="img",
        aria_labelledby=f"{key}-title", aria_describedby=f"{key}-desc", data_lines=json.dumps(hover),
        data_top=y.end, data_bottom=y.start, data_x_name=x_name,
    )  # fmt: skip


def bar_chart(
    key: str,
    title: str,
    edges: np.ndarray,
    times_n: np.ndarray,
    *,
    size: tuple[int, int] = (620, 230),
    x_name: str,
    of: str,
) -> Markup:
    """Draw a histogram.

    Args:
        key, title, size: as in `line_chart`.
        edges: (n + 1) rising edges of the bins. A value on an edge belongs to the bin on its right, a value on the
            last edge to the last bin.
        times_n: counts of the bins.
        x_name: title of the horizontal axis.
        of: plural of the counted objects, such as `classes`.
    """
    y_high = max(int(times_n.max(initial=0)), 1)
    x = Axis(float(edges[0]), float(edges[-1]), 48, size[0] - 12, ticks(float(edges[0]), float(edges[-1]), most=11))
    whole_ticks = tuple(value for value in ticks(0.0, float(y_high), most=5) if value == int(value))
    y = Axis(0.0, 1.04 * y_high, size[1] - 48, 14, whole_ticks)
    left_n, right_n = x.place(edges[:-1].astype(float)), x.place(edges[1:].astype(float))
    tops_n = y.place(times_n.astype(float))
    bars = [
        tag(
            "rect", tag("title", f"{significant(low)} to {significant(high)}: {int(n):,} {of}"),
            x=_n(a + 1), width=_n(b - a - 2), y=_n(top), height=_n(y.start - top), rx=2,
        )
        for a, b, top, low, high, n in zip(left_n, right_n, tops_n, edges[:-1], edges[1:], times_n, strict=True)
        if n
    ]  # fmt: skip
    peak = int(times_n.argmax())
    summary = (
        f"Most {of}, {int(times_n[peak]):,} of {int(times_n.sum()):,}, are from {edges[peak]} to {edges[peak + 1]}."
    )
    content = [
        tag("title", title, id=f"{key}-title"),
        tag("desc", summary, id=f"{key}-desc"),
        *_grid(x, y, ""),
        tag("text", x_name, x=_n((x.start + x.end) / 2), y=_n(y.start + 40), text_anchor="middle"),
        tag("g", *bars, class_="filled"),
    ]
    return tag(
        "svg", *content, class_="chart bar-chart", viewBox=f"0 0 {size[0]} {size[1]}", role="img",
        aria_labelledby=f"{key}-title", aria_describedby=f"{key}-desc",
    )  # fmt: skip


def sparkline(title: str, y_n: np.ndarray, *, size: tuple[int, int] = (140, 22)) -> Markup:
    """Draw a small line for a sentence, from zero to its maximum. Without a finite value the result is empty."""
    line = _drawable(Series(title, np.arange(len(y_n), dtype=float), y_n))
    finite_n = line.y_n[np.isfinite(line.y_n)]
    if not len(finite_n):
        return Markup()
    x = Axis(0, max(len(y_n) - 1, 1), 2, size[0] - 2, ())
    y = Axis(min(0.0, finite_n.min()), max(finite_n.max(), finite_n.min() + 1e-6, 1e-6), size[1] - 2, 2, ())
    return tag(
        "svg", tag("title", title), _line(line, x, y), class_="spark", viewBox=f"0 0 {size[0]} {size[1]}", role="img"
    )


def smooth(y_n: np.ndarray, spread: float = 1 / 40) -> np.ndarray:
    """Return a centred Gaussian mean whose width is a share of all points; values that are not finite are left out.

    The result is NaN where a value is not finite, so that the smoothed line has the same gaps.
    """
    sigma = len(y_n) * spread
    if sigma < 0.6:
        return y_n
    offsets = np.arange(-math.ceil(3 * sigma), math.ceil(3 * sigma) + 1)
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2)
    known_n = np.isfinite(y_n) & (np.abs(y_n) < LARGEST)
    half = len(offsets) // 2
    total_n = np.convolve(np.where(known_n, y_n, 0), kernel)[half : half + len(y_n)]
    weight_n = np.convolve(known_n.astype(float), kernel)[half : half + len(y_n)]
    return np.where(known_n, total_n / np.maximum(weight_n, 1e-12), np.nan)


def ticks(low: float, high: float, most: int = 6) -> tuple[float, ...]:
    """Return the multiples in [low, high] of 1, 2 or 5 times a power of ten, with the smallest step of at most `most`.

    With `most` of five or more there are at least two ticks.
    """
    exponent = math.floor(math.log10((high - low) / most))
    for step in (m * 10.0**e for e in (exponent, exponent + 1) for m in (1, 2, 5)):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first + 1 <= most:
            return tuple(float(f"{i * step:.12g}") for i in range(first, last + 1))
    raise AssertionError("a step of ten times the first always fits")


def _drawable(line: Series) -> Series:
    """Return the line as floats in the order of x, with NaN for values that cannot be drawn."""
    x_n, y_n = np.asarray(line.x_n, float), np.asarray(line.y_n, float).copy()
    usable_n = np.isfinite(x_n) & (np.abs(np.nan_to_num(x_n)) < LARGEST)
    x_n, y_n = x_n[usable_n], y_n[usable_n]
    order_n = np.argsort(x_n, kind="stable")
    y_n[~(np.abs(y_n) < LARGEST)] = np.nan
    return replace(line, x_n=x_n[order_n], y_n=y_n[order_n])


def _axes(
    lines: Sequence[Series], labelled: Sequence[Series], size: tuple[int, int], percent: bool, from_zero: bool
) -> tuple[Axis, Axis]:
    longest = max((len(_label(line, len(labelled) > 1, percent)) for line in labelled), default=0)
    right, bottom = size[0] - max(12 + LETTER * longest, 24), size[1] - 32
    x_n = np.concatenate([line.x_n for line in lines])
    x_low, x_high = _widened(min(0.0, x_n.min()), x_n.max())
    x = Axis(x_low, x_high, 48, right, ticks(x_low, x_high))
    y_n = np.concatenate([line.y_n[np.isfinite(line.y_n)] for line in lines])
    if _spread_over_decades(y_n):
        return x, _log_axis(y_n.min(), y_n.max(), bottom, 14)
    low, high = (min(0.0, y_n.min()), max(0.0, y_n.max())) if from_zero else (y_n.min(), y_n.max())
    low, high = _widened(low, high)
    y_ticks = ticks(low, high, most=5)
    step = y_ticks[1] - y_ticks[0] if len(y_ticks) > 1 else high - low
    low = min(low, math.floor(low / step + 1e-9) * step)  # the axis begins on a tick
    if percent and high <= 100:
        high = max(high, min(100.0, math.ceil(high / step - 1e-9) * step))
    else:
        high += 0.04 * (high - low)
    return x, Axis(low, high, bottom, 14, ticks(low, high, most=7))


def _widened(low: float, high: float) -> tuple[float, float]:
    """Return a range of positive width. A single value gets room below it, down to zero at most."""
    if high - low > 1e-9 * max(abs(low), abs(high), 1e-15):
        return float(low), float(high)
    room = max(abs(high) * 0.1, 1e-6)
    return float(low - room), float(high + (0 if high else room))


def _spread_over_decades(y_n: np.ndarray) -> bool:
    """Return whether a few values are so large that a linear axis would show all others at zero."""
    return len(y_n) > 3 and y_n.min() > 1 / LARGEST and y_n.max() > 50 * np.median(y_n)


def _log_axis(low: float, high: float, start: float, end: float) -> Axis:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high) + 1e-9)
    first = min(first, last - 1)
    step = max(1, math.ceil((last - first) / 5))
    return Axis(10.0**first, 10.0**last, start, end, tuple(10.0**e for e in range(first, last + 1, step)), log=True)


def _grid(x: Axis, y: Axis, x_name: str) -> list[Markup]:
    lines = []
    for value, place in zip(y.ticks, y.place(np.array(y.ticks, float)), strict=True):
        lines.append(tag("line", class_="grid", x1=_n(x.start), x2=_n(x.end), y1=_n(place), y2=_n(place)))
        lines.append(tag("text", significant(value), x=_n(x.start - 8), y=_n(place + 4), text_anchor="end"))
    for value, place in zip(x.ticks, x.place(np.array(x.ticks, float)), strict=True):
        lines.append(tag("line", class_="tick", x1=_n(place), x2=_n(place), y1=_n(y.start), y2=_n(y.start + 4)))
        lines.append(tag("text", significant(value), x=_n(place), y=_n(y.start + 20), text_anchor="middle"))
    lines.append(tag("line", class_="axis", x1=_n(x.start), x2=_n(x.end), y1=_n(y.start), y2=_n(y.start)))
    if x_name:
        lines.append(tag("text", x_name, x=_n(x.start - 12), y=_n(y.start + 20), text_anchor="end"))
    return lines


def _line(line: Series, x: Axis, y: Axis) -> Markup:
    """Draw a path with gaps, and dots where the line has few points or a point has no neighbour."""
    x_n, y_n = _thinned(line.x_n, line.y_n)
    known_n = np.isfinite(y_n)
    px_n, py_n = x.place(x_n), np.full(len(y_n), np.nan)
    py_n[known_n] = y.place(y_n[known_n])
    edges = np.flatnonzero(np.diff(np.concatenate([[0], known_n.astype(int), [0]])))
    pieces, dots = [], []
    for begin, end in edges.reshape(-1, 2):
        points = [f"{_n(a)} {_n(b)}" for a, b in zip(px_n[begin:end], py_n[begin:end], strict=True)]
        if len(points) > 1:
            pieces.append("M" + "L".join(points))
        if len(points) == 1 or known_n.sum() <= MAX_DOTS:
            dots += zip(px_n[begin:end], py_n[begin:end], strict=True)
    drawn = [tag("path", d="".join(pieces))] if pieces else []
    drawn += [tag("circle", cx=_n(a), cy=_n(b), r=3) for a, b in dots]
    return tag("g", *drawn, class_=f"line {line.look}")


def _thinned(x_n: np.ndarray, y_n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the lowest and the highest point of each stretch, and its first value that is not finite: gaps stay."""
    if len(x_n) <= MAX_POINTS:
        return x_n, y_n
    kept: set[int] = {0, len(x_n) - 1}
    for stretch in np.array_split(np.arange(len(x_n)), MAX_POINTS // 2):
        finite = stretch[np.isfinite(y_n[stretch])]
        kept.update(int(i) for i in stretch[~np.isfinite(y_n[stretch])][:1])
        if len(finite):
            kept.update((int(finite[y_n[finite].argmin()]), int(finite[y_n[finite].argmax()])))
    order = sorted(kept)
    return x_n[order], y_n[order]


def _label(line: Series, named: bool, percent: bool) -> str:
    last = _last(line)[1]
    if percent:
        value = f"{last:.1f}"
    else:
        value = (
            f"{last:#.3g}".removesuffix(".") if 1 <= abs(last) < 1000 else significant(last, 2 if abs(last) < 1 else 4)
        )
    return f"{line.name} {value}" if named else value


def _last(line: Series) -> tuple[float, float]:
    known = np.flatnonzero(np.isfinite(line.y_n))
    return (float(line.x_n[known[-1]]), float(line.y_n[known[-1]])) if len(known) else (math.nan, math.nan)


def _end_labels(lines: Sequence[Series], x: Axis, y: Axis, percent: bool) -> list[Markup]:
    """Write names and last values right of the lines' ends, moved apart where they would overlap."""
    ends = [(*_last(line), line) for line in lines]
    ends = [(at, float(y.place(np.array([value]))[0]), line) for at, value, line in ends if math.isfinite(value)]
    ends.sort(key=lambda end: end[1])
    heights = _spread_apart([height for _, height, _ in ends], y.end, y.start, 17)
    labels = []
    for (at, _, line), height in zip(ends, heights, strict=True):
        place = float(x.place(np.array([at]))[0]) + 8
        text = _label(line, len(lines) > 1, percent)
        labels.append(tag("text", text, x=_n(place), y=_n(height + 4), class_=f"label {line.look}"))
    return labels


def _spread_apart(heights: Sequence[float], top: float, bottom: float, gap: float) -> list[float]:
    """Return rising heights that are at least `gap` apart and not below `bottom`, moved as little as possible."""
    out = [max(height, top) for height in heights]
    for i in range(1, len(out)):
        out[i] = max(out[i], out[i - 1] + gap)
    limit = bottom
    for i in reversed(range(len(out))):
        out[i] = min(out[i], limit)
        limit = out[i] - gap
    return out


def _summary(lines: Sequence[Series]) -> str:
    """Return a summary of the lines for screen readers."""
    sentences = []
    for line in lines:
        known = line.y_n[np.isfinite(line.y_n)]
        if line.look != "raw" and len(known):
            first, last, low, high = (significant(float(v), 3) for v in (known[0], known[-1], known.min(), known.max()))
            sentences.append(f"{line.name}: from {first} to {last}; lowest {low}, highest {high}; {len(known)} points.")
    return " ".join(sentences)


def _hover(line: Series, x: Axis, y: Axis) -> dict[str, object]:
    """Return the points for the script: their pixels and the text to show under the pointer."""
    x_n, y_n = _thinned(line.x_n, line.y_n)
    x_n, y_n = x_n[np.isfinite(y_n)], y_n[np.isfinite(y_n)]
    places = zip(x.place(x_n), y.place(y_n) if len(y_n) else y_n, x_n, y_n, strict=True)
    points = [[float(_n(a)), float(_n(b)), significant(e, 4), significant(v, 4)] for a, b, e, v in places]
    return {"name": line.name, "look": line.look, "points": points}


def _n(value: float) -> str:
    """Format a coordinate to a tenth of a pixel."""
    return f"{value:.1f}".removesuffix(".0")
