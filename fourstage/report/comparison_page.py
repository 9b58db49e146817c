"""One page for several runs: results, what differs between the recipes, shared curves, and predictions of each."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fourstage.files import real_path, shown_path
from fourstage.report import classification, common, detection, segmentation
from fourstage.report.certainty import interval_text
from fourstage.report.charts import Series, compared_look, legend, line_chart, smooth
from fourstage.report.differences import differing
from fourstage.report.markup import Markup, join, name, table, tag
from fourstage.report.number_format import count, duration, metric, millions
from fourstage.report.page import Section, document
from fourstage.report.read import Run, damage, read_run

PREDICTIONS: dict[str, tuple[Section, ...]] = {
    "classification": (classification.predictions,),
    "detection": (detection.predictions,),
    "segmentation": (segmentation.predictions,),
}
ID_ATTRIBUTES = re.compile(r'\b(id|aria-labelledby|aria-describedby|for)="')
NAMED = 3  # runs that the title names


def comparison_page(folders: Sequence[str | Path]) -> str:
    """Return one page for several run folders.

    Raises:
        ValueError: there is no folder, one is not a run folder, is damaged or is named twice.
    """
    paths = [Path(folder) for folder in folders]
    if not paths or len({real_path(path) for path in paths}) < len(paths):
        raise ValueError("name the folders of one run or more, each once")
    with damage(*paths):  # what only the page reads may be damaged too
        return _page(paths)


def _page(paths: Sequence[Path]) -> str:
    runs, titles = [read_run(path) for path in paths], unique_titles(paths)
    title = _title(titles)
    top = tag("p", "fourstage", tag("span", " comparison of runs", class_="quiet"), class_="brand")
    head = tag("header", top, tag("h1", name(title)), _overview(runs, titles))
    by_task = {
        task: [i for i, run in enumerate(runs) if run.task == task] for task in dict.fromkeys(r.task for r in runs)
    }
    sections = [
        _differences(runs, titles),
        *(
            _of_task(task, [runs[i] for i in chosen], [titles[i] for i in chosen], len(by_task))
            for task, chosen in by_task.items()
        ),
        *(_run_section(i, run, title) for i, (run, title) in enumerate(zip(runs, titles, strict=True), 1)),
    ]
    return document(title, [head, *sections])


def unique_titles(paths: Sequence[Path]) -> list[str]:
    """Return the names of the folders, with as many folders above them as make all names different."""
    parts = [real_path(path).parts for path in paths]
    depth = 1
    while len({each[-depth:] for each in parts}) < len(parts):
        depth += 1
    return ["/".join(each[-depth:]) for each in parts]


def _title(titles: Sequence[str]) -> str:
    if len(titles) == 1:
        return titles[0]
    if len(titles) > NAMED:
        return f"Comparison of {len(titles)} runs"
    return f"Comparison of {', '.join(titles[:-1])} and {titles[-1]}"


def _overview(runs: Sequence[Run], titles: Sequence[str]) -> Markup:
    """Return the table of the runs and their results."""
    rows = []
    for i, (run, title) in enumerate(zip(runs, titles, strict=True), 1):
        key = common.main_metric(run)
        metrics = run.evaluation.metrics if run.evaluation else {}
        result = metric(key).show(metrics[key]) if key in metrics else "not evaluated yet"
        interval = interval_text(run, key)
        shown = join([result, tag("span", f" {interval}", class_="quiet") if interval else None])
        parameters = run.environment.get("parameters")
        size = millions(float(parameters)) if isinstance(parameters, int | float) else ""
        link = tag("a", name(title), href=f"#run{i}")
        network = name(common.network(run))
        rows.append((link, network, metric(key).label, shown, size, count(run.step), duration(run.seconds)))
    head = ("run", "network", "metric", "result, with 95\u202f% interval", "parameters", "steps", "time")
    return table(head, rows, caption="The runs", class_="numbers")


def _differences(runs: Sequence[Run], titles: Sequence[str]) -> Markup | None:
    """Return the section with the keys that differ: of all runs, and of those of one task where there are several."""
    if len(runs) < 2:
        return None
    tables = [_difference_table(runs, titles, "of all runs")]
    tasks = list(dict.fromkeys(run.task for run in runs))
    for task in tasks if len(tasks) > 1 else ():
        chosen = [i for i, run in enumerate(runs) if run.task == task]
        if len(chosen) > 1:
            some = [runs[i] for i in chosen], [titles[i] for i in chosen]
            tables += [tag("h3", task.capitalize()), _difference_table(*some, f"of {task}")]
    return common.section("differences", "What differs", *tables)


def _difference_table(runs: Sequence[Run], titles: Sequence[str], which: str) -> Markup:
    rows = [(tag("code", key), *(tag("code", value) for value in values)) for key, values in differing(runs)]
    if not rows:
        return tag("p", "The recipes, the versions and the machines are the same.", class_="nothing")
    return table(("key", *map(name, titles)), rows, caption=f"What differs between the recipes {which}", class_="keys")


def _of_task(task: str, runs: Sequence[Run], titles: Sequence[str], tasks: int) -> Markup:
    """Return the section with the curves of all runs of a task in shared charts."""
    looks = [compared_look(place) for place in range(len(runs))]
    names = legend([(look, name(title)) for look, title in zip(looks, titles, strict=True)])
    losses = [
        Series(t, common.column(r, "epoch"), smooth(common.column(r, "total")), k)
        for r, t, k in zip(runs, titles, looks, strict=True)
    ]
    keys = list(dict.fromkeys(common.main_metric(run) for run in runs))
    if any("loss" in line.metrics for run in runs for line in run.evaluations):
        keys.append("loss")
    rates = [
        Series(t, common.column(r, "epoch"), common.column(r, "lr"), k)
        for r, t, k in zip(runs, titles, looks, strict=True)
    ]
    charts = [
        _figure(f"{task}loss", "Training loss", losses),
        *(_metric_figure(task, key, runs, titles, looks) for key in dict.fromkeys(keys)),
        _figure(f"{task}rate", "Learning rate", rates),
    ]
    methods = {str(run.recipe.get("method")) for run in runs}
    note = "Different methods have different losses; compare their metrics." if len(methods) > 1 else None
    heading = f"Curves of {task}" if tasks > 1 else "Curves"
    grid = tag("div", *charts, class_="charts large")
    return common.section(f"curves-{task}", heading, tag("p", note, class_="quiet") if note else None, names, grid)


def _figure(key: str, title: str, series: Sequence[Series], *, percent: bool = False) -> Markup:
    chart = line_chart(key, title, series, percent=percent, from_zero=not percent, labelled=False)
    return common.figure(title, chart, "per cent" if percent else None)


def _metric_figure(task: str, key: str, runs: Sequence[Run], titles: Sequence[str], looks: Sequence[str]) -> Markup:
    """Return the chart of a metric: of each run the weights that its page shows, averaged or not."""
    series = []
    for run, title, look in zip(runs, titles, looks, strict=True):
        which = run.evaluation.which if run.evaluation else common.last_weights(run)
        lines = [line for line in run.evaluations if line.which == which and key in line.metrics]
        x_n, y_n = np.array([line.epoch for line in lines]), np.array([line.metrics[key] for line in lines])
        series.append(Series(title, x_n, y_n, look))
    known = metric(key)
    title = known.label.capitalize() if key == "loss" else f"Validation {known.label}"
    return _figure(f"{task}metric{common.slug(key)}", title, series, percent=known.percent)


def _run_section(i: int, run: Run, title: str) -> Markup:
    """Return the predictions of one run; its number makes their ids unique in the page."""
    content = ID_ATTRIBUTES.sub(rf'\1="run{i}-', join(section(run) for section in PREDICTIONS.get(run.task, ())))
    heading = tag("h1", name(title), " ", tag("span", run.task, class_="quiet"))
    where = tag("p", "The complete report is ", tag("code", f"{shown_path(run.folder)}/report.html"), class_="quiet")
    return tag("div", heading, where, Markup(content), id=f"run{i}", class_="run")
