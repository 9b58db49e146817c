"""Bilinear and bicubic resizing. B images, C channels, h x w cells before and H x W after."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fourstage.ops.eager import must_repeat_itself
from fourstage.ops.shapes import known_true


def resize(x_BChw: Tensor, size: Sequence[int], align_corners: bool = False) -> Tensor:
    """Return the map at another size, (B, C, H, W), or the map itself where it has this size already."""
    if known_true(x_BChw.shape[2] == size[0]) and known_true(x_BChw.shape[3] == size[1]):
        return x_BChw
    return F.interpolate(x_BChw, size=tuple(size), mode="bilinear", align_corners=align_corners)


def resize_bicubically(x_BChw: Tensor, size: Sequence[int]) -> Tensor:
    """Return the map at another size, (B, C, H, W), with edges aligned."""
    if must_repeat_itself(x_BChw.device):  # PyTorch's backward pass raises
        with torch.autocast(x_BChw.device.type, enabled=False):  # resizing keeps the precision
            return _taps(x_BChw, 2, size[0]) @ x_BChw @ _taps(x_BChw, 3, size[1]).mT
    return F.interpolate(x_BChw, size=tuple(size), mode="bicubic", align_corners=False)


def _taps(x_BChw: Tensor, axis: int, side: int) -> Tensor:
    """Return (side, cells of the axis): the share of each cell in each place."""
    cells = x_BChw.shape[axis]
    one = torch.eye(cells, dtype=x_BChw.dtype, device=x_BChw.device)
    return F.interpolate(one[None, None], size=(side, cells), mode="bicubic", align_corners=False)[0, 0]
