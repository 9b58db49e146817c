"""What predictors of all networks share, with torch and without. H x W pixels."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from math import floor
from numbers import Real
from typing import TYPE_CHECKING, ClassVar, Literal, Union

import numpy as np

from fourstage.predict.images import InputImage
from fourstage.predict.results import SHOWN_SCORE, LabelMapResult, Result
from fourstage.predict.tiles import check_tiles
from fourstage.tasks.segmentation.protocol import Protocol

if TYPE_CHECKING:
    import torch

PRECISIONS = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class ReadImage:
    """An image with its pixels, (H, W, 3) uint8 RGB."""

    source: InputImage
    pixels_HW3: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        return int(self.pixels_HW3.shape[0]), int(self.pixels_HW3.shape[1])


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
        step = max(1, floor(self.side * (1 - self.overlap)))
        divisor = min(protocol.divisor, self.side)
        return replace(protocol, scale=None, window=(self.side, self.side), stride=(step, step), divisor=divisor)


class ImagePredictor(ABC):
    """Predicts images with a network that is ready.

    Attributes:
        is_tiled: whether images are cut, so that one of them may take long.
        orient: whether images are rotated by their EXIF data, as the task's training data is.
        gives: what the results are: "classes", "objects" with boxes, or a "label_map".
        category_ids: the id of each class in the COCO json of the training data; None: it had none.
        progress: is called with the tiles of an image that are done and all of them; a segmentor counts its pixels.
    """

    orient = True
    is_tiled = False
    gives: ClassVar[Literal["classes", "objects", "label_map"]]
    category_ids: tuple[int, ...] | None = None

    def __init__(self) -> None:
        self.progress: Callable[[int, int], None] = ignore_progress

    @property
    @abstractmethod
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes; a label is a position in here."""

    @property
    @abstractmethod
    def device(self) -> Union[str, "torch.device"]:
        """The device of the network."""

    @property
    @abstractmethod
    def network_name(self) -> str:
        """The network for a person."""

    @abstractmethod
    def predict(self, images: Sequence[ReadImage]) -> list[Result]:
        """Return the result of each image, as if each came alone."""

    def in_precision(self, precision: str) -> AbstractContextManager[object]:
        """Return the context in which the network computes."""
        return nullcontext()


def check_threshold(threshold: object) -> None:
    """Raise ValueError unless it is a score or None."""
    if threshold is not None and not (isinstance(threshold, Real) and 0 <= float(threshold) <= 1):
        raise ValueError(f"threshold is a score from 0 to 1; got {threshold!r}")


def check_options(task: str, threshold: float | None, tiling: Tiling | None) -> float:
    """Return the lowest score of objects.

    Raises:
        ValueError: a threshold outside of 0 to 1, one for a network without scores of objects, or tiles for a
            classifier.
    """
    check_threshold(threshold)
    if threshold is not None and task != "detection":
        raise ValueError(
            "threshold is for the scores of a detector, and this network does not detect objects; leave it out"
        )
    if tiling is not None and task == "classification":
        raise ValueError(
            "tile is for detectors and segmentors, and a classifier reads the complete image; leave it out"
        )
    return SHOWN_SCORE if threshold is None else threshold


def label_map_result(
    one: ReadImage,
    labels_HW: np.ndarray,
    classes: tuple[str, ...],
    palette: Sequence[tuple[int, int, int]] | None,
) -> Result:
    """Return the label map of an image as its result."""
    pixels_C = np.bincount(labels_HW.reshape(-1), minlength=1)
    labels = pixels_C.nonzero()[0]
    order = labels[np.argsort(-pixels_C[labels], kind="stable")]
    return LabelMapResult(one.source, one.size, classes, order, labels_HW, pixels_C[order] / labels_HW.size, palette)


def ignore_progress(done: int, total: int) -> None:
    """Show nothing."""
