"""A metric of each network for draws of images. AP and mIoU are accumulated again for each draw. D draws, S seeds."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from fourstage.analysis.paired import DRAWS, image_draws
from fourstage.recipe import Detection, Recipe, Segmentation
from fourstage.run.compare.runs import FinishedRun, Table
from fourstage.tasks.detection import coco_ap
from fourstage.tasks.parts.intervals import affordable_resamples
from fourstage.tasks.segmentation import miou

Records = Mapping[str, Mapping[str, Any]]
Measure = Callable[[np.ndarray], float]  # (N,) indices of images -> the metric of these images together


def common_images(table: Table) -> list[str]:
    """Return the ids of the validation images. Raises ValueError unless all runs have the same."""
    runs = [run for runs in table.values() for run in runs.values()]
    first = sorted(runs[0].records)
    for run in runs[1:]:
        if sorted(run.records) != first:
            raise ValueError(
                f"{run.folder} was evaluated on other images than {runs[0].folder}; a paired comparison needs the same "
                f"validation split"
            )
    return first


def drawn_metrics(table: Table, seeds: Sequence[int], metric: str) -> dict[str, np.ndarray] | None:
    """Return by arm (D, S) the metric for draws of images.

    Returns:
        None for a metric that images alone do not give, or where the draws would take too long.

    Raises:
        ValueError: predictions of a run are damaged.
    """
    ids = common_images(table)
    first = next(iter(next(iter(table.values())).values()))
    with _readable(first):
        draws = _affordable(table, first, len(ids))
    if len(ids) < 2 or not draws:
        return None
    times_DN = image_draws(len(ids), draws)
    out: dict[str, np.ndarray] = {}
    for arm, runs in table.items():
        columns = []
        for seed in seeds:
            with _readable(runs[seed]):
                column_D = _drawn(runs[seed], ids, metric, times_DN)
            if column_D is None:
                return None
            columns.append(column_D)
        out[arm] = np.stack(columns, axis=1)
    return out


@contextmanager
def _readable(run: FinishedRun) -> Iterator[None]:
    """Raise ValueError where the predictions of a run have another form than its task gives them."""
    try:
        yield
    except (LookupError, TypeError, AttributeError):
        raise run.damaged_records() from None


def _affordable(table: Table, run: FinishedRun, images: int) -> int:
    if not isinstance(run.recipe, Detection):
        return DRAWS
    runs = sum(len(runs) for runs in table.values())
    classes = len(run.evaluation.get("classes", ()))
    detections = sum(len(record["labels"]) for record in run.records.values())
    return affordable_resamples(runs * (detections + images * classes), 10 * coco_ap.WORK)


def _drawn(run: FinishedRun, ids: Sequence[str], metric: str, times_DN: np.ndarray) -> np.ndarray | None:
    values_N = _per_image(run.records, ids, metric, run.recipe)
    if values_N is not None:  # a mean over images
        return times_DN @ values_N / len(ids)
    measure = _measure(run, ids, metric)
    if measure is None:
        return None
    everything = np.arange(len(ids))
    return np.array([measure(np.repeat(everything, times_N)) for times_N in times_DN])


def _per_image(records: Records, ids: Sequence[str], metric: str, recipe: Recipe) -> np.ndarray | None:
    """Return (N,) values whose mean is the metric; None where it is no mean over images."""
    if recipe.task != "classification":
        return None
    ordered = [records[id] for id in ids]
    if metric == "loss":
        return np.array([record["loss"] for record in ordered], float)
    if metric not in ("top1", "top5"):
        return None
    first = {"top1": 1, "top5": 5}[metric]
    return np.array([100.0 * any(label == r["truth"] for label, _ in r["top"][:first]) for r in ordered])


def _measure(run: FinishedRun, ids: Sequence[str], metric: str) -> Measure | None:
    recipe, classes = run.recipe, run.evaluation.get("classes", ())
    ordered = [run.records[id] for id in ids]
    if isinstance(recipe, Segmentation):
        name, _, protocol = metric.partition("_")
        counts = [record if protocol == "ss" else record.get("multi") for record in ordered]
        known = [count for count in counts if count is not None]
        if name not in ("miou", "macc", "aacc") or len(known) < len(counts):
            return None
        means = miou.resampled_means({protocol: known}, len(classes))
        return lambda chosen_N: means(chosen_N)[metric]
    form, _, name = metric.partition("_")
    if not isinstance(recipe, Detection) or name != "map" or form not in ("box", "mask"):
        return None
    measure = coco_ap.resampled_map(ordered, tuple(classes), recipe.evaluation.limits, form)
    return lambda chosen_N: measure(chosen_N)[metric]
