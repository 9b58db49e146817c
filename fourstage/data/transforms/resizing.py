"""Sizes and pixels as OpenMMLab's published numbers were measured with: OpenCV's resize on bytes. H x W pixels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fourstage.data.transforms.values import check_colours
from fourstage.extras import install_package

if TYPE_CHECKING:
    from torch import Tensor

Size = tuple[int, int]  # (H, W)


def keep_ratio(size: Size, scale: tuple[float, float]) -> Size:
    """The largest size of the same shape within two limits, each side rounded half up.

    Args:
        size: (H, W) of an image.
        scale: limits on its longer and its shorter side, pixels, in either order.
    """
    factor = min(max(scale) / max(size), min(scale) / min(size))
    height, width = (max(1, int(side * factor + 0.5)) for side in size)
    return height, width


def times(size: Size, ratio: float) -> Size:
    """An image's own size times a ratio, as MMSegmentation 1.x rounds it."""
    height, width = (int(side * ratio + 0.5) for side in size)
    return keep_ratio(size, (max(1, width), max(1, height)))


def resize_image(image_HW3: np.ndarray, size: Size) -> np.ndarray:
    """OpenCV's bilinear on bytes, without antialiasing, to (*size, 3)."""
    if image_HW3.shape[:2] == size:
        return image_HW3
    cv2 = opencv()
    return cv2.resize(image_HW3, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)


def resize_nearest(cells: np.ndarray, size: Size) -> np.ndarray:
    """(..., H, W) to (..., *size) by OpenCV's rule for nearest neighbours: cell i comes from floor(i * old / new).

    OpenCV divides twice, by new / old and 1 by that, and its rounding moves a row or column of one size in twenty.
    """
    if cells.shape[-2:] == size:
        return cells
    rows, columns = (
        np.minimum((np.arange(new) * (1 / (new / old))).astype(np.int64), old - 1)
        for old, new in zip(cells.shape[-2:], size, strict=True)
    )
    if size[0] < cells.shape[-2]:  # the order that copies less
        return cells.take(rows, axis=-2).take(columns, axis=-1)
    return cells.take(columns, axis=-1).take(rows, axis=-2)


@dataclass(frozen=True)
class Normalise:
    """Bytes to what networks take: the mean off, then divided by the standard deviation."""

    mean_3: tuple[float, ...]  # in units of a byte
    std_3: tuple[float, ...]

    @staticmethod
    def of(mean: Sequence[float], std: Sequence[float]) -> "Normalise":
        """From values in units of 1 (white). Raises ValueError unless they are three each and no std is 0 or less."""
        check_colours(mean, std)
        return Normalise(tuple(255 * value for value in mean), tuple(255 * value for value in std))

    def __call__(self, pixels_HW3: np.ndarray) -> "Tensor":
        """(H, W, 3) uint8 RGB to (3, H, W) float32."""
        import torch  # here, because predictions of exported files resize without torch

        pixels_3HW = torch.from_numpy(np.ascontiguousarray(pixels_HW3)).movedim(-1, 0)
        mean, std = (torch.tensor(v, dtype=torch.float32)[:, None, None] for v in (self.mean_3, self.std_3))
        return pixels_3HW.to(torch.float32, memory_format=torch.contiguous_format).sub_(mean).div_(std)


def opencv() -> Any:
    """The library. Raises ValueError when it is missing."""
    try:
        import cv2
    except ImportError as error:
        raise ValueError(
            f"resizing as the published numbers were measured needs OpenCV, which is missing: "
            f"{install_package('opencv-python-headless')}"
        ) from error
    return cv2
