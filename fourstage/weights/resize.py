"""Resizing of parameters whose size follows from maps or windows, as in the originals' loaders.

h heads, C channels, H x W cells, N offsets.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class ResizeRule:
    """A rule that resizes a parameter: functions of the file's tensor and of ours, of which only the shape is used."""

    fits: Callable[[Tensor, Tensor], bool]  # whether the rule is for these two shapes; a tensor without values has none
    change: Callable[[Tensor, Tensor], Tensor]


def resize_table(table_Nh: Tensor, entries: int) -> Tensor:
    """Return a relative-position table for another window: bicubic over its (2w - 1) x (2w - 1) square of offsets.

    Args:
        table_Nh: ((2w - 1)^2, heads).
        entries: how many the other table has.

    Returns:
        (entries, heads), of the table's dtype.
    """
    old, new = math.isqrt(len(table_Nh)), math.isqrt(entries)
    assert (old * old, new * new) == (len(table_Nh), entries), "tables of square windows"
    grid_1hHW = table_Nh.T.unflatten(1, (old, old))[None]
    return _interpolated(grid_1hHW, (new, new), "bicubic")[0].flatten(1).T.contiguous()


def resize_rows(table_NC: Tensor, entries: int) -> Tensor:
    """Return a table of offsets along one side for another window: linear; the first and last rows stay.

    Args:
        table_NC: (2w - 1, channels).
        entries: how many rows the other table has.
    """
    return _interpolated(table_NC.T[None], (entries,), "linear", align_corners=True)[0].T.contiguous()


def resize_position(position_1CHW: Tensor, height: int, width: int) -> Tensor:
    """Return a position embedding for a map of another size: bicubic, as the networks resize it at run time."""
    return _interpolated(position_1CHW, (height, width), "bicubic")


def resize_position_by_corners(position_1CHW: Tensor, height: int, width: int) -> Tensor:
    """Return a position embedding for a map of another size: bilinear; the corner cells stay."""
    return _interpolated(position_1CHW, (height, width), "bilinear", align_corners=True)


def _interpolated(grid: Tensor, size: tuple[int, ...], mode: str, *, align_corners: bool = False) -> Tensor:
    out = F.interpolate(grid.to(torch.float32), size=size, mode=mode, align_corners=align_corners)
    return out.to(grid.dtype)


def _square_tables(theirs: Tensor, ours: Tensor) -> bool:
    squares = all(x.ndim == 2 and math.isqrt(len(x)) ** 2 == len(x) for x in (theirs, ours))
    return squares and theirs.shape[1] == ours.shape[1] and theirs.numel() > 0


def _maps(theirs: Tensor, ours: Tensor) -> bool:
    return theirs.ndim == ours.ndim == 4 and theirs.shape[:2] == ours.shape[:2] and theirs.numel() > 0


def _tables_of_rows(theirs: Tensor, ours: Tensor) -> bool:
    return theirs.ndim == ours.ndim == 2 and theirs.shape[1] == ours.shape[1] and theirs.numel() > 0


SQUARE_TABLE = ResizeRule(_square_tables, lambda theirs, ours: resize_table(theirs, len(ours)))
ROWS = ResizeRule(_tables_of_rows, lambda theirs, ours: resize_rows(theirs, len(ours)))
POSITION = ResizeRule(_maps, lambda theirs, ours: resize_position(theirs, *ours.shape[2:]))
POSITION_BY_CORNERS = ResizeRule(_maps, lambda theirs, ours: resize_position_by_corners(theirs, *ours.shape[2:]))

# last word of our parameter's name -> how it is resized
RULES = {"table": SQUARE_TABLE, "position": POSITION, "height_rel": ROWS, "width_rel": ROWS}
FAMILY_RULES = {"unified": {"position": POSITION_BY_CORNERS}}  # where a family's source differs


def resize_rule(family: str, key: str) -> ResizeRule | None:
    """Return how the parameter `key` of a family is resized; None where its size is fixed."""
    name = key.rpartition(".")[2]
    return FAMILY_RULES.get(family, RULES).get(name) or RULES.get(name)
