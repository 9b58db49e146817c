"""Sections for semantic segmentation: IoU by class, the most confused pairs, and pictures of label maps."""

from collections.abc import Mapping, Sequence
from typing import Any

from fourstage.report.classes import bar, class_section, omitted_classes
from fourstage.report.common import no_predictions, section
from fourstage.report.inline import inline
from fourstage.report.markup import Markup, join, name, table, tag
from fourstage.report.number_format import NOTHING, percent
from fourstage.report.read import PredictionPicture, Run

PAIRS = 20
CLASSES = 40  # rows before the others are folded
WIDE = 900  # pixels, of the picture of image, truth and prediction


def per_class(run: Run) -> Markup | None:
    """Return the section with the intersection over union of each class, the worst first."""
    if run.evaluation is None:
        return None
    every: list[Mapping[str, Any]] = list(run.evaluation.tables.get("per_class") or ())
    rows = sorted((row for row in every if row["iou"] is not None), key=lambda row: row["iou"])
    if not rows:
        return None
    missing = omitted_classes(len(every) - len(rows), "neither in the images nor predicted")
    protocols = run.evaluation.tables.get("protocols", {})
    note = f"Evaluation protocol: {protocols['ss']}." if "ss" in protocols else ""
    return class_section("Intersection over union", rows, _bars, visible=CLASSES, note=note, missing=missing)


def _bars(rows: Sequence[Mapping[str, Any]], caption: str) -> Markup:
    cells = [
        (
            name(row["name"]),
            bar(row["iou"] / 100),
            percent(row["iou"]),
            NOTHING if row["acc"] is None else percent(row["acc"]),
        )
        for row in rows
    ]
    return table(("class", "", "IoU", "accuracy"), cells, caption=caption, class_="bars")


def confused(run: Run) -> Markup | None:
    """Return the section with the most confused pairs of classes, by pixels."""
    if run.evaluation is None or not run.evaluation.tables.get("confused"):
        return None
    of_class = [row["pixels"] for row in run.evaluation.tables["per_class"]]
    rows = [
        (name(run.label(a)), name(run.label(b)), f"{n:,}", percent(100 * n / max(of_class[a], 1)))
        for a, b, n in run.evaluation.tables["confused"][:PAIRS]
    ]
    head = ("truth", "predicted as", "pixels", "of its class")
    return section(
        "confusion", "Most confused pairs", table(head, rows, caption="Most confused pairs", class_="pairs-list")
    )


def predictions(run: Run) -> Markup:
    """Return the section with images beside their true and predicted label maps."""
    if not run.pictures:
        return no_predictions()
    note = tag(
        "p",
        "Each image, its ground truth and its prediction. Those with most wrong pixels come last.",
        class_="quiet",
    )
    return section(
        "predictions", "Predictions", note, tag("ul", *(_card(run, one) for one in run.pictures), class_="wide-sheet")
    )


def _card(run: Run, picture: PredictionPicture) -> Markup:
    legend = [
        tag("li", tag("i", style=f"background:rgb({r},{g},{b})"), name(run.label(label)))
        for label, (r, g, b) in picture.about.get("legend", ())
    ]
    right = f"{percent(float(picture.about.get('right', 0.0)))} of the pixels are right"
    return tag(
        "li",
        inline(picture.file, f"{picture.id}: image, true and predicted classes", WIDE),
        tag("p", join([name(picture.id), tag("span", f"  {right}", class_="quiet")])),
        tag("ul", *legend, class_="legend-of"),
    )
