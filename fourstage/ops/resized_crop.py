"""A crop of a resized map, computed without the rest of it. C channels, H x W cells, R rows and K columns of the crop.

This is no fast path of a plain form, which `F.interpolate(x, new)[rows, columns]` would be: it runs everywhere, and
needs neither the complete result nor the complete map in memory.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from fourstage.ops.eager import may_run_fast
from fourstage.ops.resize import resize

Size = tuple[int, int]  # (H, W)
Span = tuple[int, int]  # first, and one past the last

NARROW = 128  # cells of a row; PyTorch resizes smaller maps with another kernel, whose last bits differ


@dataclass(frozen=True)
class _Taps:
    """The two cells along an axis that each cell of the result is computed from, and the weight of the second one."""

    low: Tensor  # int64, from `span[0]` on
    high: Tensor
    weight: Tensor
    span: Span  # the cells that are read

    @staticmethod
    @lru_cache(maxsize=256)  # the columns of all strips are the same, and their rows are asked for several times
    @torch.inference_mode(False)  # tensors of inference mode could not be used with gradients later
    def of(old: int, new: int, crop: Span, aligned: bool, dtype: torch.dtype = torch.float32) -> "_Taps":
        """Return the bilinear taps of a map of this type, in the precision of `F.interpolate`: float32 at least."""
        precise = torch.promote_types(dtype, torch.float32)
        # on the CPU whatever the default device is, since these tensors serve later calls too
        cells = torch.arange(*crop, dtype=precise, device="cpu")
        if aligned:
            position = cells * (cells.new_tensor(old - 1) / max(new - 1, 1))
        else:
            position = ((cells + 0.5) * (cells.new_tensor(old) / new) - 0.5).clamp(min=0)
        low = position.long().clamp(max=old - 1)
        high = (low + 1).clamp(max=old - 1)
        first, last = int(low[0]), int(high[-1])
        return _Taps(low - first, high - first, (position - low).to(dtype), (first, last + 1))

    def along_columns(self, x_CHW: Tensor) -> Tensor:
        """Return the map resized in its height."""
        may_write = may_run_fast(x_CHW) and not x_CHW.requires_grad
        return self._by_runs(x_CHW) if may_write else self._by_index(1, x_CHW)

    def along_rows(self, x_CHW: Tensor) -> Tensor:
        """Return the map resized in its width."""
        return self._by_index(2, x_CHW)

    def _by_index(self, axis: int, x_CHW: Tensor) -> Tensor:
        low, high, weight = (t.to(x_CHW.device) for t in (self.low, self.high, self.weight))
        shape = [-1 if i == axis else 1 for i in range(3)]
        return torch.lerp(x_CHW.index_select(axis, low), x_CHW.index_select(axis, high), weight.view(shape))

    def _by_runs(self, x_CHW: Tensor) -> Tensor:
        """Compute the same bits from slices of the map, without copies of its rows: a fifth of the time on a CPU."""
        out_CRK, weight_1R1 = x_CHW.new_empty(len(x_CHW), len(self.weight), x_CHW.shape[2]), self.weight.view(1, -1, 1)
        for first, last, low, high, rows in self.runs:
            low_CRK, high_CRK = x_CHW[:, low : low + rows], x_CHW[:, high : high + rows]
            torch.lerp(low_CRK, high_CRK, weight_1R1[:, first:last], out=out_CRK[:, first:last])
        return out_CRK

    @cached_property
    def runs(self) -> list[tuple[int, int, int, int, int]]:
        """Return where neighbouring cells of the result read the same two cells or each the next two.

        Returns:
            The first cell of the result, one past the last, the first low and high cell, and how many of each are read.
        """
        pairs = list(zip(self.low.tolist(), self.high.tolist(), strict=True))
        steps = [(c - a, d - b) for (a, b), (c, d) in pairwise(pairs)]
        runs, first = [], 0
        while first < len(pairs):
            last, step = first + 1, steps[first] if first < len(steps) else (0, 0)
            while step in ((0, 0), (1, 1)) and last < len(pairs) and steps[last - 1] == step:
                last += 1
            runs.append((first, last, *pairs[first], last - first if step == (1, 1) else 1))
            first = last
        return runs


def input_span(old: int, new: int, crop: Span, aligned: bool = False) -> Span:
    """Return the cells, of `old` along an axis, that the cells `crop` of `new` are computed from.

    A map of float64 may read a cell more or less at the ends than one of float32: the span is for both.

    Args:
        aligned: whether the resizing aligns corners.
    """
    if old == new:
        return crop
    first, past = _Taps.of(old, new, crop, aligned).span  # of float32
    ratio, shift = ((old - 1) / max(new - 1, 1), 0.0) if aligned else (old / new, 0.5)
    ends = ((cell + shift) * ratio - shift for cell in (crop[0], crop[1] - 1))  # of float64, as Python's numbers are
    low, last_low = (min(int(max(end, 0.0)), old - 1) for end in ends)
    return min(first, low), max(past, min(last_low + 2, old))


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
        section = _rows_resized(section, new[1], aligned) if full_rows else across.along_rows(section)
    return section if down is None else down.along_columns(section)


def _bilinear(x_CHW: Tensor, size: Size, aligned: bool) -> Tensor:
    return resize(x_CHW[None], size, aligned)[0]


def _rows_resized(x_CHW: Tensor, width: int, aligned: bool) -> Tensor:
    """Return the map at another width."""
    if may_run_fast(x_CHW) and width > NARROW:  # the same bits in half the time: it reads no second row
        return F.interpolate(x_CHW, size=width, mode="linear", align_corners=aligned)
    return _bilinear(x_CHW, (int(x_CHW.shape[1]), width), aligned)
