"""Bilinear resizing. B images, C channels, h x w cells before and H x W after."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from fourstage.ops.shapes import known_true


def resize(x_BChw: Tensor, size: Sequence[int], align_corners: bool = False) -> Tensor:
    """Return the map at another size, (B, C, H, W), or the map itself where it has this size already."""
    if known_true(x_BChw.shape[2] == size[0]) and known_true(x_BChw.shape[3] == size[1]):
        return x_BChw
    return F.interpolate(x_BChw, size=tuple(size), mode="bilinear", align_corners=align_corners)
