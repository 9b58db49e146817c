"""Masks between the image and the small grids of mask heads. N masks, M x M cells, H x W pixels.

A window is a rectangle of h x w pixels that a box may touch. Masks are empty outside of their windows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fourstage.data.objects.rle import encode_mask, encode_windows
from fourstage.ops.eager import may_run_fast
from fourstage.ops.torchvision_kernels import roi_align
from fourstage.tasks.detection.padding import padded, padded_size

PIXELS = 2**24  # float32 pixels of full-size masks that are in memory at a time
WINDOW_PIXELS = 2**18  # pixels of windows that are interpolated at a time: they stay in the processor's caches


def crop_masks(masks_GHW: Tensor, boxes_N4: Tensor, which_N: Tensor, size: int) -> Tensor:
    """Return what of a mask is in a box, as 0 and 1 on a grid of `size` cells a side.

    Args:
        masks_GHW: bool.
        boxes_N4: pixels; clipped to the padded image.
        which_N: the mask of each box.

    Returns:
        (N, size, size) float32: 1 where at least half of a cell is covered.
    """
    height, width = padded_size((masks_GHW.shape[1], masks_GHW.shape[2]))
    limit_4 = boxes_N4.new_tensor([width, height, width, height])
    boxes_N4 = torch.minimum(boxes_N4.clamp(min=0), limit_4)
    out_NMM = boxes_N4.new_zeros((len(boxes_N4), size, size))
    used = which_N.unique()
    for masks in used.split(max(1, PIXELS // (height * width))):
        here = torch.isin(which_N, masks).nonzero().squeeze(1)
        rois_N5 = torch.cat([torch.searchsorted(masks, which_N[here])[:, None].to(boxes_N4), boxes_N4[here]], dim=1)
        cropped = roi_align(padded(masks_GHW[masks])[:, None].to(boxes_N4), rois_N5, size, 1.0, 0)
        out_NMM[here] = (cropped.squeeze(1) >= 0.5).to(boxes_N4)
    return out_NMM


@dataclass(frozen=True)
class SmallMasks:
    """Predicted masks on the small grid of a mask head, each stretched over its box; `paste` turns them into pixels.

    Hundreds of masks of a large image take gigabytes, so as many are pasted at a time as fit in memory easily.
    """

    probabilities_NMM: Tensor  # float32
    boxes_N4: Tensor  # pixels of the image that they are pasted into
    size: tuple[int, int]  # (H, W) of that image
    threshold: float = 0.5  # from this probability on, a pixel belongs to the object

    def __len__(self) -> int:
        return len(self.boxes_N4)

    def chosen(self, kept: Sequence[int]) -> "SmallMasks":
        """Return the masks with these numbers, on the CPU."""
        chosen = torch.as_tensor(kept, dtype=torch.int64, device=self.boxes_N4.device)
        probabilities_NMM, boxes_N4 = self.probabilities_NMM[chosen].cpu(), self.boxes_N4[chosen].cpu()
        return replace(self, probabilities_NMM=probabilities_NMM, boxes_N4=boxes_N4)

    def moved(self, offset_4: np.ndarray) -> "SmallMasks":
        """Return the masks with their boxes moved."""
        return replace(self, boxes_N4=self.boxes_N4 + torch.from_numpy(offset_4).to(self.boxes_N4))

    @staticmethod
    def joined(several: Sequence["SmallMasks"], size: tuple[int, int]) -> "SmallMasks":
        """Return the masks of several as those of one image of `size` (H, W)."""
        probabilities_NMM = torch.cat([one.probabilities_NMM for one in several])
        boxes_N4 = torch.cat([one.boxes_N4 for one in several])
        return SmallMasks(probabilities_NMM, boxes_N4, size, several[0].threshold)

    def paste(self) -> Iterator[Tensor]:
        """Yield all masks in their order, (n, H, W) bool, as many at a time as fit in memory easily."""
        if not len(self):
            return
        at_once = max(1, PIXELS // max(1, self.size[0] * self.size[1]))
        fast = may_run_fast(self.boxes_N4)
        for small, boxes in zip(self.probabilities_NMM.split(at_once), self.boxes_N4.split(at_once), strict=True):
            some = SmallMasks(small, boxes, self.size, self.threshold)
            yield some._from_windows() if fast else some._together()

    def full_size(self) -> Tensor:
        """Return all masks at once, (N, H, W) bool."""
        out_NHW = torch.zeros((len(self), *self.size), dtype=torch.bool, device=self.boxes_N4.device)
        first = 0
        for masks in self.paste():
            out_NHW[first : first + len(masks)] = masks
            first += len(masks)
        return out_NHW

    def run_lengths(self) -> list[str]:
        """Return all masks in their order in COCO's compressed run lengths. The fast path makes no full-size mask."""
        if not may_run_fast(self.boxes_N4):
            return [encode_mask(mask_HW)["counts"] for some in self.paste() for mask_HW in some.cpu().numpy()]
        counts = [""] * len(self)
        for window in self._windows():
            encoded = encode_windows(window.pixels_Nhw.numpy(), window.top_N.numpy(), window.left_N.numpy(), self.size)
            for i, one in zip(window.masks, encoded, strict=True):
                counts[i] = one
        return counts

    def _together(self) -> Tensor:
        """The plain form: one window that holds all boxes. (N, H, W) bool."""
        top, bottom = _window(self.boxes_N4[:, 1], self.boxes_N4[:, 3], self.size[0])
        left, right = _window(self.boxes_N4[:, 0], self.boxes_N4[:, 2], self.size[1])
        out_NHW = torch.zeros((len(self), *self.size), dtype=torch.bool, device=self.boxes_N4.device)
        if top < bottom and left < right:
            top_1, left_1 = (torch.tensor([first], device=out_NHW.device) for first in (top, left))
            pixels = _stretched(self, top_1, left_1, bottom - top, right - left)
            out_NHW[:, top:bottom, left:right] = pixels
        return out_NHW

    def _from_windows(self) -> Tensor:
        """The fast path: each mask within its own window, which is mostly small. (N, H, W) bool."""
        out_NHW = torch.zeros((len(self), *self.size), dtype=torch.bool)
        full_NHW = out_NHW.numpy()  # many small copies are faster outside of torch
        for window in self._windows():
            height, width = window.pixels_Nhw.shape[1:]
            corners = zip(window.masks, window.top_N.tolist(), window.left_N.tolist(), strict=True)
            for (i, top, left), mask_hw in zip(corners, window.pixels_Nhw.numpy(), strict=True):
                full_NHW[i, top : top + height, left : left + width] = mask_hw
        return out_NHW

    def _windows(self) -> "Iterator[_Windows]":
        """Yield all masks within their windows, those of similar size together."""
        if not len(self) or not min(self.size):
            return
        top_N, height_N = _own_windows(self.boxes_N4[:, 1], self.boxes_N4[:, 3], self.size[0])
        left_N, width_N = _own_windows(self.boxes_N4[:, 0], self.boxes_N4[:, 2], self.size[1])
        for masks, height, width in _similar(height_N.tolist(), width_N.tolist()):
            # Windows that grow to the size of the largest move to where they are inside the image.
            tops, lefts = top_N[masks].clamp(max=self.size[0] - height), left_N[masks].clamp(max=self.size[1] - width)
            some = SmallMasks(self.probabilities_NMM[masks], self.boxes_N4[masks], self.size, self.threshold)
            yield _Windows(masks, tops, lefts, _stretched(some, tops, lefts, height, width))


@dataclass(frozen=True)
class _Windows:
    """Masks in windows of one size, each inside the image."""

    masks: list[int]
    top_N: Tensor  # int64, the first row of each window
    left_N: Tensor  # int64, the first column
    pixels_Nhw: Tensor  # bool


def _similar(heights: Sequence[int], widths: Sequence[int]) -> Iterator[tuple[list[int], int, int]]:
    """Yield indices of windows that are interpolated together, with their largest height and width."""
    group, height, width = list[int](), 1, 1
    for i in sorted(range(len(heights)), key=lambda i: heights[i] * widths[i]):
        if group and (len(group) + 1) * max(height, heights[i]) * max(width, widths[i]) > WINDOW_PIXELS:
            yield group, height, width
            group, height, width = [], 1, 1
        group.append(i)
        height, width = max(height, heights[i]), max(width, widths[i])
    if group:
        yield group, height, width


def _own_windows(low_N: Tensor, high_N: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Return for each box the first pixel along one axis that it can touch, and how many they are; int64.

    A box of NaN, from a network that diverged, touches none.
    """
    first_N = (low_N.floor() - 1).nan_to_num().clamp(0, side)
    last_N = (high_N.ceil() + 1).nan_to_num().clamp(0, side)
    return first_N.long(), (last_N - first_N).clamp(min=0).long()


def _window(low_N: Tensor, high_N: Tensor, side: int) -> tuple[int, int]:
    """Return the pixels along one axis that boxes can touch; one of NaN, which touches none, may add others."""
    low, high = low_N.nan_to_num().min(), high_N.nan_to_num().max()
    return max(0, int(low.floor()) - 1), min(side, int(high.ceil()) + 1)


def _stretched(masks: SmallMasks, top_N: Tensor, left_N: Tensor, height: int, width: int) -> Tensor:
    """Return the masks within windows of one size, a few columns of large ones at a time: (N, height, width) bool.

    Args:
        top_N, left_N: the first row and column of each mask's window, or one for all.
    """
    boxes_N4 = masks.boxes_N4
    rows = _interpolated(masks.probabilities_NMM, boxes_N4[:, 1], boxes_N4[:, 3], top_N, height).mT  # (N, M, height)
    columns = max(1, WINDOW_PIXELS // (len(masks) * height)) if len(masks) == 1 else width
    strips = [
        _interpolated(rows, boxes_N4[:, 0], boxes_N4[:, 2], left_N + first, min(columns, width - first)).mT
        >= masks.threshold
        for first in range(0, width, columns)
    ]
    return strips[0] if len(strips) == 1 else torch.cat(strips, dim=2)


def _interpolated(values_NMK: Tensor, low_N: Tensor, high_N: Tensor, first_N: Tensor, count: int) -> Tensor:
    """Linear interpolation along the second axis, at the centres of `count` pixels from `first` on: (N, count, K).

    The M values are at the centres of M equal cells from `low` to `high`; beyond half a cell outside there are zeros.
    A box without extent gives its middle value to the two or three pixels around it.
    """
    cells = values_NMK.shape[1]
    center_NP = first_N[:, None] + torch.arange(count, device=low_N.device, dtype=low_N.dtype) + 0.5
    place_NP = (center_NP - low_N[:, None]) / (high_N - low_N)[:, None] * 2 - 1
    place_NP = torch.where(place_NP.isfinite(), place_NP, 0.0)
    place_NP = ((place_NP + 1) * cells - 1) / 2
    near_window = (center_NP > low_N[:, None].floor() - 1) & (center_NP < high_N[:, None].ceil() + 1)
    below_NP = place_NP.floor()
    share_NP = place_NP - below_NP

    def read(index_NP: Tensor, weight_NP: Tensor) -> Tensor:
        exists_NP = (index_NP >= 0) & (index_NP < cells) & near_window
        index_NP = index_NP.clamp(0, cells - 1).long()[:, :, None].expand(-1, -1, values_NMK.shape[2])
        return (weight_NP * exists_NP)[:, :, None] * values_NMK.gather(1, index_NP)

    return read(below_NP, 1 - share_NP) + read(below_NP + 1, share_NP)
