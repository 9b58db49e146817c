"""Sections of every task's report: headline, curves, numbers, recipe, and commands for the reader's own data."""

import math
import shlex
from typing import Any
from urllib.parse import quote

import numpy as np

from fourstage.plurals import plural
from fourstage.report.certainty import WEIGHTS, best, how_sure, is_best
from fourstage.report.charts import Series, line_chart, smooth, sparkline
from fourstage.report.markup import Markup, join, name, table, tag
from fourstage.report.number_format import (
    NOTHING,
    count,
    duration,
    metric,
    millions,
    percent,
    shown_metrics,
    signed,
    significant,
)
from fourstage.report.read import Run

LAYOUTS = {  # task -> a sentence on the data folder, and its files
    "classification": (
        "The folder needs one sub-folder per class. Without val/, a fixed share of the images is held out.",
        "my_folder/train/cat/001.jpg\nmy_folder/train/dog/001.jpg\nmy_folder/val/cat/002.jpg",
    ),
    "detection": (
        "The folder needs a JSON file in COCO's format for each split. Folders of YOLO and Pascal VOC work as well.",
        "my_folder/annotations/instances_train.json\nmy_folder/train/001.jpg\n"
        "my_folder/annotations/instances_val.json\nmy_folder/val/002.jpg",
    ),
    "segmentation": (
        "The folder needs a PNG of the same name for each image. Its pixels are class numbers (255: ignored).",
        "my_folder/images/train/001.jpg\nmy_folder/masks/train/001.png\nmy_folder/images/val/002.jpg\n"
        "my_folder/masks/val/002.png\nmy_folder/masks/classes.txt",
    ),
}


def section(key: str, heading: str, *content: object) -> Markup:
    """Return a <section> with the id `key` below a heading."""
    return tag("section", tag("h2", heading), *content, id=key)


def no_predictions() -> Markup:
    """Return the section of predictions for a run that has none."""
    words = "No predictions were kept; the run has no full evaluation."
    return section("predictions", "Predictions", tag("p", words, class_="nothing"))


def main_metric(run: Run) -> str:
    """Return the metric that decides; without a full evaluation it is inferred from the log."""
    if run.evaluation:
        return run.evaluation.main_metric
    logged = run.evaluations[-1].metrics if run.evaluations else {}
    return next((key for key in logged if metric(key).higher_is_better), next(iter(logged), "top1"))


def headline(run: Run) -> Markup:
    """Return the page's header: names, state, main metric and tiles."""
    top = tag("p", "fourstage", tag("span", " training report", class_="quiet"), class_="brand")
    return tag(
        "header",
        top,
        tag("h1", name(run.title)),
        _description(run),
        tag("div", _headline_metric(run), _tiles(run), class_="result"),
    )


def curves(run: Run) -> Markup:
    """Return the section of losses, metrics, learning rate and gradient norm over epochs."""
    key, epoch_n = main_metric(run), column(run, "epoch")
    total_n, norm_n = column(run, "total"), column(run, "grad_norm")
    large = [
        figure(
            "Training loss", line_chart("loss", "Training loss", _with_raw("loss", epoch_n, total_n), from_zero=True)
        ),
        _metric_figure(run, key, (440, 260)),
    ]
    small = [
        *(_metric_figure(run, other, (330, 210)) for other in _logged_metrics(run) if other == "loss" != key),
        figure("Learning rate", _small("rate", "Learning rate", [Series("rate", epoch_n, column(run, "lr"))])),
        figure("Gradient norm", _small("norm", "Gradient norm", _with_raw("norm", epoch_n, norm_n))),
    ]
    content = tag("div", *large, class_="charts large"), tag("div", *small, class_="charts small")
    return section("curves", "Curves", _not_finite(total_n), *content)


def numbers(run: Run) -> Markup:
    """Return the section with every metric of the last evaluation, the best of the run and the published value."""
    if not run.evaluations and not run.evaluation:
        return section("numbers", "Numbers", tag("p", "The log holds no evaluation.", class_="nothing"))
    weights = [which for which in WEIGHTS if any(line.which == which for line in run.evaluations)]
    keys = list(shown_metrics(run.evaluation.metrics, run.class_count)) if run.evaluation else _logged_metrics(run)
    expect = _expected(run)
    full = _full_column(run)
    head = ["metric", *([full] if full else []), *(f"last, {WEIGHTS[w]}" for w in weights)]
    head += ["best of the run", *(["published"] if expect else [])]
    rows = [_number_row(run, key, weights, expect) for key in keys]
    return section(
        "numbers", "Numbers", table(head, rows, caption="Final numbers", class_="numbers"), _evaluated_on(run)
    )


def recipe(run: Run) -> Markup:
    """Return the section with the recipe, its changes, the environment and the time spent waiting for data."""
    if run.changes:
        rows = [(tag("code", key), _value(old), _value(new)) for key, (old, new) in run.changes.items()]
        caption = f"Changes to the recipe {run.source}"
        changed = join(
            [tag("h3", "Changes to the recipe"), table(("setting", "recipe", "this run"), rows, caption=caption)]
        )
    else:
        changed = tag("p", "The run used the recipe ", tag("code", run.source), " without changes.")
    text = tag("pre", tag("code", run.recipe_text), tabindex=0)
    resolved = tag("details", tag("summary", "The complete recipe of this run"), text)
    return section("recipe", "How it was trained", changed, resolved, _environment(run), _waiting(run))


def analyses(run: Run) -> Markup | None:
    """Return the section with links to the pages of `fourstage analyze` in the run's folder; None without any."""
    if not run.analyses:
        return None
    links = [tag("li", tag("a", page, href=quote(page))) for page in run.analyses]
    return section("analyses", "Analyses", tag("ul", *links))


def own_data(run: Run) -> Markup:
    """Return the section with commands to copy, which hold the names of this run."""
    source = shlex.quote(run.source)
    words, layout = LAYOUTS.get(run.task, LAYOUTS["classification"])
    return section(
        "own",
        "Train on your own data",
        tag("p", words),
        tag("pre", tag("code", layout), tabindex=0),
        command_line("Check the data first", "fourstage data check my_folder"),
        command_line("Train the same model on it", f"fourstage train {source} --data my_folder --out runs/mine"),
    )


def _description(run: Run) -> Markup:
    classes = (
        f" ({plural(len(run.evaluation.classes), 'class', 'classes')})"
        if run.evaluation and run.evaluation.classes
        else ""
    )
    size = f" at {run.recipe['image_size']} pixels" if "image_size" in run.recipe else ""
    model, data = network(run), run.recipe.get("data", "data")
    started = str(run.environment.get("started", "")).replace("T", " ")[:16]
    when = f" Started {started}." if started else ""
    recipe = " by the recipe ", tag("code", run.source), "."
    first = tag(
        "p", tag("b", name(model)), " trained on ", tag("b", name(data)), f"{classes}{size}", *recipe, class_="lede"
    )
    return join([first, tag("p", _state(run), when, class_="state " + ("done" if run.finished else "stopped"))])


def network(run: Run) -> str:
    """Return the name of the network in the recipe."""
    if "method" in run.recipe:
        return f"{run.recipe['method']} with {run.recipe.get('backbone', 'a backbone')}"
    return str(run.recipe.get("model", "a model"))


def _state(run: Run) -> Markup:
    """Return a sentence on whether the run is finished."""
    planned, epochs = run.planned_steps(), run.step / run.steps_per_epoch
    of_epochs = f", {significant(epochs, 3)} epoch{'s' * (epochs != 1)}" if math.isfinite(epochs) else ""
    if run.finished:
        return tag("span", f"Finished: {plural(run.step, 'step')}{of_epochs}.")
    reached = f"step {run.step:,}" + (f" of {count(planned)}" if math.isfinite(planned) else "") + of_epochs
    resume = (
        " The same command continues from the last checkpoint." if any(run.folder.glob("checkpoints/last.pt")) else ""
    )
    return tag("span", f"Not finished: the log ends at {reached}. The run was stopped or is still running.{resume}")


def _headline_metric(run: Run) -> Markup:
    """Return the main metric in large type: of the full evaluation, or else of the last logged one."""
    key = main_metric(run)
    lines = [line for line in run.evaluations if key in line.metrics]
    if run.evaluation and key in run.evaluation.metrics:
        value, which, step = run.evaluation.metrics[key], run.evaluation.which, run.evaluation.step
    elif lines:
        value, which, step = lines[-1].metrics[key], lines[-1].which, lines[-1].step
    else:
        return tag("div", tag("p", "Not evaluated yet", class_="big none"), class_="main")
    number, unit = (metric(key).show(value).split("\u202f") + [""])[:2]
    big = tag("p", number, tag("small", unit), class_="big")
    provenance = tag("p", *_provenance(run, key, which, step), class_="of")
    return tag("div", big, provenance, *how_sure(run, key), class_="main")


def _provenance(run: Run, key: str, which: str, step: int) -> list[object]:
    weights = (
        f" of the {WEIGHTS.get(which, which)} weights" if len({line.which for line in run.evaluations}) > 1 else ""
    )
    epoch = f", epoch {significant(step / run.steps_per_epoch, 3)}" if math.isfinite(run.steps_per_epoch) else ""
    top = best(run.evaluations, key)
    words: list[object] = [tag("b", metric(key).label), f"{weights}{epoch}"]
    if top is None:
        return words
    if top.step == step and top.which == which:
        return [*words, "; the best of the run"]
    where = f"{WEIGHTS.get(top.which, top.which)}, epoch {significant(top.epoch, 3)}"
    return [*words, f"; best of the run {metric(key).show(top.metrics[key])} ({where})"]


def _tiles(run: Run) -> Markup:
    tiles: list[tuple[str, str]] = []
    key, expect = main_metric(run), _expected(run)
    if key in expect:
        note = "published, recipe reconstructed" if run.recipe.get("reconstructed") else "published"
        here = run.evaluation.metrics.get(key, math.nan) if run.evaluation else math.nan
        note += f"; this run {signed(here - expect[key])}" if math.isfinite(here) else ""
        tiles.append((metric(key).show(expect[key]), note))
    speed_n = column(run, "images_per_second")
    parameters = run.environment.get("parameters")
    tiles += [
        (duration(run.seconds), "training time"),
        (count(float(np.nanmedian(speed_n))) if np.isfinite(speed_n).any() else NOTHING, "images per second"),
        (millions(parameters) if isinstance(parameters, int | float) else NOTHING, "parameters"),
    ]
    return tag("dl", *(tag("div", tag("dt", label), tag("dd", value)) for value, label in tiles), class_="tiles")


def figure(title: object, chart: Markup, note: object = None, names: Markup | None = None) -> Markup:
    """Return a chart below its title, a note and the legend with the names of its lines."""
    small = tag("span", note, class_="quiet") if note else None
    return tag("figure", tag("figcaption", tag("b", title), small, tag("output")), names, chart)


def _small(key: str, title: str, series: list[Series]) -> Markup:
    return line_chart(key, title, series, size=(330, 210), from_zero=True)


def _with_raw(label: str, epoch_n: np.ndarray, y_n: np.ndarray) -> list[Series]:
    """Return the logged values as a faint line below the smoothed line; with few points, one line."""
    smoothed_n = smooth(y_n)
    if smoothed_n is y_n:
        return [Series(label, epoch_n, y_n)]
    return [Series(f"{label}, as logged", epoch_n, y_n, "raw"), Series(label, epoch_n, smoothed_n)]


def _metric_figure(run: Run, key: str, size: tuple[int, int]) -> Markup:
    known, series = metric(key), []
    shown = run.evaluation.which if run.evaluation else "ema"
    several = len({line.which for line in run.evaluations}) > 1
    for which, label in WEIGHTS.items():
        lines = [line for line in run.evaluations if line.which == which and key in line.metrics]
        if lines:
            x_n, y_n = np.array([line.epoch for line in lines]), np.array([line.metrics[key] for line in lines])
            series.append(Series(label, x_n, y_n, "quiet" if several and which != shown else "accent"))
    title = known.label.capitalize() if key == "loss" else f"Validation {known.label}"
    if not series:
        return figure(title, tag("p", "No evaluation yet.", class_="nothing"))
    chart = line_chart(
        f"metric-{slug(key)}", title, series, size=size, percent=known.percent, from_zero=not known.percent
    )
    return figure(title, chart, "per cent" if known.percent else None)


def slug(key: str) -> str:
    """Return the letters and digits of a metric's name, for ids in the page."""
    return "".join(letter for letter in key if letter.isascii() and letter.isalnum())


def last_weights(run: Run) -> str:
    """Return which weights the last evaluation in the log is of."""
    return run.evaluations[-1].which if run.evaluations else "model"


def _not_finite(total_n: np.ndarray) -> Markup | None:
    lost = int((~np.isfinite(total_n)).sum())
    if not lost:
        return None
    return tag(
        "p",
        f"{lost} of {plural(len(total_n), 'logged loss', 'logged losses')} are not finite; the line has gaps there.",
        class_="warn",
    )


def _logged_metrics(run: Run) -> list[str]:
    keys = dict.fromkeys(key for line in run.evaluations for key in line.metrics)
    return list(shown_metrics(dict.fromkeys(keys, 0.0), run.class_count))


def column(run: Run, field: str) -> np.ndarray:
    """Return a number of every logged step."""
    return np.array([getattr(line, field) for line in run.train], dtype=float)


def _expected(run: Run) -> dict[str, float]:
    expect = run.recipe.get("expect") or {}
    return {str(key): float(value) for key, value in expect.items()}


def _full_column(run: Run) -> str | None:
    """Return the heading of the full evaluation's column; None where the last logged evaluation equals it."""
    full = run.evaluation
    if full is None:
        return None
    last = [line for line in run.evaluations if line.which == full.which][-1:]
    if last and last[0].step == full.step and last[0].metrics == full.metrics:
        return None
    return f"{'best' if is_best(run, main_metric(run)) else 'full'} checkpoint, {WEIGHTS.get(full.which, full.which)}"


def _number_row(run: Run, key: str, weights: list[str], expect: dict[str, float]) -> list[object]:
    known, cells = metric(key), []
    if run.evaluation and _full_column(run):
        cells.append(known.show(run.evaluation.metrics.get(key, math.nan)))
    for which in weights:
        last = [line.metrics[key] for line in run.evaluations if line.which == which and key in line.metrics]
        cells.append(known.show(last[-1]) if last else NOTHING)
    top = best(run.evaluations, key)
    where = f" {WEIGHTS.get(top.which, top.which)}, epoch {significant(top.epoch, 3)}" if top else ""
    cells.append(join([known.show(top.metrics[key]), tag("span", where, class_="quiet")]) if top else NOTHING)
    if expect:
        now = run.evaluation.metrics.get(key, math.nan) if run.evaluation else math.nan
        difference = f" this run {signed(now - expect[key])}" if key in expect and math.isfinite(now) else ""
        cells.append(
            join([known.show(expect[key]), tag("span", difference, class_="quiet")]) if key in expect else NOTHING
        )
    return [known.label, *cells]


def _evaluated_on(run: Run) -> Markup | None:
    """Return a sentence on the evaluation that the rest of the page shows."""
    if not run.evaluation:
        return None
    images = f" on {plural(run.images, 'image')}" if run.images else ""
    which = WEIGHTS.get(run.evaluation.which, run.evaluation.which)
    words = (
        f"The sections below show the full evaluation of the {which} weights at step {run.evaluation.step:,}{images}."
    )
    return tag("p", words, class_="quiet")


def _value(value: Any) -> Markup:
    return tag("code", "not set" if value is None else value)


def _environment(run: Run) -> Markup | None:
    if not run.environment:
        return None
    packages = run.environment.get("packages") or {}
    rows = [(key, _plain(value)) for key, value in run.environment.items() if key != "packages"]
    rows += [(key, _plain(value)) for key, value in packages.items() if key not in run.environment]
    listed = table(("name", "value"), rows, caption="Machine and versions", class_="pairs")
    shown = [run.environment.get(key) for key in ("device", "machine")]
    versions = [f"{key} {run.environment[key]}" for key in ("fourstage", "torch", "python") if key in run.environment]
    summary = ", ".join(str(part) for part in (*shown, *versions) if part)
    return tag("details", tag("summary", "Environment: ", tag("span", summary, class_="quiet")), listed)


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {inner}" for key, inner in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)


def _waiting(run: Run) -> Markup | None:
    """Return a sentence on the share of time that the device waited for data."""
    share_n = 100 * column(run, "data_wait")
    known_n = share_n[np.isfinite(share_n)]
    if not len(known_n):
        return None
    text = f"Waiting for data took {percent(float(known_n.mean()))} of the training time"
    line = sparkline("Share of time spent waiting for data, from the first step to the last", share_n)
    return tag("p", text, f" (at most {percent(float(known_n.max()))}) ", line, class_="waiting")


def command_line(purpose: str, line: str) -> Markup:
    """Return a command to copy below what it is for."""
    return tag("div", tag("p", purpose), tag("pre", tag("code", line), class_="command", tabindex=0), class_="step")
