"""What a run asks of detection."""

from collections.abc import Callable, Mapping
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from fourstage.api import create_detector
from fourstage.build import own_values
from fourstage.data.bad_images import with_replacements
from fourstage.data.objects.dataset import ObjectDataset, portrait_flags, trainable
from fourstage.data.sample import Dataset, Sample, collate
from fourstage.data.transforms.detection import evaluation_transform, train_transform
from fourstage.methods import AUTO, find_method
from fourstage.recipe import Detection as DetectionRecipe
from fourstage.run.checkpoint_classes import open_in_classes_of
from fourstage.run.report_samples import keep, worst_and_others
from fourstage.run.results import CocoFile
from fourstage.run.splits import open_split
from fourstage.run.task_protocol import EvaluationData, Record, Records, TaskProtocol, Transform
from fourstage.tasks.detection.errors import SHOWN_SCORE, Errors, find_errors
from fourstage.tasks.detection.task import Detection

if TYPE_CHECKING:
    from PIL.Image import Image

DRAWN_QUERIES = 4  # queries whose points a picture shows
SHOWN = 12  # images whose detections a run folder keeps: a quarter of them the worst


class DetectionProtocol(TaskProtocol[DetectionRecipe, Detection]):
    """Images with boxes, and with masks where data and method have them."""

    truth = "objects"
    missing_truth = "no boxes"
    data_example = "a folder in COCO's, YOLO's or Pascal VOC's layout, or digit_scenes"
    results = CocoFile
    class_columns = (  # objects; per cent
        ("count", 0),
        *((f"{form}_{name}", 4) for form in ("box", "mask") for name in ("map", "map50", "map75", "recall")),
    )

    def build_task(self, classes: tuple[str, ...], metadata: Mapping[str, Any] | None = None) -> Detection:
        """Build the recipe's detector; where the data has no masks, a method that can work on boxes alone does."""
        recipe, arguments = self.recipe, self._method_args()
        torch.manual_seed(recipe.seed)
        can_do_without = find_method(recipe.method, "detection").without_masks is not None
        if can_do_without and metadata and not metadata.get("masks", True):
            arguments.setdefault("masks", False)
        if arguments.get("queries") == AUTO and metadata and "queries" in metadata:
            arguments["queries"] = metadata["queries"]
        network: Any = create_detector(
            recipe.method, recipe.backbone, len(classes), backbone_args=recipe.backbone_args, **arguments
        )
        ids = (metadata or {}).get("category_ids")
        return Detection(network, classes, recipe.evaluation.limits, ids if ids and len(ids) == len(classes) else None)

    def _method_args(self) -> dict[str, Any]:
        """Return what the recipe sets of the detector; null stands for a default, as in `create_detector`."""
        return {name: value for name, value in self.recipe.method_args.items() if value is not None}

    def dataset_metadata(self, dataset: Dataset) -> dict[str, Any]:
        ids = own_values([*getattr(dataset, "category_ids", ())])
        known: dict[str, Any] = {"category_ids": ids} if ids and all(type(id) is int for id in ids) else {}
        if self._method_args().get("queries") == AUTO:
            known |= self._queries_for(dataset)
        return {"masks": bool(getattr(dataset, "has_masks", False)), **known}

    def metadata_lines(self, classes: tuple[str, ...], metadata: Mapping[str, Any]) -> tuple[str, ...]:
        queries = metadata.get("queries")
        return () if queries is None else (f"queries {queries}: fitted to the most objects in a training image",)

    def _queries_for(self, dataset: Dataset) -> dict[str, int]:
        """Return the number of queries that suits the data, where the method has one for "auto"."""
        address = find_method(self.recipe.method, "detection").auto_queries
        return {} if address is None else {"queries": resolve_name(address)(_most_objects(dataset))}

    def data_notes(self, dataset: Dataset) -> tuple[str, ...]:
        return (*self._notes_on_masks(dataset), *self._notes_on_objects(dataset))

    def _notes_on_objects(self, dataset: Dataset) -> tuple[str, ...]:
        """Return what the method cannot learn of the image with most objects."""
        recipe, address = self.recipe, find_method(self.recipe.method, "detection").data_notes
        if address is None:
            return ()
        return tuple(resolve_name(address)(self._method_args(), recipe.data, _most_objects(dataset)))

    def _notes_on_masks(self, dataset: Dataset) -> tuple[str, ...]:
        recipe = self.recipe
        without_masks = find_method(recipe.method, "detection").without_masks
        if without_masks is None or not self._method_args().get("masks", True) or getattr(dataset, "has_masks", False):
            return ()
        return (f"no object of {recipe.data} has a mask: only boxes are trained and scored, as in {without_masks}.",)

    def count_training_images(self, dataset: Dataset) -> int:
        with_objects = int(np.count_nonzero(cast(ObjectDataset, dataset).counts()))
        return with_objects if self.recipe.filter_empty and with_objects else len(dataset)

    def training_data(self, dataset: Dataset) -> Dataset:
        skip, objects = self.recipe.skip_bad_images, cast(ObjectDataset, dataset)
        return trainable(objects, filter_empty=self.recipe.filter_empty, skip_bad_images=skip)

    def batch_groups(self, dataset: Dataset) -> bytes:
        if not self.recipe.group_by_aspect:
            return b""
        return portrait_flags(cast(ObjectDataset, dataset), skip_bad_images=self.recipe.skip_bad_images)

    def train_transform(self) -> Transform:
        recipe, a = self.recipe, self.recipe.augmentation
        return train_transform(
            a.policy,
            mean=recipe.mean,
            std=recipe.std,
            scale=a.scale,
            short_sides=a.short_sides,
            first_sides=a.first_sides,
            crop=a.crop,
            jitter=a.jitter,
            hflip=a.hflip,
            crop_prob=a.crop_prob,
            paste_from=self._pasted() if a.copy_paste else None,
        )

    def _pasted(self) -> Dataset:
        """Return the images whose objects copy-paste takes: those that train. Raises ValueError for boxes alone."""
        recipe, dataset = self.recipe, open_split(self, "train", show=False)
        if not getattr(dataset, "has_masks", False):
            raise ValueError(
                f"augmentation.copy_paste=true pastes objects by their masks, but no object of {recipe.data} has one; "
                f"write augmentation.copy_paste=false"
            )
        # Headers that cannot be read are reported with all other faults of the images.
        dataset = trainable(cast(ObjectDataset, dataset), filter_empty=recipe.filter_empty, skip_bad_images=True)
        return with_replacements(dataset) if recipe.skip_bad_images else dataset

    def evaluation_transform(self) -> Transform:
        return evaluation_transform(self.recipe.evaluation.scale, mean=self.recipe.mean, std=self.recipe.std)

    @property
    def size_divisor(self) -> int:
        a = self.recipe.augmentation
        return max(a.scale) if a.policy == "large_scale_jitter" else 32

    def open_evaluation(self, weights: str | Path, which: str, *, show: bool) -> EvaluationData:
        return EvaluationData(open_in_classes_of(self, weights, show=show), dict(self.recipe.expect))

    def write_report_samples(self, folder: Path, task: Detection, val: Dataset, records: Records) -> None:
        """Write images with their true and their predicted objects: some drawn evenly, and the worst ones."""
        from fourstage.report.objects import draw_objects, side_by_side

        errors = {id: find_errors(record) for id, record in records.items()}
        worst = [id for id in sorted(errors, key=lambda id: (-errors[id].weight, id)) if errors[id].weight > 0]

        def draw(sample: Sample, image_HW3: np.ndarray) -> "tuple[Image, dict[str, Any]]":
            record = records[sample.id]
            truth, detections = record["truth"], _confident(record)
            left = draw_objects(image_HW3, {**truth, "scores": None}, task.classes)
            right = draw_objects(image_HW3, detections, task.classes)
            counts = {"true": len(truth["labels"]), "found": len(detections["labels"])}
            sheet = side_by_side(left, right)
            query_points = find_method(self.recipe.method, "detection").query_points
            if query_points is not None:
                drawn = self._draw_query_points(resolve_name(query_points), task, sample, image_HW3)
                sheet = side_by_side(sheet, drawn)
            return sheet, {**counts, **_mistakes(errors[sample.id], record)}

        keep(folder, val, worst_and_others(worst, records, SHOWN), draw)

    def _draw_query_points(
        self, best_query_points: Callable[..., Any], task: Detection, sample: Sample, image_HW3: np.ndarray
    ) -> "Image":
        """Draw the points that the queries of the best detections sample, with their boxes."""
        from fourstage.report.objects import draw_objects, draw_query_points

        batch = collate([self.evaluation_transform()(sample)]).to(next(task.parameters()).device)
        best = best_query_points(task.network, batch, DRAWN_QUERIES)
        shown = [i for i, score in enumerate(best.scores_Q.tolist()) if score >= SHOWN_SCORE]
        objects = {"boxes": best.boxes_Q4[shown].tolist(), "labels": best.labels_Q[shown].tolist()}
        picture = draw_objects(image_HW3, {**objects, "scores": None}, task.classes)
        names = ("label", "points", "weights")
        rows = zip(objects["labels"], best.points_QS2[shown].tolist(), best.weights_QS[shown].tolist(), strict=True)
        draw_query_points(
            picture, [dict(zip(names, row, strict=True)) for row in rows], image_HW3.shape[1], len(task.classes)
        )
        return picture


def _most_objects(dataset: Dataset) -> int:
    """Return the objects of the fullest image."""
    return int(cast(ObjectDataset, dataset).counts().max(initial=0))


def _mistakes(errors: Errors, record: Record) -> dict[str, Any]:
    """Return mistakes as a card of the report has them: labels and scores, and the true label below a false one."""
    labels = record["truth"]["labels"]
    false = [[record["labels"][n], record["scores"][n], None if g is None else labels[g]] for n, g in errors.false]
    return {"false": false, "missed": [labels[g] for g in errors.missed]}


def _confident(record: Record) -> dict[str, Any]:
    """Return the detections that are drawn."""
    kept = [i for i, score in enumerate(record["scores"]) if score >= SHOWN_SCORE]
    return {key: [record[key][i] for i in kept] for key in ("boxes", "labels", "scores", "masks") if key in record}
