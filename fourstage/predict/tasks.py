"""From the pixels of images to results, one class for each task. B images, N objects, H x W pixels."""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from fourstage.data.sample import Batch, Sample, collate
from fourstage.predict.images import InputImage
from fourstage.predict.masks import ObjectMasks
from fourstage.predict.results import SHOWN_SCORE, ClassResult, LabelMapResult, ObjectResult, Result
from fourstage.tasks.classification import Classification
from fourstage.tasks.detection.detector import Detections
from fourstage.tasks.detection.task import Detection
from fourstage.tasks.segmentation.task import Segmentation

Transform: TypeAlias = Callable[[Sample], Sample]


@dataclass(frozen=True)
class ReadImage:
    """An image with its pixels, (H, W, 3) uint8 RGB."""

    source: InputImage
    pixels_HW3: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        return int(self.pixels_HW3.shape[0]), int(self.pixels_HW3.shape[1])

    @property
    def sample(self) -> Sample:
        return Sample(self.source.name, self.pixels_HW3, self.size)


class ImagePredictor(ABC):
    """Predicts images with a task that is in evaluation mode on its device.

    Attributes:
        orient: whether images are rotated by their EXIF data, as the task's training data is.
    """

    orient = True

    def __init__(self, task: nn.Module, transform: Transform) -> None:
        self.module, self.transform = task, transform

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    @abstractmethod
    def predict(self, images: Sequence[ReadImage]) -> list[Result]:
        """Return the result of each image, as if each came alone."""

    def batches(self, images: Sequence[np.ndarray]) -> list[tuple[list[int], Batch]]:
        """Return batches of images of one size each, with the numbers of their images.

        No image gets padding from a larger one beside it, which would change what the network computes.
        """
        samples = [self.transform(Sample(str(i), x_HW3, x_HW3.shape[:2])) for i, x_HW3 in enumerate(images)]
        by_size: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for i, sample in enumerate(samples):
            by_size[tuple(sample.image.shape)].append(i)
        return [(some, collate([samples[i] for i in some]).to(self.device)) for some in by_size.values()]


class ImageClassifier(ImagePredictor):
    """Predicts the most probable classes of images."""

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


class ImageDetector(ImagePredictor):
    """Predicts the objects in images.

    Args:
        threshold: detections with a lower score are left out.
    """

    def __init__(self, task: Detection, transform: Transform, threshold: float = SHOWN_SCORE) -> None:
        super().__init__(task, transform)
        self.task, self.threshold = task, threshold

    def predict(self, images: Sequence[ReadImage]) -> list[Result]:
        found = self.detect([one.pixels_HW3 for one in images])
        return [self._result(one, detections) for one, detections in zip(images, found, strict=True)]

    def detect(self, images: Sequence[np.ndarray]) -> list[Detections]:
        """Return the detections in each image, in its pixels."""
        found: dict[int, Detections] = {}
        for numbers, batch in self.batches(images):
            found |= zip(numbers, self.task.detect(batch), strict=True)
        return [found[i] for i in range(len(images))]

    def _result(self, one: ReadImage, detections: Detections) -> Result:
        scores_N = _array(detections.scores_N)
        kept = (~(scores_N < self.threshold)).nonzero()[0]
        masks = None if detections.masks is None else ObjectMasks.of(detections.masks, kept.tolist())
        return self.result(
            one, _array(detections.labels_N)[kept], scores_N[kept], _array(detections.boxes_N4)[kept], masks
        )

    def result(
        self,
        one: ReadImage,
        labels_N: np.ndarray,
        scores_N: np.ndarray,
        boxes_N4: np.ndarray,
        masks: ObjectMasks | None,
    ) -> Result:
        """Return the objects of an image as its result."""
        shown, ids = self.threshold or SHOWN_SCORE, self.task.category_ids
        return ObjectResult(one.source, one.size, self.task.classes, labels_N, scores_N, boxes_N4, masks, shown, ids)


class ImageSegmentor(ImagePredictor):
    """Predicts the class of every pixel of images, by the task's single-scale protocol."""

    def __init__(self, task: Segmentation, transform: Transform) -> None:
        super().__init__(task, transform)
        self.task = task

    def predict(self, images: Sequence[ReadImage]) -> list[Result]:
        maps: dict[str, Tensor] = {}
        samples = [self.transform(Sample(str(i), one.pixels_HW3, one.size)) for i, one in enumerate(images)]
        maps = self.task.label_maps(collate(samples))
        return [self._result(one, maps[str(i)].numpy()) for i, one in enumerate(images)]

    def _result(self, one: ReadImage, labels_HW: np.ndarray) -> Result:
        pixels_C = np.bincount(labels_HW.reshape(-1), minlength=1)
        labels = pixels_C.nonzero()[0]
        order = labels[np.argsort(-pixels_C[labels], kind="stable")]
        shares = pixels_C[order] / labels_HW.size
        palette = self.task.palette
        return LabelMapResult(one.source, one.size, self.task.classes, order, labels_HW, shares, palette)


def image_predictor(
    task: Classification | Detection | Segmentation, transform: Transform, threshold: float | None = None
) -> ImagePredictor:
    """Return what predicts images with a task.

    Args:
        transform: what happens to a validation image.
        threshold: of a detector, see `ImageDetector`; None: the one of pictures.

    Raises:
        ValueError: a threshold outside of 0 to 1, or one for a network without scores of objects.
    """
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(f"threshold is a score from 0 to 1; got {threshold}")
    if isinstance(task, Detection):
        return ImageDetector(task, transform, SHOWN_SCORE if threshold is None else threshold)
    if threshold is not None:
        raise ValueError("threshold is for the scores of a detector, and this network finds no objects; leave it out")
    return ImageClassifier(task, transform) if isinstance(task, Classification) else ImageSegmentor(task, transform)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()
