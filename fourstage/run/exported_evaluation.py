"""`fourstage evaluate FILE.onnx`: an exported file, scored by the code that scores a run.

The images reach the file as a prediction prepares them. Records, metrics and tables are those of the task, whose
network the file replaces. B images, C classes, H x W pixels.
"""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fourstage.data.mapped_classes import KnownClasses, map_classes
from fourstage.data.sample import Batch, Dataset, Progress
from fourstage.data.transforms.segmentation import evaluation_transform as as_read
from fourstage.engine.devices import join, leave
from fourstage.engine.threads import limited_threads, loader_workers
from fourstage.exported.description import Description, KeepRatio, MiddleCrop, Views
from fourstage.exported.runtime import open_runtime
from fourstage.files import write_text
from fourstage.plurals import plural
from fourstage.predict.exported import ExportedClassifier, ExportedDetector, ExportedSegmentor, exported_predictor
from fourstage.progress import Bar
from fourstage.recipe import Recipe, data_path, from_mapping
from fourstage.recipe import read_yaml as read_values
from fourstage.run.checks import simplified
from fourstage.run.described import NO_TRAINING
from fourstage.run.evaluate import Evaluated, Evaluator, check_csv, checked_results, class_table
from fourstage.run.splits import open_split, readable
from fourstage.run.task_protocol import AnyProtocol, AnyTask, Transform
from fourstage.run.tasks.classification import ClassificationProtocol
from fourstage.run.tasks.detection import DetectionProtocol
from fourstage.run.tasks.segmentation import SegmentationProtocol
from fourstage.tasks.classification import Classification
from fourstage.tasks.detection.detector import Detections
from fourstage.tasks.detection.masks import SmallMasks
from fourstage.tasks.detection.task import Detection
from fourstage.tasks.segmentation.protocol import Protocol
from fourstage.tasks.segmentation.task import Segmentation

AT_ONCE = {"classification": 32, "detection": 2, "segmentation": 2}  # images in a batch
CHANGES = ("evaluation_batch_size", "skip_bad_images", "workers")  # the keys of a recipe that can be changed
PLACEHOLDER = "visformer_digits"  # of the network in the recipe, which is not built


class _Classification(ClassificationProtocol):
    def evaluation_transform(self) -> Transform:
        return as_read()


class _Detection(DetectionProtocol):
    def evaluation_transform(self) -> Transform:
        return as_read()


class _Segmentation(SegmentationProtocol):
    def evaluation_transform(self) -> Transform:
        return as_read()


PROTOCOLS: dict[str, type[AnyProtocol]] = {
    "classification": _Classification,
    "detection": _Detection,
    "segmentation": _Segmentation,
}


def evaluate_exported(
    file: str | Path,
    *,
    data: str | Path | None,
    changes: Iterable[str] = (),
    csv: str | Path | None = None,
    results: str | Path | None = None,
    show: bool = True,
) -> Evaluated:
    """Score an exported file on the validation split; arguments and errors as of `evaluate`.

    Raises:
        ValueError, OSError: also where no data is given, since a file names none.
    """
    if data is None:
        raise ValueError(f"{file} names no data; add --data FOLDER")
    predicts = exported_predictor(open_runtime(file))
    description = predicts.runtime.description
    protocol = PROTOCOLS[description.task](_recipe_of(description, Path(file), data_path(data), changes))
    table = None if csv is None else check_csv(Path(csv), keep=(file,))
    predictions = None if results is None else checked_results(protocol, results, table, (file,))
    ranks, device = join("cpu")
    try:
        known = KnownClasses(description.classes, str(file))
        dataset = open_split(protocol, "val", show=show, mapped=partial(_in_classes_of, known=known))
        val, _, notes = readable(dataset, "val", protocol.recipe, ranks, show=show and ranks.first)
        task = _task_of(predicts)
        with (
            limited_threads(loader_workers(protocol.recipe.workers, device)),
            nullcontext() if predictions is None else predictions.opened(task, dataset, ranks),
        ):
            with Bar("evaluating", len(val), show=show and ranks.first) as bar:
                records = Evaluator(protocol, val, ranks, device).records(task, bar=bar)
            assert records is not None, "nothing asks to stop"
            if predictions is not None and ranks.first:
                predictions.write(task, dataset, records)
        tables = task.tables(records)
        if table is not None and ranks.first:
            write_text(table, class_table(tables["per_class"], protocol.class_columns))
        notes = (*notes, *_notes(predicts))
        return Evaluated(task.score(records), {}, tables, records, len(val), task.intervals(records), notes)
    finally:
        leave()


def _notes(predicts: ExportedClassifier | ExportedDetector | ExportedSegmentor) -> tuple[str, ...]:
    notes = (f"{predicts.runtime.path} by {predicts.runtime.name}",)
    if isinstance(predicts, ExportedSegmentor):
        return (*notes, f"miou_ss: {predicts.protocol}", "an exported file is not scored by the multi-scale protocol")
    return notes


def _in_classes_of(dataset: Dataset, where: str, known: KnownClasses) -> Dataset:
    """Return a data set in the classes of a file: by their names, or by their numbers where no name agrees.

    Raises:
        ValueError: the data set has labels of a class that the file lacks, or another number of classes.
    """
    shared = {simplified(name) for name in dataset.classes} & {simplified(name) for name in known.names}
    if shared:
        return map_classes(dataset, where, known, simplified)
    if len(dataset.classes) != len(known.names):
        raise ValueError(
            f"{where} has {plural(len(dataset.classes), 'class', 'classes')}, and {known.owner} has "
            f"{len(known.names)} of other names; "
            f"give the data that it was trained on with --data"
        )
    return dataset


def _recipe_of(description: Description, file: Path, data: str, changes: Iterable[str]) -> Recipe:
    """Return a recipe that evaluates as the description says. Nothing builds its network."""
    resize, input = description.resize, description.input
    values: dict[str, Any] = {
        "name": "exported",
        "task": description.task,
        "data": data,
        "mean": input.mean,
        "std": input.std,
        "optimisation": NO_TRAINING,
        "evaluation_batch_size": AT_ONCE[description.task],
    }
    match resize:
        case MiddleCrop():
            values |= {"model": PLACEHOLDER, "image_size": resize.size, "interpolation": resize.interpolation}
        case KeepRatio():
            values |= {"method": "retinanet", "evaluation": {"scale": resize.scale, "limits": description.limits}}
        case Views():
            names = ("scale", "window", "stride", "divisor")
            views = {name: getattr(resize, name) for name in names} | {"boundary": description.boundary}
            values |= {"method": "upernet", "evaluation": views}
    if description.task != "classification":
        values["backbone"] = PLACEHOLDER
    return from_mapping(values | _changed(changes, file), str(file)).recipe


def _changed(changes: Iterable[str], file: Path) -> dict[str, Any]:
    """Return the changes of the keys that do not change what a file computes. Raises ValueError for others."""
    values: dict[str, Any] = {}
    for text in changes:
        key, _, value = text.partition("=")
        if key not in CHANGES:
            raise ValueError(
                f"{file} is an exported file, of which only {', '.join(CHANGES)} can be set; leave {text} out"
            )
        values |= read_values(f"{key}: {value}", text)
    return values


# ------------------------------------------------------------------------------------------ the tasks, without networks


class _NoNetwork(nn.Module):
    """Stands where a task has its network."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes


class ExportedClassification(Classification):
    """Classification by an exported file."""

    def __init__(self, predicts: ExportedClassifier) -> None:
        super().__init__(_NoNetwork(len(predicts.class_names)), predicts.class_names)
        self.predicts = predicts

    def _logits(self, batch: Batch) -> Tensor:
        return torch.from_numpy(self.predicts.logits(_images(batch)))


class ExportedDetection(Detection):
    """Detection by an exported file."""

    def __init__(self, predicts: ExportedDetector) -> None:
        network: Any = _NoNetwork(len(predicts.class_names))
        description = predicts.runtime.description
        super().__init__(network, predicts.class_names, description.limits, description.category_ids)
        self.predicts = predicts

    def detect(self, batch: Batch) -> Sequence[Detections]:
        out = []
        for one in self.predicts.decoded(_images(batch)):
            boxes_N4, labels_N, scores_N = map(torch.from_numpy, (one.boxes_N4, one.labels_N, one.scores_N))
            masks = None
            if one.masks is not None:
                cells_NMM = torch.from_numpy(one.masks.probabilities_NMM)
                masks = SmallMasks(cells_NMM, boxes_N4, one.masks.size, one.masks.threshold)
            out.append(Detections(boxes_N4, labels_N, scores_N, masks))
        return out


class ExportedSegmentation(Segmentation):
    """Segmentation by an exported file."""

    def __init__(self, predicts: ExportedSegmentor) -> None:
        network: Any = _NoNetwork(len(predicts.class_names))
        description, input = predicts.runtime.description, predicts.runtime.description.input
        super().__init__(network, predicts.class_names, mean=input.mean, std=input.std, boundaries=description.boundary)
        self.predicts, self.single, self.palette = predicts, predicts.protocol, description.palette

    def label_maps(
        self, batch: Batch, protocol: Protocol | None = None, progress: Progress | None = None
    ) -> dict[str, Tensor]:
        assert protocol in (None, self.single), "the file has one view of an image"
        maps = [torch.from_numpy(self.predicts.label_map(pixels_HW3)) for pixels_HW3 in _images(batch)]
        return dict(zip(batch.ids, maps, strict=True))


def _task_of(predicts: ExportedClassifier | ExportedDetector | ExportedSegmentor) -> AnyTask:
    match predicts:
        case ExportedClassifier():
            return ExportedClassification(predicts)
        case ExportedDetector():
            return ExportedDetection(predicts)
        case _:
            return ExportedSegmentation(predicts)


def _images(batch: Batch) -> list[np.ndarray]:
    """Return the images of a batch as they were read, (H, W, 3) uint8, without padding."""
    sizes: Iterable[tuple[int, int]] = batch.original_sizes
    return [
        np.ascontiguousarray(x_3HW[:, :height, :width].permute(1, 2, 0).numpy())
        for x_3HW, (height, width) in zip(batch.images_BCHW, sizes, strict=True)
    ]
