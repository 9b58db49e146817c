"""One image with its ground truth, and a batch of them as tensors: what the packages pass to each other.

These conventions hold everywhere. Images are RGB. Boxes are x1 y1 x2 y2 in pixels of the image that they come
with, x2 and y2 exclusive. Labels run from 0 to C - 1. Label maps hold the same labels, and `IGNORE` for pixels that do
not count. Padding is on the right and at the bottom: zeros in normalised images, `IGNORE` in label maps.

B images, H x W pixels, N objects, C classes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from fourstage.data.errors import BadImage, NoSplitError  # noqa: F401 - formats of users import them from here

Split = Literal["train", "val"]
Truth = Literal["label", "objects", "label_map_HW"]  # fields of `Sample`
Progress = Callable[[int, int], None]  # (done, total)

IGNORE = 255  # the label of pixels that neither train nor score


@dataclass(frozen=True, slots=True)
class Objects:
    """The objects of one image. All fields are in the same order."""

    boxes_N4: Tensor  # float32, pixels
    labels_N: Tensor  # int64
    crowd_N: Tensor  # bool; a crowd region is neither a target nor a mistake
    masks_NHW: Tensor | None = None  # bool, same H and W as the image; None: this data has no masks
    masked_N: Tensor | None = None  # bool, whether the object has a mask, else it is empty; None: all have, or none

    def to(self, device: torch.device) -> "Objects":
        return self._each(lambda x: x.to(device, non_blocking=True))

    def pin_memory(self) -> "Objects":
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Objects":
        masks, masked = (None if x is None else change(x) for x in (self.masks_NHW, self.masked_N))
        return Objects(change(self.boxes_N4), change(self.labels_N), change(self.crowd_N), masks, masked)


@dataclass(frozen=True, slots=True)
class Sample:
    """One image and its ground truth. A data set fills the truths that it has.

    `image` is (H, W, 3) uint8 as read from disk; transforms end with a normalised (3, H, W) float32 tensor.

    `reference` is the ground truth that predictions are scored against, ready for JSON and in pixels of the image on
    disk; transforms do not change it. Detection data fills it for evaluation, see `ObjectTable.reference`.
    """

    id: str  # unique within its split and stable: mostly the file's path below the split's folder
    image: np.ndarray | Tensor
    original_size: tuple[int, int]  # (H, W) as read from disk
    label: int | None = None
    objects: Objects | None = None
    label_map_HW: Tensor | None = None  # uint8
    reference: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples as tensors, the images padded to one size."""

    ids: tuple[str, ...]
    images_BCHW: Tensor
    sizes: tuple[tuple[int, int], ...]  # (H, W) of each image without padding
    original_sizes: tuple[tuple[int, int], ...]
    labels_B: Tensor | None = None  # int64
    targets_BC: Tensor | None = None  # float32, rows sum to 1: the labels after mixing
    objects: tuple[Objects, ...] | None = None
    label_maps_BHW: Tensor | None = None  # uint8
    references: tuple[Mapping[str, Any], ...] | None = None  # see `Sample.reference`

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on `device`; copies of pinned memory overlap with computation."""

        def moved(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.to(device, non_blocking=True)

        return replace(
            self,
            images_BCHW=self.images_BCHW.to(device, non_blocking=True),
            labels_B=moved(self.labels_B),
            targets_BC=moved(self.targets_BC),
            label_maps_BHW=moved(self.label_maps_BHW),
            objects=None if self.objects is None else tuple(o.to(device) for o in self.objects),
        )

    def pin_memory(self) -> "Batch":
        """Return the batch in page-locked memory; torch's loader calls this method by its name."""

        def pinned(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.pin_memory()

        return replace(
            self,
            images_BCHW=self.images_BCHW.pin_memory(),
            labels_B=pinned(self.labels_B),
            targets_BC=pinned(self.targets_BC),
            label_maps_BHW=pinned(self.label_maps_BHW),
            objects=None if self.objects is None else tuple(o.pin_memory() for o in self.objects),
        )


class Dataset(Protocol):
    """A split of a data set: a fixed order of samples that can be read one by one.

    Attributes that a data set may have besides:
        note: one sentence about what is unusual, such as a split that was held out; empty otherwise.
        shard_sizes: images in each shard, in the order of the samples; empty where any order reads equally fast.
        labels_N: (N,) int64, the label of every sample of a classification data set.
    """

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; the label of a sample is a position in here."""
        ...

    @property
    def truths(self) -> tuple[str, ...]:
        """Which of "label", "objects" and "label_map_HW" its samples have."""
        ...

    def __len__(self) -> int: ...

    def id(self, index: int) -> str:
        """The id of a sample, without reading it."""
        ...

    def sample(self, index: int) -> Sample:
        """Read one sample. Raises `BadImage` when the file cannot be decoded."""
        ...


def collate(samples: list[Sample], divisor: int = 1) -> Batch:
    """Return transformed samples as one batch, padded on the right and at the bottom to the largest height and width.

    Args:
        divisor: the padded height and width are rounded up to multiples of it.
    """
    images = [sample.image for sample in samples]
    assert all(isinstance(image, Tensor) for image in images), "transforms end with a tensor"
    sizes = tuple((int(image.shape[-2]), int(image.shape[-1])) for image in images)
    height, width = (-(-max(sides) // divisor) * divisor for sides in zip(*sizes, strict=True))
    labels = [sample.label for sample in samples if sample.label is not None]
    objects = tuple(sample.objects for sample in samples if sample.objects is not None)
    maps = [sample.label_map_HW for sample in samples if sample.label_map_HW is not None]
    references = tuple(sample.reference for sample in samples if sample.reference is not None)
    return Batch(
        ids=tuple(sample.id for sample in samples),
        images_BCHW=_padded([i for i in images if isinstance(i, Tensor)], height, width, 0),
        sizes=sizes,
        original_sizes=tuple(sample.original_size for sample in samples),
        labels_B=torch.tensor(labels) if labels else None,
        objects=tuple(_pad_masks(o, height, width) for o in objects) or None,
        label_maps_BHW=_padded(maps, height, width, IGNORE) if maps else None,
        references=references or None,
    )


def _padded(tensors: list[Tensor], height: int, width: int, value: int) -> Tensor:
    out = tensors[0].new_full((len(tensors), *tensors[0].shape[:-2], height, width), value)
    for row, tensor in zip(out, tensors, strict=True):
        row[..., : tensor.shape[-2], : tensor.shape[-1]] = tensor
    return out


def _pad_masks(objects: Objects, height: int, width: int) -> Objects:
    if objects.masks_NHW is None:
        return objects
    masks = objects.masks_NHW.new_zeros((len(objects.labels_N), height, width))
    masks[:, : objects.masks_NHW.shape[1], : objects.masks_NHW.shape[2]] = objects.masks_NHW
    return replace(objects, masks_NHW=masks)
