"""Parts of resized maps, computed without the rest of them. C channels, H x W cells, R rows, K columns of the part."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, int]  # (H, W)
Span = tuple[int, int]  # first, and one past the last


@dataclass(frozen=True)
class _Taps:
    """Which two cells along an axis make up each cell of the result, and how much of the second one."""

    low: Tensor  # int64, from `span[0]` on
    high: Tensor
    share: Tensor
    span: Span  # the cells that are read

    @staticmethod
    def of(old: int, new: int, part: Span, aligned: bool, dtype: torch.dtype = torch.float32) -> "_Taps":
        """Bilinear, in the precision of `F.interpolate`."""
        cells = torch.arange(*part, dtype=dtype)
        if aligned:
            place = cells * (torch.tensor(old - 1, dtype=dtype) / max(new - 1, 1))
        else:
            place = ((cells + 0.5) * (torch.tensor(old, dtype=dtype) / new) - 0.5).clamp(min=0)
        low = place.long().clamp(max=old - 1)
        high = (low + 1).clamp(max=old - 1)
        first, last = int(low[0]), int(high[-1])
        return _Taps(low - first, high - first, place - low, (first, last + 1))

    def along(self, axis: int, x_CHW: Tensor) -> Tensor:
        """The result along one axis of a map of three."""
        low, high, share = (t.to(x_CHW.device) for t in (self.low, self.high, self.share))
        shape = [-1 if i == axis else 1 for i in range(3)]
        return torch.lerp(x_CHW.index_select(axis, low), x_CHW.index_select(axis, high), share.view(shape))


def span_read(old: int, new: int, part: Span, aligned: bool = False) -> Span:
    """Which of `old` cells along an axis the cells `part` of `new` are made of, with corners aligned or not."""
    return part if old == new else _Taps.of(old, new, part, aligned).span


def part_of_resized(
    x_CHW: Tensor,
    old: Size,
    new: Size,
    rows: Span,
    columns: Span,
    origin: tuple[int, int] = (0, 0),
    aligned: bool = False,
) -> Tensor:
    """`F.interpolate(x, new, mode="bilinear", align_corners=aligned)[rows, columns]`, up to rounding.

    Args:
        x_CHW: the map, or the part of it from `origin` on that holds all that is read; see `span_read`.
        old: (H, W) of the whole map.
        new: (H, W) of the whole result.
        rows, columns: the part of the result.
        origin: row and column of the map where `x_CHW` begins.
        aligned: whether corners are.

    Returns:
        (C, R, K).
    """
    top, left = origin
    whole = columns == (0, new[1]) and x_CHW.shape[2] == old[1]
    if whole and rows == (0, new[0]) and x_CHW.shape[1] == old[0]:
        return x_CHW if old == new else _bilinear(x_CHW, new, aligned)
    down = None if old[0] == new[0] else _Taps.of(old[0], new[0], rows, aligned, x_CHW.dtype)
    across = None if old[1] == new[1] else _Taps.of(old[1], new[1], columns, aligned, x_CHW.dtype)
    (y0, y1), (x0, x1) = down.span if down else rows, across.span if across else columns
    x0, x1 = (0, old[1]) if whole else (x0, x1)
    part = x_CHW[:, y0 - top : y1 - top, x0 - left : x1 - left]
    if across is not None:  # first, while there are few rows
        part = _bilinear(part, (part.shape[1], new[1]), aligned) if whole else across.along(2, part)
    return part if down is None else down.along(1, part)


def _bilinear(x_CHW: Tensor, size: Size, aligned: bool) -> Tensor:
    return F.interpolate(x_CHW[None], size=size, mode="bilinear", align_corners=aligned)[0]
