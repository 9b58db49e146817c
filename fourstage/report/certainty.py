"""How sure the headline is: the number of images, the interval, the chance level, and how often it was chosen from."""

import math
from collections.abc import Iterable

from fourstage.plurals import plural
from fourstage.report.markup import Markup, join, tag
from fourstage.report.number_format import SPACE, metric, percent
from fourstage.report.read import EvaluationLine, Run

WEIGHTS = {"model": "model", "ema": "EMA"}  # name in the log -> name on the page
FEW_IMAGES = 30  # below, resamples are too much alike, and their interval is too narrow


def how_sure(run: Run, key: str) -> list[Markup]:
    """Return the lines below the headline; empty before the first full evaluation."""
    if run.evaluation is None:
        return []
    lines = [_sample(run, key), _chance(run, key), _choice(run, key)]
    return [tag("p", line, class_="sure") for line in lines if line]


def best(lines: Iterable[EvaluationLine], key: str) -> EvaluationLine | None:
    """Return the first of the best evaluations. A value that is not finite is never the best."""
    sign = 1 if metric(key).higher_is_better else -1
    known = [line for line in lines if math.isfinite(line.metrics.get(key, math.nan))]
    return max(known, key=lambda line: sign * line.metrics[key], default=None)


def is_best(run: Run, key: str) -> bool:
    """Return whether the full evaluation belongs to the checkpoint with the best logged main metric."""
    top, full = best(run.evaluations, key), run.evaluation
    return top is not None and full is not None and (top.step, top.which) == (full.step, full.which)


def interval_text(run: Run, key: str) -> str:
    """Return `94.7 to 98.5 %`, or nothing where the run has no interval of this metric."""
    low, high = run.evaluation.intervals.get(key, (math.nan, math.nan)) if run.evaluation else (math.nan, math.nan)
    return f"{low:.1f} to {percent(high)}" if math.isfinite(low) and math.isfinite(high) else ""


def _sample(run: Run, key: str) -> Markup:
    """Return the number of images and the interval; nothing for a run of an older version, which kept neither."""
    if not run.images:
        return Markup()
    images, interval = tag("b", plural(run.images, "image")), interval_text(run, key)
    if not interval or run.evaluation is None:
        return images
    method = run.evaluation.interval_method
    few = "bootstrap" in method and run.images < FEW_IMAGES
    note = " With so few images, the true uncertainty is larger." if few else ""
    return join([images, f". 95{SPACE}% interval: ", tag("b", interval), f" ({method}).", note])


def _chance(run: Run, key: str) -> str:
    """Return the score of a guess that ignores the image; nothing for detection, where it is almost zero."""
    counts = _truth_counts(run)
    total, classes = sum(counts), len(counts)
    if not total or classes < 2:
        return ""
    share = max(counts) / total
    if key == "top1":
        most = f"; the most frequent class has {percent(100 * share)}" if share > 1.2 / classes else ""
        return f"Chance level: {percent(100 / classes)} ({classes:,} classes){most}."
    if key == "miou_ss":
        return f"Chance level: {percent(100 * share / classes)}, if every pixel is of the most frequent class."
    return ""


def _truth_counts(run: Run) -> list[int]:
    """Return the images or pixels of each class."""
    if run.evaluation is None:
        return []
    if run.evaluation.per_class:
        return [row.count for row in run.evaluation.per_class]
    if run.evaluation.confusion is not None:
        return run.evaluation.confusion.sum(1).tolist()
    return [int(row.get("pixels") or 0) for row in run.evaluation.tables.get("per_class") or ()]


def _choice(run: Run, key: str) -> str:
    """Return how many evaluations the best was chosen from."""
    count = len(run.evaluations)
    if count < 2 or not is_best(run, key):
        return ""
    epochs = sorted({line.epoch for line in run.evaluations})
    every_epoch = len(epochs) > 1 and all(abs(epoch - place) < 1e-6 for place, epoch in enumerate(epochs, 1))
    times = plural(len(epochs), "epoch") if every_epoch else f"at {plural(len(epochs), 'time')}"
    averaged = len({line.which for line in run.evaluations}) > 1
    how = ", ".join([*([times] if len(epochs) > 1 else []), *(["with and without averaging"] if averaged else [])])
    return f"Best of {count:,} evaluations ({how}) on these same images, so slightly optimistic."
