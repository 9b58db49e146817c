"""From the pixels of images to results, one class for each task. B images, N objects, H x W pixels."""

import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from fourstage.data.sample import Batch, Sample, collate
from fourstage.predict.images import InputImage
from fourstage.predict.masks import ObjectMasks
from fourstage.predict.memory import LARGE, PROBE, bytes_per_pixel, check_memory
from fourstage.predict.results import SHOWN_SCORE, ClassResult, LabelMapResult, ObjectResult, Result
from fourstage.predict.tiles import Box, Grid, TileObjects, check_tiles, join
from fourstage.tasks.classification import Classification
from fourstage.tasks.detection.detector import Detections
from fourstage.tasks.detection.masks import SmallMasks
from fourstage.tasks.detection.task import Detection
from fourstage.tasks.segmentation.protocol import Protocol
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


@dataclass(frozen=True)
class Tiling:
    """How large images are cut.

    Attributes:
        side: height and width of a tile, pixels.
        overlap: the share of a tile that the next one shows too.
        batch_size: tiles of a detector that pass the network together.

    Raises:
        ValueError: a side or an overlap that no tiles can have.
    """

    side: int
    overlap: float = 0.2
    batch_size: int = 4

    def __post_init__(self) -> None:
        check_tiles(self.side, self.overlap)

    def windows(self, protocol: Protocol) -> Protocol:
        """Return a segmentor's protocol with windows of this size, over images of their own size."""
        step = max(1, math.floor(self.side * (1 - self.overlap)))
        divisor = min(protocol.divisor, self.side)
        return replace(protocol, scale=None, window=(self.side, self.side), stride=(step, step), divisor=divisor)


class ImagePredictor(ABC):
    """Predicts images with a task that is in evaluation mode on its device.

    Attributes:
        is_tiled: whether images are cut, so that one of them may take long.
        orient: whether images are rotated by their EXIF data, as the task's training data is.
        progress: is called with the tiles of an image that are done and all of them; a segmentor counts its pixels.
    """

    orient = True
    is_tiled = False

    def __init__(self, task: nn.Module, transform: Transform) -> None:
        self.module, self.transform = task, transform
        self.progress: Callable[[int, int], None] = ignore_progress

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    @abstractmethod
    def predict(self, images: Sequence[ReadImage]) -> list[Result]:
        """Return the result of each image, as if each came alone."""

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
        found = self.detect([one.pixels_HW3 for one in images], [one.source.name for one in images])
        return [self._result(one, detections) for one, detections in zip(images, found, strict=True)]

    def detect(self, images: Sequence[np.ndarray], names: Sequence[str]) -> list[Detections]:
        """Return the detections in each image, in its pixels."""
        found: dict[int, Detections] = {}
        for numbers, batch in self.batches(images):
            self.check_memory(names[numbers[0]], math.prod(batch.images_BCHW[:, 0].shape))
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


class TiledDetector(ImageDetector):
    """Predicts the objects in images of any size, tile by tile; see `tiles.py`.

    Args:
        tiling: how images are cut. The tiles of an image pass the network in batches.
    """

    is_tiled = True

    def __init__(self, task: Detection, transform: Transform, threshold: float, tiling: "Tiling") -> None:
        super().__init__(task, transform, threshold)
        self.tiling = tiling

    def predict(self, images: Sequence[ReadImage]) -> list[Result]:
        return [self._joined(one) for one in images]

    def _joined(self, one: ReadImage) -> Result:
        grid, threshold = Grid.of(one.size, self.tiling.side, self.tiling.overlap), self.threshold
        parts = [_TileDetections.of(found, tile, box, threshold) for tile, box, found in self._each_tile(one, grid)]
        columns = ("boxes_N4", "labels_N", "scores_N", "tile_N")
        objects = join(
            grid, TileObjects(*(np.concatenate([getattr(part, name) for part in parts]) for name in columns))
        )
        masks = _joined_masks([part.masks for part in parts], one.size, objects.members)
        return self.result(one, objects.labels_N, objects.scores_N, objects.boxes_N4, masks)

    def _each_tile(self, one: ReadImage, grid: Grid) -> Iterator[tuple[int, Box, Detections]]:
        """Yield the number, the rectangle and the detections of each tile."""
        tiles = list(enumerate(grid.boxes))
        for first in range(0, len(tiles), self.tiling.batch_size):
            some = tiles[first : first + self.tiling.batch_size]
            crops = [one.pixels_HW3[int(y1) : int(y2), int(x1) : int(x2)] for _, (x1, y1, x2, y2) in some]
            for (number, box), found in zip(some, self.detect(crops, [one.source.name] * len(some)), strict=True):
                yield number, box, found
            self.progress(first + len(some), len(tiles))


@dataclass(frozen=True, eq=False)
class _TileDetections:
    """The detections in one tile, in pixels of the complete image."""

    boxes_N4: np.ndarray
    labels_N: np.ndarray
    scores_N: np.ndarray
    tile_N: np.ndarray
    masks: SmallMasks | None

    @staticmethod
    def of(found: Detections, tile: int, box: Box, threshold: float) -> "_TileDetections":
        scores_N = _array(found.scores_N)
        kept = (~(scores_N < threshold)).nonzero()[0]
        offset_4 = np.array([box[0], box[1], box[0], box[1]], dtype=np.float32)
        boxes_N4, masks = _array(found.boxes_N4)[kept] + offset_4, None
        if found.masks is not None:
            masks = ObjectMasks.of(found.masks, kept.tolist()).pieces
            masks = replace(masks, boxes_N4=masks.boxes_N4 + torch.from_numpy(offset_4))
        return _TileDetections(boxes_N4, _array(found.labels_N)[kept], scores_N[kept], np.full(len(kept), tile), masks)


def _joined_masks(
    parts: Sequence[SmallMasks | None], size: tuple[int, int], members: tuple[tuple[int, ...], ...]
) -> ObjectMasks | None:
    """Return the masks of joined objects from those of all tiles; None: the network gives boxes alone."""
    masks = [part for part in parts if part is not None]
    if not masks:
        return None
    probabilities_NMM, boxes_N4 = (
        torch.cat([getattr(part, name) for part in masks]) for name in ("probabilities_NMM", "boxes_N4")
    )
    return ObjectMasks(SmallMasks(probabilities_NMM, boxes_N4, size, masks[0].threshold), members)


class ImageSegmentor(ImagePredictor):
    """Predicts the class of every pixel of images.

    Args:
        protocol: the sizes and windows that the network reads; None: the task's single-scale protocol.
    """

    def __init__(self, task: Segmentation, transform: Transform, protocol: Protocol | None = None) -> None:
        super().__init__(task, transform)
        self.task, self.protocol, self.is_tiled = task, protocol, protocol is not None

    def predict(self, images: Sequence[ReadImage]) -> list[Result]:
        for one in images:
            self._check_view(one)
        samples = [self.transform(Sample(str(i), one.pixels_HW3, one.size)) for i, one in enumerate(images)]
        maps = self.task.label_maps(collate(samples), self.protocol, self.progress)
        return [self._result(one, maps[str(i)].numpy()) for i, one in enumerate(images)]

    def _check_view(self, one: ReadImage) -> None:
        protocol = self.protocol or self.task.single
        if protocol.window is None:
            self.check_memory(one.source.name, max(math.prod(size) for size in protocol.sizes(one.size)))

    def run_probe(self) -> None:
        self.task.network.coarse(torch.zeros(1, 3, PROBE, PROBE, device=self.device))

    def _result(self, one: ReadImage, labels_HW: np.ndarray) -> Result:
        pixels_C = np.bincount(labels_HW.reshape(-1), minlength=1)
        labels = pixels_C.nonzero()[0]
        order = labels[np.argsort(-pixels_C[labels], kind="stable")]
        shares = pixels_C[order] / labels_HW.size
        palette = self.task.palette
        return LabelMapResult(one.source, one.size, self.task.classes, order, labels_HW, shares, palette)


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
    if threshold is not None and not (isinstance(threshold, int | float) and 0 <= threshold <= 1):
        raise ValueError(f"threshold is a score from 0 to 1; got {threshold!r}")
    if isinstance(task, Detection):
        lowest = SHOWN_SCORE if threshold is None else threshold
        return TiledDetector(task, transform, lowest, tiling) if tiling else ImageDetector(task, transform, lowest)
    if threshold is not None:
        raise ValueError("threshold is for the scores of a detector, and this network finds no objects; leave it out")
    if isinstance(task, Segmentation):
        return ImageSegmentor(task, transform, tiling and tiling.windows(task.single))
    if tiling is not None:
        raise ValueError(
            "tile is for detectors and segmentors, and a classifier sees an image as a whole; leave it out"
        )
    return ImageClassifier(task, transform)


def ignore_progress(done: int, total: int) -> None:
    """Show nothing."""


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()
