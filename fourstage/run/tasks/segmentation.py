"""What a run asks of semantic segmentation."""

import math
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fourstage.api import create_segmentor
from fourstage.build import own_values
from fourstage.data.sample import BadImage, Dataset, Sample, collate
from fourstage.data.transforms.segmentation import evaluation_transform, train_transform
from fourstage.methods import AUTO
from fourstage.recipe import Segmentation as SegmentationRecipe
from fourstage.run.checkpoint_classes import open_in_classes_of
from fourstage.run.report_samples import keep, worst_and_others
from fourstage.run.results import LabelMapFolder
from fourstage.run.task_protocol import EvaluationData, Record, Records, TaskProtocol, Transform
from fourstage.run.tasks.class_shares import class_shares, shares_line
from fourstage.streams import wrapped
from fourstage.tasks.segmentation.protocol import Protocol as EvaluationProtocol
from fourstage.tasks.segmentation.task import Segmentation

if TYPE_CHECKING:
    from PIL.Image import Image

ENLARGED = 4  # times the pixels of an image, from which on the protocol is worth a hint
SHOWN = 12  # images whose label maps a run folder keeps: a quarter of them the worst


class SegmentationProtocol(TaskProtocol[SegmentationRecipe, Segmentation]):
    """Images with one label per pixel; evaluated by the single-scale and the multi-scale protocol."""

    truth = "label_map_HW"
    missing_truth = "no label map for each image"
    data_example = (
        "a folder with images/train/*.jpg and masks/train/*.png, ADE20K, Cityscapes, Pascal VOC, or digit_scenes"
    )
    results = LabelMapFolder
    class_columns = (  # pixels; per cent
        ("pixels", 0),
        ("predicted", 0),
        ("iou", 4),
        ("acc", 4),
        ("iou_ms_flip", 4),
    )

    def build_task(self, classes: tuple[str, ...], metadata: Mapping[str, Any] | None = None) -> Segmentation:
        recipe = self.recipe
        arguments = dict(recipe.method_args)
        if arguments.get("prior") == AUTO:
            arguments["prior"] = (metadata or {}).get("prior")
        torch.manual_seed(recipe.seed)
        network: Any = create_segmentor(
            recipe.method, recipe.backbone, len(classes), backbone_args=recipe.backbone_args, **arguments
        )
        task = Segmentation(
            network,
            classes,
            mean=recipe.mean,
            std=recipe.std,
            single=_single_scale(recipe),
            over_valid=recipe.over_valid,
            boundaries=recipe.evaluation.boundary,
        )
        if metadata and metadata.get("palette"):
            task.palette = tuple((int(r), int(g), int(b)) for r, g, b in metadata["palette"])
        return task

    def dataset_metadata(self, dataset: Dataset) -> dict[str, Any]:
        palette = getattr(dataset, "palette", None)
        known: dict[str, Any] = {} if palette is None else {"palette": own_values([list(colour) for colour in palette])}
        if self.recipe.method_args.get("prior") == AUTO:
            known["prior"] = class_shares(dataset)
        return known

    def metadata_lines(self, classes: tuple[str, ...], metadata: Mapping[str, Any]) -> tuple[str, ...]:
        fitted = self.recipe.method_args.get("prior") == AUTO
        return (shares_line(classes, metadata.get("prior")),) if fitted else ()

    def train_transform(self) -> Transform:
        a = self.recipe.augmentation
        return train_transform(
            a.crop,
            mean=self.recipe.mean,
            std=self.recipe.std,
            scale=a.scale,
            ratio=a.ratio,
            most_of_one=a.most_of_one,
            hflip=a.hflip,
            photometric=a.photometric,
        )

    def evaluation_transform(self) -> Transform:
        return evaluation_transform()

    def open_evaluation(self, weights: str | Path, which: str, *, show: bool) -> EvaluationData:
        """Return the validation split, evaluated by both protocols."""
        recipe = self.recipe

        def prepare(task: Segmentation) -> None:
            task.multi = _multi_scale(recipe)

        notes = f"miou_ss: {_single_scale(recipe)}", f"miou_ms_flip: {_multi_scale(recipe)}"
        dataset = open_in_classes_of(self, weights, show=show)
        if show and (hint := hint_on_enlarging(dataset, _single_scale(recipe))):
            print(wrapped(hint), file=sys.stderr)  # before the evaluation, which is slow then
        return EvaluationData(dataset, dict(recipe.expect), prepare, notes=notes)

    def write_report_samples(self, folder: Path, task: Segmentation, val: Dataset, records: Records) -> None:
        """Write images beside their true and their predicted label maps: some drawn evenly, and the worst ones."""
        from fourstage.report.label_maps import colours_of, truth_and_prediction

        classes = len(task.classes)
        right = {id: _share_right(record, classes) for id, record in records.items()}
        colours = colours_of(classes, task.palette)

        def draw(sample: Sample, image_HW3: np.ndarray) -> "tuple[Image, dict[str, Any]]":
            assert sample.label_map_HW is not None, "validation images have label maps"
            truth_HW, predicted_HW = sample.label_map_HW.numpy(), self._label_map(task, sample)
            present = sorted({*np.unique(truth_HW).tolist(), *np.unique(predicted_HW).tolist()})
            legend = [[c, list(colours[c])] for c in present if c < classes]
            picture = truth_and_prediction(image_HW3, truth_HW, predicted_HW, colours)
            return picture, {"right": 100 * right[sample.id], "legend": legend}

        worst = sorted(right, key=lambda id: (right[id], id))
        keep(folder, val, worst_and_others(worst, records, SHOWN), draw)

    def _label_map(self, task: Segmentation, sample: Sample) -> np.ndarray:
        """Return the predicted label map, (H, W) uint8, by the single-scale protocol."""
        plain = Sample(sample.id, sample.image, sample.original_size)
        [labels_HW] = task.label_maps(collate([self.evaluation_transform()(plain)])).values()
        return labels_HW.numpy()


def _single_scale(recipe: SegmentationRecipe) -> EvaluationProtocol:
    e = recipe.evaluation
    return EvaluationProtocol(e.scale, window=e.window, stride=e.stride, divisor=e.divisor)


def _multi_scale(recipe: SegmentationRecipe) -> EvaluationProtocol:
    e = recipe.evaluation
    return replace(_single_scale(recipe), ratios=e.ratios, ratios_of=e.ratios_of, flip=True)


def _share_right(record: Record, classes: int) -> float:
    """Return the share of pixels with a label that are predicted right; 1 where no pixel has a label."""
    pairs, pixels = np.asarray(record["pairs"]), np.asarray(record["pixels"])
    total = int(pixels.sum())
    return float(pixels[pairs // classes == pairs % classes].sum() / total) if total else 1.0


def hint_on_enlarging(dataset: Dataset, protocol: EvaluationProtocol) -> str:
    """Return a line on what to type where a protocol enlarges images much, as the first image shows; else no words."""
    try:
        size = dataset.sample(0).original_size
    except (BadImage, IndexError):  # reported later, with all others
        return ""
    (height, width), factor = protocol.sizes(size)[0], math.prod(protocol.sizes(size)[0]) / math.prod(size)
    if factor < ENLARGED:
        return ""
    return (
        f"note: images such as {dataset.id(0)} ({size[0]} x {size[1]} pixels) are enlarged to {height} x {width} by "
        f"the protocol and take about {factor:.0f} times as long; evaluation.scale=null scores them in their own size"
    )
