"""One page for several runs: their results in a table, then curves and predictions of each."""

import re
from collections.abc import Sequence
from pathlib import Path

from fourstage.files import shown_path
from fourstage.report import classification, common, detection, segmentation
from fourstage.report.markup import Markup, join, name, table, tag
from fourstage.report.number_format import count, duration, metric, millions
from fourstage.report.page import Section, document
from fourstage.report.read import Run, read_run

PREDICTIONS: dict[str, tuple[Section, ...]] = {
    "classification": (classification.predictions,),
    "detection": (detection.predictions,),
    "segmentation": (segmentation.predictions,),
}
ID_ATTRIBUTES = re.compile(r'\b(id|aria-labelledby|aria-describedby|for)="')


def comparison_page(folders: Sequence[str | Path]) -> str:
    """Return one page for several run folders.

    Raises:
        ValueError: there is no folder, one is not a run folder, or one is named twice.
    """
    paths = [Path(folder) for folder in folders]
    if not paths or len({path.resolve() for path in paths}) < len(paths):
        raise ValueError("name the folders of one run or more, each once")
    runs = [read_run(path) for path in paths]
    top = tag("p", "fourstage", tag("span", " runs side by side", class_="quiet"), class_="brand")
    head = tag("header", top, tag("h1", " · ".join(run.name for run in runs)), _overview(runs))
    return document(
        " · ".join(run.name for run in runs), [head, *(_run_section(i, run) for i, run in enumerate(runs, 1))]
    )


def _overview(runs: Sequence[Run]) -> Markup:
    """Return the table of the runs and their results."""
    rows = []
    for i, run in enumerate(runs, 1):
        key = common.main_metric(run)
        metrics = run.evaluation.metrics if run.evaluation else {}
        result = metric(key).show(metrics[key]) if key in metrics else "not evaluated yet"
        size = millions(float(run.environment["parameters"])) if "parameters" in run.environment else ""
        link = tag("a", name(run.name), href=f"#run{i}")
        rows.append((link, run.task, metric(key).label, result, size, count(run.step), duration(run.seconds)))
    head = ("run", "task", "metric", "result", "parameters", "steps", "time")
    return table(head, rows, caption="The runs", class_="numbers")


def _run_section(i: int, run: Run) -> Markup:
    """Return the sections of one run; its number makes their ids unique in the page."""
    sections = [common.curves(run), *(section(run) for section in PREDICTIONS.get(run.task, ()))]
    content = ID_ATTRIBUTES.sub(rf'\1="run{i}-', join(sections))
    heading = tag("h1", name(run.name), " ", tag("span", run.task, class_="quiet"))
    where = tag("p", "The complete report is ", tag("code", f"{shown_path(run.folder)}/report.html"), class_="quiet")
    return tag("div", heading, where, Markup(content), id=f"run{i}", class_="run")
