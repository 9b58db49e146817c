"""A crop of a resized map, computed without the rest of it. C channels, H x W cells, R rows and K columns of the crop.

This is no fast path of a plain form, which `F.interpolate(x, new)[rows, columns]` would be: it runs everywhere, and
needs neither the complete result nor the complete map in memory.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fourstage.ops.resize import resize

Size = tuple[int, int]  # (H, W)
Span = tuple[int, int]  # first, and one past the last


@dataclass(frozen=True)
class _Taps:
    """The two cells along an axis that each cell of the result is computed from, and the weight of the second one."""

    low: Tensor  # int64, from `span[0]` on
    high: Tensor
    weight: Tensor
    span: Span  # the cells that are read

    @staticmethod
    def of(old: int, new: int, crop: Span, aligned: bool, dtype: torch.dtype = torch.float32) -> "_Taps":
        """Return the bilinear taps, in the precision of `F.interpolate`."""
        cells = torch.arange(*crop, dtype=dtype)
        if aligned:
            position = cells * (torch.tensor(old - 1, dtype=dtype) / max(new - 1, 1))
        else:
            position = ((cells + 0.5) * (torch.tensor(old, dtype=dtype) / new) - 0.5).clamp(min=0)
        low = position.long().clamp(max=old - 1)
        high = (low + 1).clamp(max=old - 1)
        first, last = int(low[0]), int(high[-1])
        return _Taps(low - first, high - first, position - low, (first, last + 1))

    def along(self, axis: int, x_CHW: Tensor) -> Tensor:
        """Return the map resized along one of its three axes."""
        low, high, weight = (t.to(x_CHW.device) for t in (self.low, self.high, self.weight))
        shape = [-1 if i == axis else 1 for i in range(3)]
        return torch.lerp(x_CHW.index_select(axis, low), x_CHW.index_select(axis, high), weight.view(shape))


def input_span(old: int, new: int, crop: Span, aligned: bool = False) -> Span:
    """Return the cells, of `old` along an axis, that the cells `crop` of `new` are computed from.

    Args:
        aligned: whether the resizing aligns corners.
    """
    return crop if old == new else _Taps.of(old, new, crop, aligned).span


def crop_of_resized(
    x_CHW: Tensor,
    old: Size,
    new: Size,
    rows: Span,
    columns: Span,
    origin: tuple[int, int] = (0, 0),
    aligned: bool = False,
) -> Tensor:
    """Return `F.interpolate(x, new, mode="bilinear", align_corners=aligned)[rows, columns]`, up to rounding.

    Args:
        x_CHW: the map, or its section from `origin` on that holds all cells that are read; see `input_span`.
        old: (H, W) of the complete map.
        new: (H, W) of the complete result.
        rows, columns: of the result.
        origin: row and column of the map where `x_CHW` begins.
        aligned: whether the resizing aligns corners.

    Returns:
        (C, R, K).
    """
    top, left = origin
    full_rows = columns == (0, new[1]) and x_CHW.shape[2] == old[1]
    if full_rows and rows == (0, new[0]) and x_CHW.shape[1] == old[0]:
        return _bilinear(x_CHW, new, aligned)
    down = None if old[0] == new[0] else _Taps.of(old[0], new[0], rows, aligned, x_CHW.dtype)
    across = None if old[1] == new[1] else _Taps.of(old[1], new[1], columns, aligned, x_CHW.dtype)
    (y0, y1), (x0, x1) = down.span if down else rows, across.span if across else columns
    x0, x1 = (0, old[1]) if full_rows else (x0, x1)
    section = x_CHW[:, y0 - top : y1 - top, x0 - left : x1 - left]
    if across is not None:  # first, while there are few rows
        size = section.shape[1], new[1]
        section = _bilinear(section, size, aligned) if full_rows else across.along(2, section)
    return section if down is None else down.along(1, section)


def _bilinear(x_CHW: Tensor, size: Size, aligned: bool) -> Tensor:
    return resize(x_CHW[None], size, aligned)[0]
