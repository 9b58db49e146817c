"""Bilinear resizing. B images, C channels, h x w cells before and H x W after."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def resize(x_BChw: Tensor, size: Sequence[int], align_corners: bool = False) -> Tensor:
    """Return the map at another size, (B, C, H, W), or the map itself where it has this size already."""
    if tuple(x_BChw.shape[2:]) == tuple(size):
        return x_BChw
    return F.interpolate(x_BChw, size=tuple(size), mode="bilinear", align_corners=align_corners)
