"""Columns of a comparison that come from analyses: as tables, as values for files, and as figures.

A arms, S seeds, T maps, V settings of an invariance.
"""

import math
from collections.abc import Sequence

import numpy as np

from fourstage.analysis.comparison import Column, Comparison, Pictures
from fourstage.report.analyses.invariance import FAMILY_TITLES
from fourstage.report.analyses.layout import figure, panels
from fourstage.report.colour_scales import css
from fourstage.report.common import section
from fourstage.report.curves import Curve, curve_chart, legend
from fourstage.report.heat_maps import colour_bar, heat_map
from fourstage.report.markup import Markup, name, shortened, table, tag
from fourstage.report.number_format import NOTHING

CEILING = "cka_ceiling_"
WITH_REFERENCE = "cka_"
FORM = 0.2  # exponent of the maps that are drawn, which has no scale; VMamba's
CELL = 52  # side of a matrix's cell, SVG units
LETTER = 7.2  # upper bound of the width of a letter of a name
MOST_LETTERS = 16


def column_table(comparison: Comparison) -> tuple[list[str], list[list[str]]] | None:
    """Return the head and a row for each arm: receptive field and consistency; None where nothing was measured."""
    names = [column.key for column in comparison.arms[0].columns if _is_shown(column)]
    if not names:
        return None
    labels = [column.label for column in comparison.arms[0].columns if column.key in names]
    rows = [[arm.name, *(shown(column) for column in arm.columns if column.key in names)] for arm in comparison.arms]
    return ["arm", *labels], rows


def similarity_table(comparison: Comparison) -> tuple[list[str], list[list[str]]] | None:
    """Return the head and rows of CKA: each arm with the reference, and each with itself over other seeds."""
    reference = comparison.pairs[0].reference
    labels = [one.label for one in comparison.arms[0].columns if one.key.startswith(CEILING)]
    if not labels:
        return None
    rows = []
    for arm in comparison.arms:
        ceiling = [one for one in arm.columns if one.key.startswith(CEILING)]
        own = [one for one in arm.columns if one.key.startswith(WITH_REFERENCE) and one not in ceiling]
        if arm.name != reference:
            rows.append([f"{arm.name} with {reference}", *map(shown, own)])
        rows.append([f"{arm.name}, other seeds (ceiling)", *map(shown, ceiling)])
    return ["CKA", *labels], rows


def flat_columns(columns: Sequence[Column]) -> dict[str, float | None]:
    """Return the means and standard deviations of an arm's columns for a file."""
    out: dict[str, float | None] = {}
    for one in columns:
        out[one.key] = None if one.summary is None else one.summary.mean
        out[f"{one.key}_sd"] = None if one.summary is None else one.summary.sd
    return out


def shown(column: Column) -> str:
    """Return `24.5 ± 0.3`; the mean alone where there is no standard deviation."""
    if column.summary is None:
        return NOTHING
    mean = f"{column.summary.mean:.{column.digits}f}"
    spread = "" if math.isnan(column.summary.sd) else f" ± {column.summary.sd:.{column.digits}f}"
    return f"{mean}{spread}".replace("-", "\u2212")


def columns_section(comparison: Comparison) -> Markup | None:
    """Return the section of the page with tables and figures; None where no analysis was asked for."""
    if not comparison.remarks:
        return None
    pictures, notes = comparison.pictures, [tag("li", f"{text[0].upper()}{text[1:]}.") for text in comparison.remarks]
    content: list[Markup | None] = [_table(column_table(comparison), "Receptive field and invariance")]
    if pictures is not None:
        content += [*_fields(pictures), *_consistency(pictures)]
    if (similar := similarity_table(comparison)) is not None:
        content += [tag("h3", "Similarity of feature maps (CKA)"), _table(similar, "CKA by stage")]
    if pictures is not None:
        content += _similarity(pictures)
    return section("analyses", "What the networks do", *content, tag("ul", *notes, class_="notes quiet"))


def _is_shown(column: Column) -> bool:
    return column.key.startswith(("erf_", "consistency_"))


def _table(found: tuple[list[str], list[list[str]]] | None, caption: str) -> Markup | None:
    if found is None:
        return None
    head, rows = found
    return table(head, [[name(first), *rest] for first, *rest in rows], caption=caption, class_="numbers")


def _fields(pictures: Pictures) -> list[Markup]:
    """Draw the mean field of each arm, over its largest value, all in the same colours."""
    drawn = []
    for i, (arm, field) in enumerate(pictures.fields.items()):
        map_HW = (field.map_HW / field.map_HW.max()) ** FORM
        rows, columns = field.cells
        title = f"receptive field of {arm}"
        drawing = heat_map(f"field{i}", title, map_HW, low=0.0, high=1.0, points=[field.unit_centre])
        drawn.append(figure(drawing, arm, f"last map: {rows} x {columns} cells"))
    if not drawn:
        return []
    bar = colour_bar(0.0, 1.0, f"contribution A to the power of {FORM:g}, over its maximum")
    return [tag("h3", "Receptive field, mean over seeds"), Markup(panels(drawn) + bar)]


def _consistency(pictures: Pictures) -> list[Markup]:
    """Draw consistency by setting, one curve for each arm with its standard deviation over seeds."""
    drawn, arms = [], list[str]()
    for family, by_arm in pictures.consistency.items():
        arms = list(by_arm)
        curves = []
        for arm, one in by_arm.items():
            mean_V = one.values_SV.mean(axis=0)
            sd_V = one.values_SV.std(axis=0, ddof=1) if len(one.values_SV) > 1 else np.full(len(mean_V), np.nan)
            curves.append(Curve(arm, one.settings_V, mean_V, mean_V - sd_V, mean_V + sd_V))
        title, unit = FAMILY_TITLES[family]
        chart = curve_chart(
            f"consistency{family.replace('_', '')}", f"consistency by {title.lower()}", curves, x_name=unit,
            y_name="images with the standard view's class, %", y_range=(0.0, 100.0), named=False,
        )  # fmt: skip
        drawn.append(figure(chart, title))
    if not drawn:
        return []
    heading = tag("h3", "Consistency of predictions; bands are ± one standard deviation over seeds")
    return [heading, panels(drawn, wide=True), legend(arms)]


def _similarity(pictures: Pictures) -> list[Markup]:
    if not pictures.similar:
        return []
    drawn = [
        figure(_matrix(f"similar{i}", pictures.similar, cka_AA, i + 1), f"Stage {i + 1}")
        for i, cka_AA in enumerate(pictures.similarity_TAA)
    ]
    words = tag(
        "p", "Rows and columns are arms. The diagonal is the ceiling: one arm with other seeds.", class_="quiet"
    )
    return [words, Markup(panels(drawn) + colour_bar(0.0, 1.0, "CKA"))]


def _matrix(key: str, arms: Sequence[str], cka_AA: np.ndarray, stage: int) -> Markup:
    short = shortened(arms, MOST_LETTERS)
    left = 10 + LETTER * max(map(len, short))
    top = 12 + 0.87 * LETTER * max(map(len, short))  # names above the columns are turned by 60 degrees
    content = [tag("title", f"CKA between arms, stage {stage}", id=f"{key}-title")]
    for i, one in enumerate(short):
        middle = top + (i + 0.5) * CELL + 4
        content.append(
            tag("text", tag("title", arms[i]), one, x=f"{left - 6:.0f}", y=f"{middle:.0f}", text_anchor="end")
        )
        x, y = left + (i + 0.5) * CELL + 4, top - 6
        turn = f"rotate(-60 {x:.0f} {y:.0f})"
        content.append(tag("text", tag("title", arms[i]), one, x=f"{x:.0f}", y=f"{y:.0f}", transform=turn))
    for i, a in enumerate(arms):
        for j, b in enumerate(arms):
            words = f"{a} and {b}" if i != j else f"{a}, other seeds"
            content += _cell(left + j * CELL, top + i * CELL, float(cka_AA[i, j]), words)
    width, height = left + CELL * len(arms) + 40, top + CELL * len(arms) + 4
    return tag(
        "svg", *content, class_="chart heat", viewBox=f"0 0 {width:.0f} {height:.0f}", role="img",
        aria_labelledby=f"{key}-title",
    )  # fmt: skip


def _cell(x: float, y: float, value: float, words: str) -> list[Markup]:
    fill, ink = css(value, 0.0, 1.0)
    text = NOTHING if math.isnan(value) else f"{value:.2f}".replace("-", "\u2212")
    hint = tag("title", f"{words}: {text}")
    place = {"x": f"{x + CELL / 2:.0f}", "y": f"{y + CELL / 2 + 4:.0f}"}
    return [
        tag("rect", hint, x=f"{x:.0f}", y=f"{y:.0f}", width=CELL, height=CELL, fill=fill),
        tag("text", text, **place, text_anchor="middle", style=f"fill: {ink}"),
    ]
