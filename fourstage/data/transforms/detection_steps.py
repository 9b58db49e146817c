"""Steps that change an image and the objects in it together, with MMDetection's arithmetic. H x W pixels, N objects.

A step takes and gives a `Sample` whose image is (H, W, 3) uint8. Draws come from the global generator of `numpy.random`
only, which the loader seeds for each sample. Objects are moved and cut with the image, crowd regions too.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np
import torch
from torch import Tensor

from fourstage.data.sample import Objects, Sample
from fourstage.data.transforms.resizing import Normalise, Size, keep_ratio, resize_image, resize_nearest

Step = Callable[[Sample], Sample]
Scale = tuple[int, int]  # limits on the longer and the shorter side of an image, pixels, in either order

SMALLEST = 1e-2  # pixels; a box with a side no longer than this is none


@dataclass(frozen=True)
class Sequential:
    """Steps one after the other."""

    steps: tuple[Step, ...]

    def __call__(self, sample: Sample) -> Sample:
        return reduce(lambda changed, step: step(changed), self.steps, sample)


@dataclass(frozen=True)
class Either:
    """One of several steps, each equally likely."""

    steps: tuple[Step, ...]

    def __call__(self, sample: Sample) -> Sample:
        return self.steps[_below(len(self.steps))](sample)


@dataclass(frozen=True)
class Sometimes:
    """One step with a probability, and another one otherwise."""

    step: Step
    otherwise: Step
    probability: float

    def __call__(self, sample: Sample) -> Sample:
        drawn = np.random.random_sample()  # noqa: NPY002 - seeded for each sample by the loader
        return (self.step if drawn < self.probability else self.otherwise)(sample)


@dataclass(frozen=True)
class Resize:
    """To the largest size of the same shape within one of several limits, each equally likely."""

    scales: tuple[Scale, ...]

    def __call__(self, sample: Sample) -> Sample:
        scale = self.scales[_below(len(self.scales))]
        return resized(sample, keep_ratio(_size(sample), scale))


@dataclass(frozen=True)
class Jitter:
    """To a random multiple of the largest size of the same shape within `scale`."""

    scale: Scale
    ratio: tuple[float, float]  # smallest and largest multiple

    def __call__(self, sample: Sample) -> Sample:
        low, high = self.ratio
        drawn = np.random.random_sample() * (high - low) + low  # noqa: NPY002 - seeded for each sample by the loader
        limits = (max(1, int(self.scale[0] * drawn)), max(1, int(self.scale[1] * drawn)))
        return resized(sample, keep_ratio(_size(sample), limits))


@dataclass(frozen=True)
class Flip:
    """A mirror image, left to right."""

    probability: float

    def __call__(self, sample: Sample) -> Sample:
        drawn = np.random.random_sample()  # noqa: NPY002
        return flipped(sample) if drawn < self.probability else sample


@dataclass(frozen=True)
class Crop:
    """A random crop of the image; objects outside are left out, even if none remains.

    Args:
        heights, widths: smallest and largest height and width of the crop, pixels; smaller images give smaller crops.
        tight: boxes are recomputed around what is left of the masks, and objects without an extent are left out.
    """

    heights: tuple[int, int]
    widths: tuple[int, int]
    tight: bool = False

    def __call__(self, sample: Sample) -> Sample:
        full = _size(sample)
        height, width = (
            _between(min(side, low), min(side, high))
            for side, (low, high) in zip(full, (self.heights, self.widths), strict=True)
        )
        corner = (_between(0, full[0] - height), _between(0, full[1] - width))
        return cropped(sample, corner, (height, width), tight=self.tight)


@dataclass(frozen=True)
class Finish:
    """The image as a normalised (3, H, W) float32 tensor; the last step."""

    normalise: Normalise

    def __call__(self, sample: Sample) -> Sample:
        return replace(sample, image=self.normalise(pixels(sample)), label_map_HW=None)


def resized(sample: Sample, size: Size) -> Sample:
    """Return the sample at another size; boxes are cut at its border, and stay even where nothing is left."""
    image_HW3 = pixels(sample)
    factors = [new / old for new, old in zip(size, image_HW3.shape[:2], strict=True)]
    objects = sample.objects
    if objects is not None:
        boxes_N4 = objects.boxes_N4 * torch.tensor([factors[1], factors[0]] * 2, dtype=torch.float32)
        masks_NHW = (
            None if objects.masks_NHW is None else torch.from_numpy(resize_nearest(objects.masks_NHW.numpy(), size))
        )
        objects = replace(objects, boxes_N4=_clipped(boxes_N4, size), masks_NHW=masks_NHW)
    return replace(sample, image=resize_image(image_HW3, size), objects=objects)


def flipped(sample: Sample) -> Sample:
    """Return the mirror image, left to right."""
    image_HW3 = pixels(sample)
    objects = sample.objects
    if objects is not None:
        left, top, right, bottom = objects.boxes_N4.unbind(1)
        boxes_N4 = torch.stack([image_HW3.shape[1] - right, top, image_HW3.shape[1] - left, bottom], dim=1)
        masks_NHW = None if objects.masks_NHW is None else objects.masks_NHW.flip(-1)
        objects = replace(objects, boxes_N4=boxes_N4, masks_NHW=masks_NHW)
    # Not ascontiguousarray: it takes an image of one column as it is, with a negative stride, which torch refuses.
    return replace(sample, image=image_HW3[:, ::-1].copy(), objects=objects)


def cropped(sample: Sample, corner: tuple[int, int], size: Size, *, tight: bool = False) -> Sample:
    """Return a crop of the image with the objects that reach into it, of which a sliver or an empty mask may be left.

    Args:
        corner: (top, left), pixels.
        size: (H, W); the crop is inside the image.
        tight: see `Crop`.
    """
    (top, left), (height, width) = corner, size
    window = (slice(top, top + height), slice(left, left + width))
    objects = sample.objects
    if objects is not None:
        shift = torch.tensor([left, top] * 2, dtype=torch.float32)
        objects = replace(
            objects,
            boxes_N4=_clipped(objects.boxes_N4 - shift, size),
            masks_NHW=None if objects.masks_NHW is None else objects.masks_NHW[(slice(None), *window)],
        )
        x1, y1, x2, y2 = objects.boxes_N4.unbind(1)
        objects = chosen(objects, (x1 < width) & (y1 < height) & (x2 > 0) & (y2 > 0))
        objects = with_tight_boxes(objects) if tight else objects
    return replace(sample, image=np.ascontiguousarray(pixels(sample)[window]), objects=objects)


def chosen(objects: Objects, keep_N: Tensor) -> Objects:
    """Return some of the objects, by flags or positions."""
    masks_NHW, masked_N = (None if x is None else x[keep_N] for x in (objects.masks_NHW, objects.masked_N))
    return Objects(objects.boxes_N4[keep_N], objects.labels_N[keep_N], objects.crowd_N[keep_N], masks_NHW, masked_N)


def with_tight_boxes(objects: Objects) -> Objects:
    """Return the objects with boxes around their masks, where they have some, without those whose box has no extent."""
    if objects.masks_NHW is not None:
        objects = replace(objects, boxes_N4=tight_where_masked(objects, objects.masks_NHW))
    sides_N2 = objects.boxes_N4[:, 2:] - objects.boxes_N4[:, :2]
    return chosen(objects, (sides_N2 > SMALLEST).all(dim=1))


def tight_where_masked(objects: Objects, masks_NHW: Tensor) -> Tensor:
    """(N, 4): the box around each mask, and the own box of an object without a mask."""
    boxes_N4 = tight_boxes(masks_NHW)
    return boxes_N4 if objects.masked_N is None else torch.where(objects.masked_N[:, None], boxes_N4, objects.boxes_N4)


def tight_boxes(masks_NHW: Tensor) -> Tensor:
    """Return (N, 4) float32: the smallest box around each mask, zeros for an empty one."""
    boxes_N4 = torch.zeros(len(masks_NHW), 4)
    for mask_HW, box_4 in zip(masks_NHW.numpy(), boxes_N4, strict=True):
        rows, columns = np.flatnonzero(mask_HW.any(axis=1)), np.flatnonzero(mask_HW.any(axis=0))
        if len(rows):
            box_4[:] = torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    return boxes_N4


def pixels(sample: Sample) -> np.ndarray:
    """(H, W, 3) uint8."""
    assert isinstance(sample.image, np.ndarray), "data sets give arrays"
    return sample.image


def _size(sample: Sample) -> Size:
    height, width = pixels(sample).shape[:2]
    return height, width


def _clipped(boxes_N4: Tensor, size: Size) -> Tensor:
    return torch.stack([boxes_N4[:, i].clamp(0, size[1 - i % 2]) for i in range(4)], dim=1)


def _below(count: int) -> int:
    return int(np.random.randint(count))  # noqa: NPY002


def _between(low: int, high: int) -> int:
    return int(np.random.randint(low, high + 1))  # noqa: NPY002
