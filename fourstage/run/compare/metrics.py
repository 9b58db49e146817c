"""Which metrics the runs of an arm will have, known before they are trained."""

import re

from fourstage.data.sample import Dataset
from fourstage.methods import find_method
from fourstage.recipe import Detection, Recipe, Segmentation
from fourstage.report.number_format import METRICS
from fourstage.run.splits import open_split
from fourstage.run.task_protocol import protocol_of
from fourstage.user_files import BUILT_IN, import_files

METRICS_OF = {  # by task, a pattern of the names of its metrics
    "classification": "^(top|loss$)",
    "detection": "^(box|mask)_",
    "segmentation": "_(ss|ms_flip)$",
}


def check_metric(name: str | None, recipe: Recipe, arm: str) -> None:
    """Raise ValueError where no run of an arm can have a metric of this name."""
    if name is None:
        return
    known = [metric for metric in METRICS if re.search(METRICS_OF[recipe.task], metric)]
    if name not in known:
        raise ValueError(f"--metric {name} is no metric of {recipe.task}; choose from {', '.join(known)}")
    if (missing := _missing(name, recipe)) is not None:
        reason, instead = missing
        raise ValueError(f"{arm} will have no {name}: {reason}; {instead}")


def _missing(name: str, recipe: Recipe) -> tuple[str, str] | None:
    """Return why an arm has no such metric and what to do; None where nothing is known against it."""
    if isinstance(recipe, Segmentation):
        if name.endswith("_ms_flip"):
            single = name.replace("_ms_flip", "_ss")
            return "trainings are scored at one scale", f"choose --metric {single}"
        if name.startswith("boundary") and not recipe.evaluation.boundary:
            return "its recipe does not count boundaries", "add evaluation.boundary=true"
    if isinstance(recipe, Detection) and name.startswith("mask_"):
        return _without_masks(name.replace("mask_", "box_"), recipe)
    return None


def _without_masks(boxes: str, recipe: Detection) -> tuple[str, str] | None:
    import_files(recipe.imports)
    method = find_method(recipe.method, "detection")
    instead = f"choose --metric {boxes}"
    if not recipe.method_args.get("masks", True):
        return "method_args.masks is false", instead
    if method.place == BUILT_IN and method.without_masks is None:
        return f"{recipe.method} predicts boxes alone", instead
    protocol = protocol_of(recipe)
    for split in ("train", "val"):
        dataset: Dataset = open_split(protocol, split, show=False)
        if not getattr(dataset, "has_masks", False):
            return f"no object in {split} of {recipe.data} has a mask", f"{instead}, or give data with masks"
    return None
