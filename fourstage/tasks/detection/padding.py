"""Images padded to whole cells of every common map. B images, H x W pixels, h x w cells."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fourstage.ops.shapes import known_true

MULTIPLE = 32  # pixels


def padded(images_BHW: Tensor, multiple: int = MULTIPLE) -> Tensor:
    """Return (..., H, W) with zeros on the right and at the bottom up to a multiple of some pixels."""
    height, width = images_BHW.shape[-2:]
    down, right = -height % multiple, -width % multiple
    if known_true(down == 0) and known_true(right == 0):
        return images_BHW
    return F.pad(images_BHW, (0, right, 0, down))


def padded_size(size: tuple[int, int], multiple: int = MULTIPLE) -> tuple[int, int]:
    """Return (H, W) of an image of `size` that is padded alone."""
    return math.ceil(size[0] / multiple) * multiple, math.ceil(size[1] / multiple) * multiple


def padding_masks(
    sizes: Sequence[tuple[int, int]], padded_to: tuple[int, int], maps: Sequence[Tensor]
) -> list[Tensor] | None:
    """Return for each of the maps (B, C, h, w) a (B, h, w) bool mask, True where the cell's first pixel is padding.

    Args:
        sizes: (H, W) of each image.
        padded_to: (H, W) of the batch.

    Returns:
        None where no image is smaller than the batch.
    """
    if all(size == padded_to for size in sizes):
        return None
    device = maps[0].device
    rows_H, columns_W = (torch.arange(side, device=device) for side in padded_to)
    limit_B2 = torch.tensor(sizes, device=device)
    beyond_BHW = (rows_H >= limit_B2[:, :1])[:, :, None] | (columns_W >= limit_B2[:, 1:])[:, None]
    return [F.interpolate(beyond_BHW[:, None].float(), size=x.shape[-2:])[:, 0].bool() for x in maps]
