"""Sections for detection: precision over recall, how each class fares, and objects over images."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fourstage.report.charts import Series, line_chart
from fourstage.report.classes import bar, left_out, worst_first
from fourstage.report.common import figure, no_predictions, section
from fourstage.report.inline import inline
from fourstage.report.markup import Markup, join, name, table, tag
from fourstage.report.read import Drawn, Run
from fourstage.report.words import NOTHING, percent, plural

CLASSES = 40  # rows before the rest is folded
LISTED = 6  # mistakes of each kind that a card names
WIDE = 900  # pixels, of the picture of truth and prediction
KINDS = {"box": "boxes", "mask": "masks"}


def precision_recall(run: Run) -> Markup | None:
    """A chart each for boxes and masks."""
    curves: Mapping[str, Any] = run.evaluation.tables.get("curves", {}) if run.evaluation else {}
    charts = [_chart(kind, curves[kind]) for kind in KINDS if kind in curves]
    if not charts:
        return None
    note = tag(
        "p",
        "Of what is found, the share that is right, as more and more of what is there is found. An object is found "
        "where intersection over union reaches the threshold.",
        class_="quiet",
    )
    return section("precision", "Precision over recall", note, tag("div", *charts, class_="charts large"))


def _chart(kind: str, curves: Mapping[str, Any]) -> Markup:
    recall_n = 100 * np.asarray(curves["recall"], dtype=np.float64)
    looks = {"0.50": "accent", "0.75": "quiet", "0.50:0.95": "quiet"}
    lines = [
        Series(threshold, recall_n, 100 * np.asarray(curves["mean"][threshold], dtype=np.float64), look)  # pyright: ignore[reportArgumentType]
        for threshold, look in looks.items()
        if threshold in curves["mean"]
    ]
    title = f"Precision over recall of {KINDS[kind]}"
    chart = line_chart(f"pr{kind}", title, lines, percent=True, from_zero=True, x_name="recall")
    return figure(KINDS[kind].capitalize(), chart, "both axes in per cent")


def per_class(run: Run) -> Markup | None:
    """Average precision of each class, the worst first."""
    if run.evaluation is None:
        return None
    every: list[Mapping[str, Any]] = list(run.evaluation.tables.get("per_class") or ())
    rows = sorted((row for row in every if row.get("box_map") is not None), key=lambda row: row["box_map"])
    if not rows:
        return None
    missing = left_out(len(every) - len(rows), "without an object in this split")
    return worst_first("Average precision", rows, _bars, most=CLASSES, missing=missing)


def _bars(rows: Sequence[Mapping[str, Any]], caption: str) -> Markup:
    masks = any(row.get("mask_map") is not None for row in rows)
    cells = [
        (
            name(row["name"]),
            bar(row["box_map"] / 100),
            percent(row["box_map"]),
            *([NOTHING if row.get("mask_map") is None else percent(row["mask_map"])] if masks else []),
            f"{row['count']:,}",
        )
        for row in rows
    ]
    head = ("class", "", "box AP", *(["mask AP"] if masks else []), "objects")
    return table(head, cells, caption=caption, class_="bars")


def predictions(run: Run) -> Markup:
    """Images with their true and their predicted objects."""
    if not run.drawn:
        return no_predictions()
    words = "Left: what is there. Right: what was found, with its score. Images with the worst mistakes come first."
    note = tag("p", words, class_="quiet")
    sheet = tag("ul", *(_card(run, one) for one in run.drawn), class_="wide-sheet")
    return section("predictions", "Predictions", note, sheet)


def _card(run: Run, drawn: Drawn) -> Markup:
    there, found = int(drawn.about.get("true", 0)), int(drawn.about.get("found", 0))
    told = f"  {plural(there, 'object')} there, {found:,} found"
    picture = inline(drawn.file, f"{drawn.id}: true and predicted objects", WIDE)
    mistakes = [
        _listed("Found, but not there: ", [_false(run, *one) for one in drawn.about.get("false", ())]),
        _listed("Missed: ", [name(run.label(label)) for label in drawn.about.get("missed", ())]),
    ]
    return tag("li", picture, tag("p", join([name(drawn.id), tag("span", told, class_="quiet")])), *mistakes)


def _false(run: Run, label: int, score: float, instead: int | None) -> Markup:
    said = join([name(run.label(label)), f" {percent(100 * score)}"])
    return said if instead is None else join([said, " in place of ", name(run.label(instead))])


def _listed(heading: str, parts: list[Markup]) -> Markup | None:
    if not parts:
        return None
    commas = [part for one in parts[:LISTED] for part in (Markup(", "), one)][1:]
    more = f" and {len(parts) - LISTED:,} more" if len(parts) > LISTED else ""
    return tag("p", heading, *commas, more, class_="quiet")
