"""Resize an image and cut out its middle, as timm and torchvision do, with PIL alone. H x W pixels."""

from collections.abc import Sequence
from functools import lru_cache
from math import floor, gcd
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from fourstage.data.images import as_picture

if TYPE_CHECKING:
    from PIL.Image import Image

Pair = tuple[int, int]

FILTERS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}  # PIL's numbers
NEAREST = FILTERS["nearest"]  # the one that weighs no neighbours
REACH = 3  # pixels to each side that PIL's widest filter, lanczos, looks at when it enlarges


class MiddleCrop:
    """Resize, then cut out the middle; little is computed of what would be cut off.

    timm and torchvision resize so; neither is imported here, which would cost a prediction two seconds.

    Args:
        size: of the resized image: its short side alone, or height and width.
        filter: of PIL.
        side: height and width of the result, no larger than `size`.
    """

    def __init__(self, size: Sequence[int], filter: int, side: int) -> None:
        self._size, self._filter, self._side = list(size), filter, side

    @staticmethod
    def of(side: int, crop_pct: float, mode: Literal["center", "squash"], interpolation: str) -> "MiddleCrop":
        """Return the crop of timm's settings; see `classification.eval_transform`."""
        return MiddleCrop([side, side] if mode == "squash" else [floor(side / crop_pct)], FILTERS[interpolation], side)

    def __call__(self, pixels_HW3: np.ndarray) -> "Image":
        """Return the result for the pixels of an image, uint8 RGB."""
        image = as_picture(pixels_HW3)
        full = self._resized(*image.size)
        # In these two cases PIL does not resize the rows first and then the columns.
        lost = image.height - full[1]
        if self._filter == NEAREST or lost > max(0, 2 * (image.width - full[0])):
            left, top = (_middle(length, self._side) for length in full)
            return image.resize(full, self._filter).crop((left, top, left + self._side, top + self._side))
        return _middle_of_resized(image, full, self._side, self._filter)

    def _resized(self, width: int, height: int) -> Pair:
        """(W, H) of the image before anything is cut off, by torchvision's rule."""
        if len(self._size) == 2:
            return self._size[1], self._size[0]
        [short] = self._size
        return (short, int(short * height / width)) if width <= height else (int(short * width / height), short)


def _middle_of_resized(image: "Image", full: Pair, side: int, filter: int) -> "Image":
    """Return the middle of an image that is resized to `full` (W, H), with the same bits as resizing all of it.

    First along the rows that the middle needs, then along the columns of the middle.
    """
    (width, height), (wide, high) = image.size, full
    across, down = _axis_plan(width, wide, side), _axis_plan(height, high, side)
    reach = REACH * max(1, height / high) + 1
    top, bottom = max(0, int(down.start - reach)), min(height, int(down.end + reach) + 1)
    rows = image.crop((0, top, width, bottom))
    rows = rows.resize((across.computed, bottom - top), filter, box=(across.start, 0, across.end, bottom - top))
    rows = rows.crop((across.first, 0, across.first + side, bottom - top))
    middle = rows.resize((side, down.computed), filter, box=(0, down.start - top, side, down.end - top))
    return middle.crop((0, down.first, side, down.first + side))


class _AxisPlan(NamedTuple):
    computed: int  # pixels that PIL computes
    start: float  # of what they show of the image, in its pixels
    end: float
    first: int  # of the computed pixels that are kept


@lru_cache(maxsize=4096)
def _axis_plan(length: int, full: int, side: int) -> _AxisPlan:
    """One axis of an image that is resized to `full` pixels, of which the middle is kept.

    PIL gives the middle alone with the same bits where the distance between pixels and the first position, which it
    holds in single precision, are exact: as for a short side of 256 pixels, the usual one.
    """
    first = _middle(full, side)
    start, end = length * first / full, length * (first + side) / full
    fraction = full // gcd(length, full)  # of a pixel; all positions are multiples of it
    if fraction & (fraction - 1) == 0 and np.float32(start) == start and np.float32(end) == end:
        return _AxisPlan(side, start, end, 0)
    return _AxisPlan(full, 0, length, first)


def _middle(full: int, side: int) -> int:
    return round((full - side) / 2)
