"""Sections for semantic segmentation: how each class fares, what is taken for what, and label maps over images."""

from collections.abc import Mapping
from typing import Any

from fourstage.report.classification import bar
from fourstage.report.common import section
from fourstage.report.inline import inline
from fourstage.report.markup import Markup, join, name, table, tag
from fourstage.report.read import Drawn, Run
from fourstage.report.words import NOTHING, percent, plural

PAIRS = 20
CLASSES = 40  # rows before the rest is folded
WIDE = 900  # pixels, of the picture of image, truth and prediction


def per_class(run: Run) -> Markup | None:
    """Intersection over union of each class, the worst first."""
    if run.evaluation is None:
        return None
    every: list[Mapping[str, Any]] = list(run.evaluation.tables.get("per_class") or ())
    rows = sorted((row for row in every if row["iou"] is not None), key=lambda row: row["iou"])
    if not rows:
        return None
    seen = tag("p", "The worst first. ", *_protocols(run), class_="quiet")
    absent = len(every) - len(rows)
    words = f"{plural(absent, 'class', 'classes')} neither in the images nor predicted."
    left_out = tag("p", words, class_="quiet") if absent else None
    folded = None
    if len(rows) > CLASSES + 5:
        summary = tag("summary", f"The other {plural(len(rows) - CLASSES, 'class', 'classes')}")
        folded = tag("details", summary, _bars(rows[CLASSES:]))
        rows = rows[:CLASSES]
    return section("classes", "Intersection over union by class", seen, _bars(rows), folded, left_out)


def _protocols(run: Run) -> list[str]:
    protocols = run.evaluation.tables.get("protocols", {}) if run.evaluation else {}
    return [f"Seen as {protocols['ss']}."] if "ss" in protocols else []


def _bars(rows: list[Mapping[str, Any]]) -> Markup:
    cells = [
        (
            name(row["name"]),
            bar(row["iou"] / 100),
            percent(row["iou"]),
            NOTHING if row["acc"] is None else percent(row["acc"]),
        )
        for row in rows
    ]
    return table(("class", "", "IoU", "accuracy"), cells, caption="Intersection over union by class", class_="bars")


def confused(run: Run) -> Markup | None:
    """What is taken for what, by pixels."""
    if run.evaluation is None or not run.evaluation.tables.get("confused"):
        return None
    of_class = [row["pixels"] for row in run.evaluation.tables["per_class"]]
    rows = [
        (name(run.label(a)), name(run.label(b)), f"{n:,}", percent(100 * n / max(of_class[a], 1)))
        for a, b, n in run.evaluation.tables["confused"][:PAIRS]
    ]
    head = ("truth", "taken for", "pixels", "of its class")
    return section(
        "confusion", "Most confused pairs", table(head, rows, caption="Most confused pairs", class_="pairs-list")
    )


def predictions(run: Run) -> Markup:
    """Images beside their true and predicted label maps."""
    if not run.drawn:
        words = "No predictions were kept; the run was not evaluated in full."
        return section("predictions", "Predictions", tag("p", words, class_="nothing"))
    note = tag(
        "p", "Each image, its true classes, and the predicted ones; those with most wrong pixels first.", class_="quiet"
    )
    return section(
        "predictions", "Predictions", note, tag("ul", *(_card(run, one) for one in run.drawn), class_="wide-sheet")
    )


def _card(run: Run, drawn: Drawn) -> Markup:
    legend = [
        tag("li", tag("i", style=f"background:rgb({r},{g},{b})"), name(run.label(label)))
        for label, (r, g, b) in drawn.about.get("legend", ())
    ]
    right = f"{percent(float(drawn.about.get('right', 0.0)))} of its pixels right"
    return tag(
        "li",
        inline(drawn.file, f"{drawn.id}: image, true and predicted classes", WIDE),
        tag("p", join([name(drawn.id), tag("span", f"  {right}", class_="quiet")])),
        tag("ul", *legend, class_="legend-of"),
    )
