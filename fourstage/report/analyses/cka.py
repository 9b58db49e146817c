"""The page of CKA tables. A and B feature maps of two networks."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fourstage.analysis.cka import Cka
from fourstage.report.analyses.layout import analysis_page, figure, notes, panels, section
from fourstage.report.colour_scales import css
from fourstage.report.heat_maps import colour_bar
from fourstage.report.markup import Markup, table, tag

CELL, TOP, LEFT = 46, 72, 84  # of a matrix, SVG units
NUMBERED = 9  # maps; a larger matrix has no numbers in its cells
ROLES = {
    "itself": "the network with itself",
    "ceiling": "ceiling: the same network with another seed",
    "other": "two networks",
}


@dataclass(frozen=True)
class Pair:
    """The similarity of two networks; `role` is "itself", "ceiling" or "other"."""

    name_a: str
    weights_a: str
    name_b: str
    weights_b: str
    role: str
    cka: Cka


def cka_page(pairs: Sequence[Pair], images: str, warnings: Sequence[str]) -> str:
    """Return the page: one matrix for each pair, all in the same colours, and the table with intervals."""
    found = pairs[0].cka
    drawn = [figure(_matrix(f"matrix{i}", pair), _title(pair), ROLES[pair.role]) for i, pair in enumerate(pairs)]
    pooling = {"flatten": "maps compared position by position", "gap": "means of maps over positions"}[found.pooling]
    return analysis_page(
        "Similarity of feature maps (CKA)",
        f"Linear CKA, {found.estimator} estimator, {pooling}; {images}.",
        [
            section(
                "Matrices",
                *(tag("p", sentence, class_="warn") for sentence in warnings),
                Markup(panels(drawn, wide=max(found.value_AB.shape) > NUMBERED) + colour_bar(0.0, 1.0, "CKA")),
            ),
            section("Numbers", _table(pairs)),
            section("How to read this", notes(_REMARKS)),
        ],
    )


def _title(pair: Pair) -> str:
    return f"{pair.name_a} ({pair.weights_a}) and {pair.name_b} ({pair.weights_b})"


def _matrix(key: str, pair: Pair) -> Markup:
    """Draw a matrix: rows are the maps of the first network, from the image on, and columns those of the second."""
    found = pair.cka
    rows, columns = found.value_AB.shape
    side = CELL if max(rows, columns) <= NUMBERED else max(9, 420 // max(rows, columns))
    content = [tag("title", f"CKA of {_title(pair)}", id=f"{key}-title")]
    for i in range(rows):
        for j in range(columns):
            content += _cell(found, i, j, side)
    every = 1 if side >= 14 else -(-14 // side)
    for i in range(0, rows, every):
        y = TOP + (i + 0.5) * side + 4
        content.append(tag("text", _short(found.taps_a[i]), x=LEFT - 6, y=f"{y:.0f}", text_anchor="end"))
    for j in range(0, columns, every):
        x = LEFT + (j + 0.5) * side + 4
        turn = f"rotate(-60 {x:.0f} {TOP - 6})"
        content.append(tag("text", _short(found.taps_b[j]), x=f"{x:.0f}", y=TOP - 6, transform=turn))
    middle = TOP + rows * side / 2
    turned = f"rotate(-90 12 {middle:.0f})"
    content.append(tag("text", pair.name_a, x=12, y=f"{middle:.0f}", text_anchor="middle", transform=turned))
    content.append(tag("text", pair.name_b, x=f"{LEFT + columns * side / 2:.0f}", y=12, text_anchor="middle"))
    size = f"0 0 {LEFT + columns * side + 40} {TOP + rows * side + 6}"
    return tag("svg", *content, class_="chart heat", viewBox=size, role="img", aria_labelledby=f"{key}-title")


def _cell(found: Cka, i: int, j: int, side: int) -> list[Markup]:
    value = found.value_AB[i, j]
    fill, ink = css(float(value), 0.0, 1.0)
    x, y = LEFT + j * side, TOP + i * side
    text = "undefined" if np.isnan(value) else f"{value:.3f}"
    hint = tag("title", f"{found.taps_a[i]} and {found.taps_b[j]}: {text}")
    cells = [tag("rect", hint, x=x, y=y, width=side, height=side, fill=fill)]
    if side == CELL and not np.isnan(value):
        style = f"fill: {ink}"
        middle = {"x": f"{x + side / 2:.0f}", "y": f"{y + side / 2 + 4:.0f}"}
        cells.append(tag("text", f"{value:.2f}", **middle, text_anchor="middle", style=style))
    return cells


def _short(tap: str) -> str:
    """Return the end of a layer's name; the complete name is in the table."""
    tap = tap.removeprefix("model.").removeprefix("backbone.").replace("blocks.", "").replace("stages_", "stages.")
    return tap.replace("stages.", "") if "stages." in tap else tap


def _table(pairs: Sequence[Pair]) -> Markup:
    rows = []
    for pair in pairs:
        found = pair.cka
        if max(found.value_AB.shape) > NUMBERED:
            continue
        for i, tap in enumerate(found.taps_a):
            cells = [_with_interval(found, i, j) for j in range(len(found.taps_b))]
            rows.append((f"{pair.name_a}, {pair.name_b}", tap, *cells))
    if not rows:
        return tag("p", "The CSV file has the numbers of all pairs of layers.", class_="nothing")
    width = max(len(row) for row in rows)
    filled = [(*row, *[""] * (width - len(row))) for row in rows]
    head = ("networks", "map", *(f"map {i + 1}" for i in range(width - 2)))
    return table(
        head, filled, caption="CKA with 95 % intervals; columns are maps of the second network", class_="numbers"
    )


def _with_interval(found: Cka, i: int, j: int) -> str:
    value, low, high = found.value_AB[i, j], found.low_AB[i, j], found.high_AB[i, j]
    if np.isnan(value):
        return "–"
    return f"{value:.3f}" if np.isnan(low) else f"{value:.3f} [{low:.2f}, {high:.2f}]"


_REMARKS = (
    "1 means that both maps represent the same differences between images, up to a rotation of their features and a "
    "scale factor; 0 means that they share nothing (https://arxiv.org/abs/1905.00414).",
    "Compare with the ceiling: two trainings of the same network with other seeds are rarely at 1.",
    "The unbiased estimator may be slightly negative. The biased one tends to 1 where maps have more features than "
    "there are images, also for unrelated networks.",
    "Intervals are 95 % by the jackknife over images. They leave out the variation between seeds of a training.",
    "A low value does not prove that two networks differ: a few directions of large variance dominate CKA "
    "(https://arxiv.org/abs/2210.16156).",
)
