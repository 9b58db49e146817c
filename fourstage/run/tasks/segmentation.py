"""What a run asks of semantic segmentation; see `kinds`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fourstage.api import create_segmentor, load_checkpoint
from fourstage.data.sample import Batch, Dataset, Sample, collate
from fourstage.data.transforms.segmentation import evaluation_transform, train_transform
from fourstage.recipe import Recipe
from fourstage.recipe import Segmentation as SegmentationRecipe
from fourstage.run.build import run_imports
from fourstage.run.checks import check_same_classes, check_truth
from fourstage.run.complete_checkpoints import classes_in, recipe_with_weights
from fourstage.run.report_samples import in_a_line, keep, worst_and_others
from fourstage.run.splits import open_split
from fourstage.run.task_protocol import Opened, Records, Seen, Transform
from fourstage.tasks.segmentation.protocol import Protocol
from fourstage.tasks.segmentation.task import Segmentation
from fourstage.weights.complete_checkpoints import fill_completely
from fourstage.weights.reading.safe import read_checkpoint

if TYPE_CHECKING:
    from PIL.Image import Image

TRUTH = "label_map_HW"
COLUMNS = (("pixels", 0), ("predicted", 0), ("iou", 4), ("acc", 4), ("iou_ms_flip", 4))  # the last three in per cent
SHOWN = 12  # images whose label maps a run folder keeps: half of them the worst


def check_data(recipe: Recipe, dataset: Dataset) -> None:
    give = "a folder with images/train/*.jpg and masks/train/*.png, ADE20K, Cityscapes, Pascal VOC, or digit_scenes"
    check_truth(recipe, dataset, TRUTH, "no label map for each image", give)


def about(dataset: Dataset) -> dict[str, Any]:
    palette = getattr(dataset, "palette", None)
    return {"palette": [list(colour) for colour in palette]} if palette is not None else {}


def unusual(recipe: Recipe, dataset: Dataset) -> tuple[str, ...]:
    return ()


def build_task(recipe: Recipe, classes: tuple[str, ...], about: Mapping[str, Any] | None = None) -> Segmentation:
    own = _own(recipe)
    torch.manual_seed(own.seed)
    network: Any = create_segmentor(
        own.method, own.backbone, len(classes), backbone_args=own.backbone_args, **own.method_args
    )
    task = Segmentation(
        network,
        classes,
        mean=own.mean,
        std=own.std,
        single=_single(own),
        over_valid=own.over_valid,
        boundaries=own.evaluation.boundary,
    )
    if about and about.get("palette"):
        task.palette = tuple((int(r), int(g), int(b)) for r, g, b in about["palette"])
    return task


def _single(own: SegmentationRecipe) -> Protocol:
    e = own.evaluation
    return Protocol(e.scale, window=e.window, stride=e.stride, divisor=e.divisor)


def _multi(own: SegmentationRecipe) -> Protocol:
    return replace(_single(own), ratios=own.evaluation.ratios, ratios_of=own.evaluation.ratios_of, flip=True)


def start_from(task: Segmentation, weights: str) -> str:
    return f"starting from {load_checkpoint(task.network, weights, fresh_head=True)}"


def transforms(recipe: Recipe) -> tuple[Transform, Transform]:
    own, a = _own(recipe), _own(recipe).augmentation
    train = train_transform(
        a.crop,
        mean=own.mean,
        std=own.std,
        scale=a.scale,
        ratio=a.ratio,
        most_of_one=a.most_of_one,
        hflip=a.hflip,
        photometric=a.photometric,
    )
    return train, evaluation_transform()


def for_training(recipe: Recipe, dataset: Dataset) -> Dataset:
    return dataset


def groups(recipe: Recipe, dataset: Dataset) -> bytes:
    return b""


def divisor(recipe: Recipe) -> int:
    return 1


def mixing(recipe: Recipe, classes: int, part: int) -> Callable[[Batch], Batch] | None:
    return None


def repeats(recipe: Recipe) -> int:
    return 1


def load(task: Segmentation, weights: str | Path, which: str) -> None:
    file = read_checkpoint(weights)
    fill_completely(task.network, file, which)
    check_same_classes(weights, file, task.classes)


def open_evaluation(recipe: Recipe, weights: str | Path, which: str, *, show: bool) -> Opened:
    """The validation split, seen by both protocols."""
    own = _own(recipe)

    def tell(task: Segmentation) -> None:
        task.multi = _multi(own)

    notes = f"miou_ss: {_single(own)}", f"miou_ms_flip: {_multi(own)}"
    return Opened(open_split(recipe, "val", show=show), dict(recipe.expect), tell, notes=notes)


def class_names(task: Segmentation) -> Sequence[str]:
    return task.classes


def named(model: str, weights: str | Path | None) -> tuple[Recipe, Segmentation]:
    """The segmentor of a recipe, which is named or a file, with weights from anyone who trained one."""
    recipe, file, about = recipe_with_weights(model, weights)
    run_imports(recipe)
    task = build_task(recipe, classes_in(file, recipe), about)
    fill_completely(task.network, file)
    return recipe, task


def keep_samples(folder: Path, task: Segmentation, recipe: Recipe, val: Dataset, records: Records) -> None:
    """Images beside their true and their predicted label maps: the worst ones, and others from all over the data."""
    from fourstage.report.label_maps import colours_of, truth_and_prediction

    classes = len(task.classes)
    right = {id: _share_right(record, classes) for id, record in records.items()}
    colours = colours_of(classes, task.palette)

    def draw(sample: Sample, image_HW3: np.ndarray) -> "tuple[Image, dict[str, Any]]":
        assert sample.label_map_HW is not None, "validation images have label maps"
        truth_HW, guess_HW = sample.label_map_HW.numpy(), _label_map(task, recipe, sample)
        there = sorted({*np.unique(truth_HW).tolist(), *np.unique(guess_HW).tolist()})
        legend = [[c, list(colours[c])] for c in there if c < classes]
        picture = truth_and_prediction(image_HW3, truth_HW, guess_HW, colours)
        return picture, {"right": 100 * right[sample.id], "legend": legend}

    worst = sorted(right, key=lambda id: (right[id], id))
    keep(folder, val, worst_and_others(worst, records, SHOWN), draw)


def _share_right(record: Mapping[str, Any], classes: int) -> float:
    pairs, pixels = np.asarray(record["pairs"]), np.asarray(record["pixels"])
    total = int(pixels.sum())
    return float(pixels[pairs // classes == pairs % classes].sum() / total) if total else 1.0


def see(task: Segmentation, recipe: Recipe, sample: Sample, title: str) -> Seen:
    from fourstage.report.label_maps import colours_of, index_picture, overlay_with_legend

    guess_HW = _label_map(task, recipe, sample)
    found, pixels = np.unique(guess_HW, return_counts=True)
    order = np.argsort(-pixels, kind="stable")
    shares = [(task.classes[int(found[i])], float(pixels[i] / guess_HW.size)) for i in order]
    colours = colours_of(len(task.classes), task.palette)

    def pictures() -> "dict[str, Image]":
        assert isinstance(sample.image, np.ndarray), "images come as they were read"
        return {
            "": overlay_with_legend(sample.image, guess_HW, task.classes, colours, title),
            "_labels": index_picture(guess_HW, colours),
        }

    text = in_a_line([f"{name} {share:.1%}" for name, share in shares])
    return Seen(text, {"classes": [{"class": name, "share": share} for name, share in shares]}, pictures)


def _label_map(task: Segmentation, recipe: Recipe, sample: Sample) -> np.ndarray:
    """(H, W) uint8, by the protocol of one view."""
    plain = Sample(sample.id, sample.image, sample.original_size)
    [labels_HW] = task.label_maps(collate([transforms(recipe)[1](plain)])).values()
    return labels_HW.numpy()


def _own(recipe: Recipe) -> SegmentationRecipe:
    assert isinstance(recipe, SegmentationRecipe)
    return recipe
