"""Tables that depend on the size of maps or windows, taken to another size. h heads, C channels, H x W cells."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_table(table_Nh: Tensor, entries: int) -> Tensor:
    """A relative-position table for another window: bicubic over its (2w - 1) x (2w - 1) square of offsets.

    Args:
        table_Nh: ((2w - 1)^2, heads).
        entries: how many the other table has.

    Returns:
        (entries, heads), of the table's dtype.
    """
    old, new = math.isqrt(len(table_Nh)), math.isqrt(entries)
    assert (old * old, new * new) == (len(table_Nh), entries), "tables of square windows"
    grid_1hHW = table_Nh.T.unflatten(1, (old, old))[None]
    return _bicubic(grid_1hHW, new, new)[0].flatten(1).T.contiguous()


def resize_position(position_1CHW: Tensor, height: int, width: int) -> Tensor:
    """A position embedding for a map of another size, of the same dtype: what the network itself would interpolate."""
    return _bicubic(position_1CHW, height, width)


def _bicubic(grid: Tensor, height: int, width: int) -> Tensor:
    resized = F.interpolate(grid.to(torch.float32), size=(height, width), mode="bicubic", align_corners=False)
    return resized.to(grid.dtype)
