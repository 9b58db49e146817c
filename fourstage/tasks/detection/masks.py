"""Masks between the image and the small grids of mask heads. N masks, M x M cells, H x W pixels."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import roi_align

from fourstage.ops.eager import may_run_fast
from fourstage.tasks.detection.padding import padded, padded_size

PIXELS = 2**24  # float32 pixels of full-size masks that are in memory at a time


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
        cropped = roi_align(padded(masks_GHW[masks])[:, None].to(boxes_N4), rois_N5, size, 1.0, 0, aligned=True)
        out_NMM[here] = (cropped.squeeze(1) >= 0.5).to(boxes_N4)
    return out_NMM


@dataclass(frozen=True)
class SmallMasks:
    """Predicted masks on the small grid of a mask head, each stretched over its box; `paste` turns them into pixels.

    Hundreds of masks of a large image take gigabytes, so a few are pasted at a time.
    """

    probabilities_NMM: Tensor  # float32
    boxes_N4: Tensor  # pixels of the image that they are pasted into
    size: tuple[int, int]  # (H, W) of that image
    threshold: float = 0.5  # from this probability on, a pixel belongs to the object

    def __len__(self) -> int:
        return len(self.boxes_N4)

    def paste(self) -> Iterator[Tensor]:
        """Yield all masks in their order, (n, H, W) bool, as many at a time as fit in memory easily."""
        if not len(self):
            return
        at_once = max(1, PIXELS // (self.size[0] * self.size[1]))
        if may_run_fast(self.boxes_N4):
            at_once = 1  # each within its own window, which is mostly small
        for small, boxes in zip(self.probabilities_NMM.split(at_once), self.boxes_N4.split(at_once), strict=True):
            yield self._pasted(small, boxes)

    def full_size(self) -> Tensor:
        """Return all masks at once, (N, H, W) bool."""
        out_NHW = torch.zeros((len(self), *self.size), dtype=torch.bool, device=self.boxes_N4.device)
        first = 0
        for masks in self.paste():
            out_NHW[first : first + len(masks)] = masks
            first += len(masks)
        return out_NHW

    def _pasted(self, small_NMM: Tensor, boxes_N4: Tensor) -> Tensor:
        top, bottom = _window(boxes_N4[:, 1], boxes_N4[:, 3], self.size[0])
        left, right = _window(boxes_N4[:, 0], boxes_N4[:, 2], self.size[1])
        out_NHW = torch.zeros((len(boxes_N4), *self.size), dtype=torch.bool, device=boxes_N4.device)
        if top < bottom and left < right:
            rows = _interpolated(small_NMM, boxes_N4[:, 1], boxes_N4[:, 3], top, bottom).mT  # (N, M, rows)
            pixels = _interpolated(rows, boxes_N4[:, 0], boxes_N4[:, 2], left, right).mT
            out_NHW[:, top:bottom, left:right] = pixels >= self.threshold
        return out_NHW


def _window(low_N: Tensor, high_N: Tensor, side: int) -> tuple[int, int]:
    """Return the pixels along one axis that boxes can touch."""
    return max(0, int(low_N.min().floor()) - 1), min(side, int(high_N.max().ceil()) + 1)


def _interpolated(values_NMK: Tensor, low_N: Tensor, high_N: Tensor, first: int, last: int) -> Tensor:
    """Linear interpolation along the second axis, at the centres of pixels `first` to `last`: (N, last - first, K).

    The M values are at the centres of M equal cells from `low` to `high`; beyond half a cell outside there are zeros.
    A box without extent gives its middle value to the two or three pixels around it.
    """
    cells = values_NMK.shape[1]
    center = torch.arange(first, last, device=low_N.device, dtype=low_N.dtype) + 0.5
    place_NP = (center - low_N[:, None]) / (high_N - low_N)[:, None] * 2 - 1
    place_NP = torch.where(place_NP.isfinite(), place_NP, 0.0)
    place_NP = ((place_NP + 1) * cells - 1) / 2
    near_window = (center > low_N[:, None].floor() - 1) & (center < high_N[:, None].ceil() + 1)
    below_NP = place_NP.floor()
    share_NP = place_NP - below_NP

    def read(index_NP: Tensor, weight_NP: Tensor) -> Tensor:
        exists_NP = (index_NP >= 0) & (index_NP < cells) & near_window
        index_NP = index_NP.clamp(0, cells - 1).long()[:, :, None].expand(-1, -1, values_NMK.shape[2])
        return (weight_NP * exists_NP)[:, :, None] * values_NMK.gather(1, index_NP)

    return read(below_NP, 1 - share_NP) + read(below_NP + 1, share_NP)
