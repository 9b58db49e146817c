"""Sections for detection: precision over recall, average precision by class, and pictures of detections."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fourstage.plurals import plural
from fourstage.report.charts import Series, compared_look, legend, line_chart
from fourstage.report.classes import bar, class_section, omitted_classes
from fourstage.report.common import figure, no_predictions, section
from fourstage.report.inline import inline
from fourstage.report.markup import Markup, join, name, table, tag
from fourstage.report.number_format import NOTHING, percent
from fourstage.report.read import PredictionPicture, Run

CLASSES = 40  # rows before the others are folded
LISTED = 6  # mistakes of each type that a card names
WIDE = 900  # pixels, of the picture of truth and prediction
THRESHOLDS = {"0.50": "map50", "0.75": "map75", "0.50:0.95": "map"}  # name of a curve -> its metric
TARGETS = {"box": "boxes", "mask": "masks"}


def precision_recall(run: Run) -> Markup | None:
    """Return the section with a chart for boxes and one for masks."""
    curves: Mapping[str, Any] = run.evaluation.tables.get("curves", {}) if run.evaluation else {}
    if run.evaluation is None or not any(target in curves for target in TARGETS):
        return None
    charts = [_chart(target, curves[target], run.evaluation.metrics) for target in TARGETS if target in curves]
    note = tag(
        "p",
        "Precision is the share of detections that are right; recall is the share of objects that are detected. "
        "A detection is right where its intersection over union with an object reaches the threshold, from 0.50 to "
        "0.95. AP is the mean precision over all recalls, the area below a line.",
        class_="quiet",
    )
    return section("precision", "Precision over recall", note, tag("div", *charts, class_="charts large"))


def _chart(target: str, curves: Mapping[str, Any], metrics: Mapping[str, float]) -> Markup:
    recall_n = 100 * np.asarray(curves["recall"], dtype=np.float64)
    known = [threshold for threshold in THRESHOLDS if threshold in curves["mean"]]
    lines = [
        Series(threshold, recall_n, 100 * np.asarray(curves["mean"][threshold], dtype=np.float64), compared_look(i))
        for i, threshold in enumerate(known)
    ]
    title = f"Precision over recall of {TARGETS[target]}"
    chart = line_chart(f"pr{target}", title, lines, percent=True, from_zero=True, x_name="recall", labelled=False)
    names = legend([(line.look, f"{line.name}: AP {_average(metrics, target, line):.1f}") for line in lines])
    return figure(TARGETS[target].capitalize(), chart, "both axes in per cent", names)


def _average(metrics: Mapping[str, float], target: str, line: Series) -> float:
    """Return the average precision of a line: the metric, or else the mean over its points, which defines it."""
    return metrics.get(f"{target}_{THRESHOLDS[line.name]}", float(np.mean(line.y_n)))


def per_class(run: Run) -> Markup | None:
    """Return the section with the average precision of each class, the worst first."""
    if run.evaluation is None:
        return None
    every: list[Mapping[str, Any]] = list(run.evaluation.tables.get("per_class") or ())
    rows = sorted((row for row in every if row.get("box_map") is not None), key=lambda row: row["box_map"])
    if not rows:
        return None
    missing = omitted_classes(len(every) - len(rows), "without an object in this split")
    return class_section("Average precision", rows, _bars, visible=CLASSES, missing=missing)


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
    """Return the section with images of true and predicted objects."""
    if not run.pictures:
        return no_predictions()
    words = "Left: the ground truth. Right: the detections with their scores. Those with the worst mistakes come last."
    note = tag("p", words, class_="quiet")
    sheet = tag("ul", *(_card(run, one) for one in run.pictures), class_="wide-sheet")
    return section("predictions", "Predictions", note, sheet)


def _card(run: Run, picture: PredictionPicture) -> Markup:
    true, detected = int(picture.about.get("true", 0)), int(picture.about.get("found", 0))
    counts = f"  {plural(true, 'true object')}, {plural(detected, 'detection')}"
    image = inline(picture.file, f"{picture.id}: true and predicted objects", WIDE)
    mistakes = [
        _listed("False: ", [_false(run, *one) for one in picture.about.get("false", ())]),
        _listed("Missed: ", [name(run.label(label)) for label in picture.about.get("missed", ())]),
    ]
    return tag("li", image, tag("p", join([name(picture.id), tag("span", counts, class_="quiet")])), *mistakes)


def _false(run: Run, label: int, score: float, instead: int | None) -> Markup:
    detection = join([name(run.label(label)), f" {percent(100 * score)}"])
    return detection if instead is None else join([detection, " instead of ", name(run.label(instead))])


def _listed(heading: str, items: list[Markup]) -> Markup | None:
    if not items:
        return None
    more = f" and {len(items) - LISTED:,} more" if len(items) > LISTED else ""
    return tag("p", heading, join(items[:LISTED], ", "), more, class_="quiet")
