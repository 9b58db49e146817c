"""What a run asks of detection; see `kinds`."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from fourstage.api import create_detector, load_checkpoint
from fourstage.data.objects.dataset import ObjectDataset, portrait_flags, trainable
from fourstage.data.sample import Batch, Dataset, Sample, collate
from fourstage.data.transforms.detection import evaluation_transform, train_transform
from fourstage.methods import find_method
from fourstage.recipe import Detection as DetectionRecipe
from fourstage.recipe import Recipe
from fourstage.run.build import run_imports
from fourstage.run.checks import check_same_classes, check_truth
from fourstage.run.complete_checkpoints import classes_in, recipe_with_weights
from fourstage.run.report_samples import in_a_line, keep, worst_and_others
from fourstage.run.splits import open_split
from fourstage.run.task_protocol import Opened, Record, Records, Seen, Transform
from fourstage.tasks.detection.errors import SURE, Errors, errors_of
from fourstage.tasks.detection.task import Detection
from fourstage.weights.complete_checkpoints import fill_completely
from fourstage.weights.reading.safe import read_checkpoint

if TYPE_CHECKING:
    from PIL.Image import Image

TRUTH = "objects"
COLUMNS = (  # objects; per cent
    ("count", 0),
    *((f"{kind}_{name}", 4) for kind in ("box", "mask") for name in ("map", "map50", "map75", "recall")),
)
SHOWN = 12  # images whose detections a run folder keeps: half of them the worst


def check_data(recipe: Recipe, dataset: Dataset) -> None:
    give = "a folder in COCO's, YOLO's or Pascal VOC's layout, or digit_scenes"
    check_truth(recipe, dataset, TRUTH, "no boxes", give)


def about(dataset: Dataset) -> dict[str, Any]:
    ids = [*getattr(dataset, "category_ids", ())]
    known = {"category_ids": ids} if ids and all(type(id) is int for id in ids) else {}
    return {"masks": bool(getattr(dataset, "has_masks", False)), **known}


def unusual(recipe: Recipe, dataset: Dataset) -> tuple[str, ...]:
    own = _own(recipe)
    without_masks = find_method(own.method, "detection").without_masks
    if without_masks is None or not own.method_args.get("masks", True) or getattr(dataset, "has_masks", False):
        return ()
    if getattr(dataset, "note", ""):  # only some objects have one, and it says so
        return ()
    return (f"no object of {own.data} has a mask: boxes alone are trained and scored, as {without_masks} does.",)


def build_task(recipe: Recipe, classes: tuple[str, ...], about: Mapping[str, Any] | None = None) -> Detection:
    """Without masks in the data, methods that can do without them have boxes alone."""
    own, arguments = _own(recipe), dict(_own(recipe).method_args)
    torch.manual_seed(own.seed)
    maskable = find_method(own.method, "detection").without_masks is not None
    if maskable and about and not about.get("masks", True):
        arguments.setdefault("masks", False)
    network: Any = create_detector(own.method, own.backbone, len(classes), backbone_args=own.backbone_args, **arguments)
    ids = (about or {}).get("category_ids")
    return Detection(network, classes, own.evaluation.limits, ids if ids and len(ids) == len(classes) else None)


def start_from(task: Detection, weights: str) -> str:
    return f"starting from {load_checkpoint(task.network, weights, fresh_head=True)}"


def transforms(recipe: Recipe) -> tuple[Transform, Transform]:
    own, a = _own(recipe), _own(recipe).augmentation
    train = train_transform(
        a.policy,
        mean=own.mean,
        std=own.std,
        scale=a.scale,
        short_sides=a.short_sides,
        first_sides=a.first_sides,
        crop=a.crop,
        jitter=a.jitter,
        hflip=a.hflip,
        paste_from=open_split(recipe, "train", show=False) if a.copy_paste else None,
    )
    return train, evaluation_transform(own.evaluation.scale, mean=own.mean, std=own.std)


def for_training(recipe: Recipe, dataset: Dataset) -> Dataset:
    return trainable(cast(ObjectDataset, dataset), filter_empty=_own(recipe).filter_empty)


def groups(recipe: Recipe, dataset: Dataset) -> bytes:
    return portrait_flags(cast(ObjectDataset, dataset)) if _own(recipe).group_by_aspect else b""


def divisor(recipe: Recipe) -> int:
    a = _own(recipe).augmentation
    return max(a.scale) if a.policy == "large_scale_jitter" else 32


def mixing(recipe: Recipe, classes: int, part: int) -> Callable[[Batch], Batch] | None:
    return None


def repeats(recipe: Recipe) -> int:
    return 1


def load(task: Detection, weights: str | Path, which: str) -> None:
    file = read_checkpoint(weights)
    fill_completely(task.network, file, which)
    check_same_classes(weights, file, task.classes)


def open_evaluation(recipe: Recipe, weights: str | Path, which: str, *, show: bool) -> Opened:
    return Opened(open_split(recipe, "val", show=show), dict(recipe.expect))


def class_names(task: Detection) -> Sequence[str]:
    return task.classes


def named(model: str, weights: str | Path | None) -> tuple[Recipe, Detection]:
    """The detector of a recipe, which is named or a file, with weights from anyone who trained one."""
    recipe, file, about = recipe_with_weights(model, weights)
    run_imports(recipe)
    task = build_task(recipe, classes_in(file, recipe), about)
    fill_completely(task.network, file)
    return recipe, task


def keep_samples(folder: Path, task: Detection, recipe: Recipe, val: Dataset, records: Records) -> None:
    """Images with their true and their predicted objects: the worst ones, and others from all over the data."""
    from fourstage.report.objects import draw_objects, side_by_side

    errors = {id: errors_of(record) for id, record in records.items()}
    worst = [id for id in sorted(errors, key=lambda id: (-errors[id].weight, id)) if errors[id].weight > 0]

    def draw(sample: Sample, image_HW3: np.ndarray) -> "tuple[Image, dict[str, Any]]":
        record = records[sample.id]
        truth, found = record["truth"], _sure(record)
        true = draw_objects(image_HW3, {**truth, "scores": None}, task.classes)
        guessed = draw_objects(image_HW3, found, task.classes)
        counts = {"true": len(truth["labels"]), "found": len(found["labels"])}
        return side_by_side(true, guessed), {**counts, **_told(errors[sample.id], record)}

    keep(folder, val, worst_and_others(worst, records, SHOWN), draw)


def _told(errors: Errors, record: Record) -> dict[str, Any]:
    """Mistakes as a report's card names them: labels and scores; of a false detection also what is there instead."""
    labels = record["truth"]["labels"]
    false = [[record["labels"][n], record["scores"][n], None if g is None else labels[g]] for n, g in errors.false]
    return {"false": false, "missed": [labels[g] for g in errors.missed]}


def _sure(record: Record) -> dict[str, Any]:
    """The detections that are drawn."""
    kept = [i for i, score in enumerate(record["scores"]) if score >= SURE]
    return {key: [record[key][i] for i in kept] for key in ("boxes", "labels", "scores", "masks") if key in record}


def see(task: Detection, recipe: Recipe, sample: Sample, title: str) -> Seen:
    device = next(task.parameters()).device
    [record] = task.predict(collate([transforms(recipe)[1](sample)]).to(device)).values()
    found = _sure(record)

    def pictures() -> "dict[str, Image]":
        from fourstage.report.objects import draw_objects

        assert isinstance(sample.image, np.ndarray), "images come as they were read"
        return {"": draw_objects(sample.image, found, task.classes)}

    rows = zip(found["labels"], found["scores"], strict=True)
    text = in_a_line([f"{task.classes[label]} {score:.0%}" for label, score in rows])
    columns = zip(record["labels"], record["scores"], record["boxes"], strict=True)
    objects = [{"class": task.classes[c], "label": c, "score": score, "box": box} for c, score, box in columns]
    if "masks" in record:
        for one, mask in zip(objects, record["masks"], strict=True):
            one["mask"] = {"size": list(sample.original_size), "counts": mask}
    return Seen(text or "nothing", {"objects": objects}, pictures)


def _own(recipe: Recipe) -> DetectionRecipe:
    assert isinstance(recipe, DetectionRecipe)
    return recipe
