"""From the pixels of images to the input of a graph, by the rules in its description. B images, H x W pixels."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from fourstage.data.images import as_pixels
from fourstage.data.transforms import middle_crop
from fourstage.data.transforms.resizing import Size, keep_ratio, resize_image
from fourstage.exported.description import Description, Input, KeepRatio, MiddleCrop


def middle_of(pixels_HW3: np.ndarray, rule: MiddleCrop) -> np.ndarray:
    """Return the (size, size, 3) bytes that a classifier reads of an image."""
    return as_pixels(_crop(rule)(pixels_HW3))


@lru_cache(maxsize=8)
def _crop(rule: MiddleCrop) -> middle_crop.MiddleCrop:
    return middle_crop.MiddleCrop.of(rule.size, rule.crop_pct, rule.mode, rule.interpolation)


def within_limits(size: Size, rule: KeepRatio, input: Input) -> Size:
    """Return the (H, W) that a detector reads of an image, without padding.

    It is the rule's size, or the largest size of the same shape that a file of fixed sides has room for.
    """
    height, width = keep_ratio(size, rule.scale)
    room = input.height or height, input.width or width
    if height <= room[0] and width <= room[1]:
        return height, width
    factor = min(room[0] / size[0], room[1] / size[1])
    return (
        min(room[0], max(1, int(size[0] * factor + 0.5))),
        min(room[1], max(1, int(size[1] * factor + 0.5))),
    )


def resized(pixels_HW3: np.ndarray, size: Size) -> np.ndarray:
    """Return an image resized by OpenCV, (*size, 3)."""
    return resize_image(np.ascontiguousarray(pixels_HW3), size)


def padded_size(size: Size, input: Input) -> Size:
    """Return the (H, W) that an image is filled up to: the fixed sides, or multiples of the divisor."""
    fixed = input.height, input.width
    return tuple(  # pyright: ignore[reportReturnType] - of two
        side if side is not None else -(-max(length, input.smallest) // input.divisor) * input.divisor
        for side, length in zip(fixed, size, strict=True)
    )


def as_input(images: Sequence[np.ndarray], extent: Size, description: Description) -> np.ndarray:
    """Return (B, 3, *extent): images on the upper left, and beyond them what is 0 after the normalisation.

    Args:
        images: (H, W, 3) uint8, each no larger than `extent`.
    """
    input = description.input
    out_B3HW = np.zeros((len(images), 3, *extent), np.float32)
    if not input.normalised:
        out_B3HW += 255 * np.array(input.mean, np.float32)[:, None, None]
    for out_3HW, pixels_HW3 in zip(out_B3HW, images, strict=True):
        height, width = pixels_HW3.shape[:2]
        here_3HW = out_3HW[:, :height, :width]
        np.copyto(here_3HW, pixels_HW3.transpose(2, 0, 1))
        if input.normalised:
            _normalise(here_3HW, description)
    return out_B3HW.astype(input.dtype, copy=False)


def _normalise(image_3HW: np.ndarray, description: Description) -> None:
    """Normalise in place, in the order of operations in which the task's own transforms do it, to the same bits."""
    mean, std = (np.array(values) for values in (description.input.mean, description.input.std))
    if description.task == "classification":
        image_3HW /= np.float32(255)
    else:
        mean, std = 255 * mean, 255 * std
    image_3HW -= mean.astype(np.float32)[:, None, None]
    image_3HW /= std.astype(np.float32)[:, None, None]
