"""Anchors: boxes of fixed sizes and shapes around every cell of every map. H x W cells, A anchors a cell."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fourstage.tasks.parts.settings import check_sizes


class AnchorGrid:
    """The anchors of a pyramid of maps, one set around the same place of every cell.

    Args:
        strides: of each map, image pixels per cell.
        scales: sides of a square anchor, in strides.
        ratios: height over width.
        offset: of their centres from the top left corner of the cell, in strides.

    Attributes:
        per_cell: A. Anchors of a cell run over the ratios, and for each ratio over the scales.

    Raises:
        ValueError: scales or ratios that are not above 0, or none; an offset that is not within the cell.
    """

    def __init__(
        self, strides: Sequence[int], scales: Sequence[float], ratios: Sequence[float], *, offset: float = 0.0
    ) -> None:
        check_sizes(scales=scales, ratios=ratios)
        if not isinstance(offset, int | float) or not 0 <= offset <= 1:
            raise ValueError(f"the offset of anchors is a number from 0 to 1, in strides; got {offset!r}")
        self.strides = tuple(strides)
        self.per_cell = len(scales) * len(ratios)
        high = torch.tensor(ratios, device="cpu").sqrt()[:, None]  # real numbers in a network on `meta` too
        sides_A = torch.tensor(scales, device="cpu")[None]
        self._base = []
        for stride in self.strides:
            width_A, height_A = ((stride * r * sides_A).flatten() * 0.5 for r in (1 / high, high))
            middle = offset * stride
            sides = [middle - width_A, middle - height_A, middle + width_A, middle + height_A]
            self._base.append(torch.stack(sides, dim=1))

    def boxes(self, sizes: Sequence[tuple[int, int]], device: torch.device) -> list[Tensor]:
        """Return (H * W * A, 4) float32 pixels for each map of `sizes` (H, W): rows, columns, anchors of a cell."""
        out = []
        for (height, width), stride, base_A4 in zip(sizes, self.strides, self._base, strict=True):
            y, x = (torch.arange(n, device=device, dtype=torch.float32) * stride for n in (height, width))
            y, x = y[:, None].expand(height, width), x[None].expand(height, width)
            corner_HW4 = torch.stack([x, y, x, y], dim=-1)
            out.append((corner_HW4[:, :, None] + base_A4.to(device)).reshape(-1, 4))
        return out

    def within(
        self, sizes: Sequence[tuple[int, int]], image_size: tuple[int, int], device: torch.device
    ) -> list[Tensor]:
        """Return (H * W * A,) bool for each map: whether the anchor's cell begins within `image_size` (H, W)."""
        out = []
        for (height, width), stride in zip(sizes, self.strides, strict=True):
            rows_H = torch.arange(height, device=device) < math.ceil(image_size[0] / stride)
            columns_W = torch.arange(width, device=device) < math.ceil(image_size[1] / stride)
            cells_HW = rows_H[:, None] & columns_W
            out.append(cells_HW.flatten().repeat_interleave(self.per_cell))
        return out


def within_image(boxes_N4: Tensor, size: tuple[int, int]) -> Tensor:
    """Return (N,) bool: which boxes are entirely within an image of `size` (H, W)."""
    x1, y1, x2, y2 = boxes_N4.unbind(-1)
    return (x1 >= 0) & (y1 >= 0) & (x2 < size[1]) & (y2 < size[0])


def octave_scales(base: float, per_octave: int) -> tuple[float, ...]:
    """Return `base` times the powers of 2 at 0, 1 / per_octave ... below 1."""
    return tuple(base * 2 ** (i / per_octave) for i in range(per_octave))
