"""From the pixels of images to results by torch, one class for each task. B images, N objects, H x W pixels."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from fourstage.data.sample import Batch, Sample, collate
from fourstage.predict.base import ImagePredictor, ReadImage, Tiling, check_options, label_map_result
from fourstage.predict.memory import LARGE, PROBE, bytes_per_pixel, check_memory
from fourstage.predict.objects import Found, ObjectPredictor
from fourstage.predict.results import SHOWN_SCORE, ClassResult, Result
from fourstage.tasks.classification import Classification
from fourstage.tasks.detection.detector import Detections
from fourstage.tasks.detection.task import Detection
from fourstage.tasks.segmentation.protocol import Protocol
from fourstage.tasks.segmentation.task import Segmentation

Transform: TypeAlias = Callable[[Sample], Sample]


class TorchPredictor(ImagePredictor):
    """Predicts images with a task that is in evaluation mode on its device."""

    def __init__(self, task: nn.Module, transform: Transform) -> None:
        ImagePredictor.__init__(self)
        self.module, self.transform = task, transform

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(getattr(self.module, "classes"))  # noqa: B009 - a module's attributes have no type

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    @property
    def network_name(self) -> str:
        return type(self.module.get_submodule("network")).__name__

    def in_precision(self, precision: str) -> AbstractContextManager[object]:
        """Return the context in which autocast runs operations in a precision."""
        if precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, getattr(torch, precision))

    def check_memory(self, name: str, pixels: int) -> None:
        """Raise ValueError where an image needs more memory in the network than there is."""
        if pixels > LARGE:
            check_memory(name, pixels, self._bytes_per_pixel, self.device)

    @cached_property
    def _bytes_per_pixel(self) -> float:
        return bytes_per_pixel(self.run_probe)

    def run_probe(self) -> None:
        """Run the network on one image of PROBE x PROBE pixels."""
        image_3HW = torch.zeros(3, PROBE, PROBE)
        batch = collate([Sample("probe", image_3HW, (PROBE, PROBE))]).to(self.device)
        assert isinstance(self.module, Detection), "a classifier's images are small"
        self.module.detect(batch)

    def batches(self, images: Sequence[np.ndarray]) -> list[tuple[list[int], Batch]]:
        """Return batches of images of one size each, with the numbers of their images.

        No image gets padding from a larger one beside it, which would change what the network computes.
        """
        samples = [self.transform(Sample(str(i), x_HW3, x_HW3.shape[:2])) for i, x_HW3 in enumerate(images)]
        by_size: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for i, sample in enumerate(samples):
            by_size[tuple(sample.image.shape)].append(i)
        return [(some, collate([samples[i] for i in some]).to(self.device)) for some in by_size.values()]


class ImageClassifier(TorchPredictor):
    """Predicts the most probable classes of images."""

    gives = "classes"
    orient = False  # torchvision and timm train on images as they are stored

    def __init__(self, task: Classification, transform: Transform) -> None:
        super().__init__(task, transform)
        self.task = task

    def predict(self, images: Sequence[ReadImage]) -> list[Result]:
        tops: dict[str, list[list[float]]] = {}
        for _, batch in self.batches([one.pixels_HW3 for one in images]):
            tops |= {id: record["top"] for id, record in self.task.predict(batch).items()}
        return [self._result(one, tops[str(i)]) for i, one in enumerate(images)]

    def _result(self, one: ReadImage, top: Sequence[Sequence[float]]) -> Result:
        labels, scores = zip(*top, strict=True)
        return ClassResult(one.source, one.size, self.task.classes, np.array(labels, np.int64), np.array(scores))


class ImageDetector(TorchPredictor, ObjectPredictor):
    """Predicts the objects in images.

    Args:
        threshold: detections with a lower score are left out.
        tiling: how large images are cut, see `tiles.py`; the tiles of an image pass the network in batches. None: they
            are not cut.
    """

    def __init__(
        self, task: Detection, transform: Transform, threshold: float = SHOWN_SCORE, tiling: Tiling | None = None
    ) -> None:
        ObjectPredictor.__init__(self, threshold, task.category_ids, tiling)
        self.module, self.transform, self.task = task, transform, task

    def detect(self, images: Sequence[np.ndarray], names: Sequence[str]) -> list[Found]:
        """Return the detections in each image, in its pixels."""
        found: dict[int, Detections] = {}
        for numbers, batch in self.batches(images):
            self.check_memory(names[numbers[0]], math.prod(batch.images_BCHW[:, 0].shape))
            found |= zip(numbers, self.task.detect(batch), strict=True)
        return [_as_arrays(found[i]) for i in range(len(images))]


def _as_arrays(found: Detections) -> Found:
    return Found(_array(found.boxes_N4), _array(found.labels_N), _array(found.scores_N), found.masks)


class ImageSegmentor(TorchPredictor):
    """Predicts the class of every pixel of images.

    Args:
        protocol: the sizes and windows that the network reads; None: the task's single-scale protocol.
    """

    gives = "label_map"

    def __init__(self, task: Segmentation, transform: Transform, protocol: Protocol | None = None) -> None:
        super().__init__(task, transform)
        self.task, self.protocol, self.is_tiled = task, protocol, protocol is not None

    def predict(self, images: Sequence[ReadImage]) -> list[Result]:
        for one in images:
            self._check_view(one)
        samples = [self.transform(Sample(str(i), one.pixels_HW3, one.size)) for i, one in enumerate(images)]
        maps = self.task.label_maps(collate(samples), self.protocol, self.progress)
        return [
            label_map_result(one, maps[str(i)].numpy(), self.task.classes, self.task.palette)
            for i, one in enumerate(images)
        ]

    def _check_view(self, one: ReadImage) -> None:
        protocol = self.protocol or self.task.single
        if protocol.window is None:
            self.check_memory(one.source.name, max(math.prod(size) for size in protocol.sizes(one.size)))

    def run_probe(self) -> None:
        self.task.network.coarse(torch.zeros(1, 3, PROBE, PROBE, device=self.device))


def image_predictor(
    task: Classification | Detection | Segmentation,
    transform: Transform,
    threshold: float | None = None,
    tiling: Tiling | None = None,
) -> ImagePredictor:
    """Return what predicts images with a task.

    Args:
        transform: what happens to a validation image.
        threshold: of a detector, see `ImageDetector`; None: the one of pictures.
        tiling: how large images are cut for a detector or a segmentor; None: they are not.

    Raises:
        ValueError: a threshold outside of 0 to 1, one for a network without scores of objects, or tiles for a
            classifier.
    """
    if isinstance(task, Detection):
        lowest = check_options("detection", threshold, tiling)
        return ImageDetector(task, transform, lowest, tiling)
    if isinstance(task, Segmentation):
        check_options("segmentation", threshold, tiling)
        return ImageSegmentor(task, transform, tiling and tiling.windows(task.single))
    check_options("classification", threshold, tiling)
    return ImageClassifier(task, transform)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()
