"""Which metrics the runs of an arm will have, known before they are trained."""

import re
from collections.abc import Callable
from math import inf
from typing import Any

from fourstage.data.objects.dataset import has_objects
from fourstage.data.sample import BadImage, Dataset
from fourstage.methods import find_method
from fourstage.recipe import Detection, Recipe, Segmentation
from fourstage.report.number_format import METRICS
from fourstage.report.number_format import SIZES as WORDS
from fourstage.run.splits import open_split, open_splits
from fourstage.run.task_protocol import protocol_of
from fourstage.tasks.detection.coco_ap import SIZES
from fourstage.user_files import BUILT_IN, import_files

METRICS_OF = {  # by task, a pattern of the names of its metrics
    "classification": "^(top|loss$)",
    "detection": "^(box|mask)_",
    "segmentation": "_(ss|ms_flip)$",
}
SMALL, MEDIUM = 32**2, 96**2  # square pixels; an object on a boundary counts on both sides, as in pycocotools
AREAS = dict(zip(SIZES, ((0.0, SMALL), (SMALL, MEDIUM), (MEDIUM, inf)), strict=True))


def check_metric(name: str | None, recipe: Recipe, arm: str) -> None:
    """Raise ValueError where no run of an arm can have a metric of this name."""
    if name is None:
        return
    known = [metric for metric in METRICS if re.search(METRICS_OF[recipe.task], metric)] + _recalls(recipe)
    if name not in known:
        raise ValueError(f"--metric {name} is not a metric of {recipe.task}; choose from {', '.join(known)}")
    if (missing := _missing(name, recipe)) is not None:
        reason, instead = missing
        raise ValueError(f"{arm} will have no {name}: {reason}; {instead}")


def _recalls(recipe: Recipe) -> list[str]:
    """Return the names of recalls, which depend on the recipe's limits on detections."""
    if not isinstance(recipe, Detection):
        return []
    ends = [*map(str, recipe.evaluation.limits), *(f"_{size}" for size in SIZES)]
    return [f"{form}_recall{end}" for form in ("box", "mask") for end in ends]


def _missing(name: str, recipe: Recipe) -> tuple[str, str] | None:
    """Return why an arm has no such metric and what to do; None where nothing is known against it."""
    if isinstance(recipe, Segmentation):
        if name.endswith("_ms_flip"):
            single = name.replace("_ms_flip", "_ss")
            return "trainings are scored at one scale", f"choose --metric {single}"
        if name.startswith("boundary") and not recipe.evaluation.boundary:
            return "its recipe does not count boundaries", "add evaluation.boundary=true"
    if isinstance(recipe, Detection):
        masks = name.startswith("mask_")
        without = _without_masks(name.replace("mask_", "box_"), recipe) if masks else None
        begin, _, size = name.rpartition("_")
        return without or (_without_size(begin, size, recipe, masks=masks) if size in AREAS else None)
    return None


def _without_masks(boxes: str, recipe: Detection) -> tuple[str, str] | None:
    import_files(recipe.imports)
    method = find_method(recipe.method, "detection")
    instead = f"choose --metric {boxes}"
    if recipe.method_args.get("masks") not in (None, True):
        return "method_args.masks is false", instead
    if method.place == BUILT_IN and method.without_masks is None:
        return f"{recipe.method} predicts boxes alone", instead
    protocol = protocol_of(recipe)
    for split in ("train", "val"):
        dataset: Dataset = open_split(protocol, split, show=False)
        if not getattr(dataset, "has_masks", False):
            return f"no object in {split} of {recipe.data} has a mask", f"{instead}, or give data with masks"
    return None


def _without_size(begin: str, size: str, recipe: Detection, *, masks: bool) -> tuple[str, str] | None:
    import_files(recipe.imports)
    dataset = open_splits(protocol_of(recipe), show=False).val
    if not has_objects(dataset):
        return None
    present = set[str]()
    for image in range(len(dataset)):
        present |= _sizes(dataset.reference, image, masks=masks)
        if size in present:
            return None
    known = [f"--metric {begin}_{one}" for one in AREAS if one in present]
    instead = f"choose {' or '.join(known)}" if known else "give data with objects"
    return f"no object in val of {recipe.data} is {WORDS[size]}", instead


def _sizes(reference: Callable[[int], dict[str, Any]], image: int, *, masks: bool) -> set[str]:
    """Return the sizes of an image's objects that count in the AP of boxes or masks."""
    try:
        truth = reference(image)
    except BadImage:  # such an image is refused or left out by the training
        return set()
    all_of_them = [True] * len(truth["areas"])
    measured = truth.get("masked", all_of_them) if masks else all_of_them
    rows = zip(truth["areas"], truth["crowd"], measured, strict=True)
    counting = [area for area, crowd, chosen in rows if chosen and not crowd]
    return {size for size, (low, high) in AREAS.items() if any(low <= area <= high for area in counting)}
