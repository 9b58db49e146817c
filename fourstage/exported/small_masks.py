"""Predicted masks on small grids and their pixels, as `tasks.detection.masks`, with numpy alone.

N masks, M x M cells, H x W pixels of the image, h x w pixels of the window of a box.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fourstage.data.objects.rle import encode_windows


@dataclass(frozen=True, eq=False)
class SmallMasks:
    """Masks that are stretched over their boxes.

    Attributes:
        probabilities_NMM: float32.
        boxes_N4: pixels of the image.
        size: (H, W) of the image.
        threshold: from this probability on, a pixel belongs to the object.
    """

    probabilities_NMM: np.ndarray
    boxes_N4: np.ndarray
    size: tuple[int, int]
    threshold: float = 0.5

    def __len__(self) -> int:
        return len(self.boxes_N4)

    def chosen(self, kept: Sequence[int]) -> "SmallMasks":
        """Return the masks with these numbers."""
        rows = np.asarray(kept, dtype=np.int64)
        return replace(self, probabilities_NMM=self.probabilities_NMM[rows], boxes_N4=self.boxes_N4[rows])

    def moved(self, offset_4: np.ndarray) -> "SmallMasks":
        """Return the masks with their boxes moved."""
        return replace(self, boxes_N4=self.boxes_N4 + offset_4)

    @staticmethod
    def joined(several: Sequence["SmallMasks"], size: tuple[int, int]) -> "SmallMasks":
        """Return the masks of several as those of one image of `size` (H, W)."""
        probabilities_NMM = np.concatenate([one.probabilities_NMM for one in several])
        boxes_N4 = np.concatenate([one.boxes_N4 for one in several])
        return SmallMasks(probabilities_NMM, boxes_N4, size, several[0].threshold)

    def full_size(self) -> np.ndarray:
        """Return (N, H, W) bool."""
        out_NHW = np.zeros((len(self), *self.size), bool)
        for out_HW, (top, left, window_hw) in zip(out_NHW, self._windows(), strict=True):
            out_HW[top : top + window_hw.shape[0], left : left + window_hw.shape[1]] = window_hw
        return out_NHW

    def run_lengths(self) -> list[str]:
        """Return the masks in COCO's compressed run lengths. No mask of the full size is made."""
        counts = []
        for top, left, window_hw in self._windows():
            counts += encode_windows(window_hw[None], np.array([top]), np.array([left]), self.size)
        return counts

    def _windows(self) -> Iterator[tuple[int, int, np.ndarray]]:
        """Yield for each mask the first row and column of its window, and the pixels in it, (h, w) bool."""
        for cells_MM, (x1, y1, x2, y2) in zip(self.probabilities_NMM, self.boxes_N4, strict=True):
            (top, bottom), (left, right) = _window(y1, y2, self.size[0]), _window(x1, x2, self.size[1])
            rows_hM = _weights(len(cells_MM), y1, y2, top, bottom)
            columns_wM = _weights(len(cells_MM), x1, x2, left, right)
            yield top, left, rows_hM @ cells_MM @ columns_wM.T >= self.threshold


def _window(low: float, high: float, side: int) -> tuple[int, int]:
    """Return the pixels along one axis that a box can touch. A box of NaN touches none."""
    first, last = np.nan_to_num([np.floor(low) - 1, np.ceil(high) + 1]).clip(0, side)
    return int(first), max(int(first), int(last))


def _weights(cells: int, low: float, high: float, first: int, last: int) -> np.ndarray:
    """Return (pixels, cells): by how much each pixel's value is that of each cell, linear between their centres.

    Beyond half a cell outside of the box there are zeros. A box without extent gives its middle value to the two or
    three pixels around it.
    """
    centre_h = np.arange(first, last, dtype=np.float32) + np.float32(0.5)
    with np.errstate(invalid="ignore", divide="ignore"):
        place_h = (centre_h - low) / (high - low) * 2 - 1
    place_h = np.where(np.isfinite(place_h), place_h, np.float32(0)).astype(np.float32)
    place_h = ((place_h + 1) * cells - 1) / 2
    near_h = (centre_h > np.floor(low) - 1) & (centre_h < np.ceil(high) + 1)  # of no pixel for a box of NaN
    below_h = np.floor(place_h)
    share_h = place_h - below_h
    weights_hM = np.zeros((len(centre_h), cells), np.float32)
    rows_h = np.arange(len(centre_h))
    for index_h, weight_h in ((below_h, 1 - share_h), (below_h + 1, share_h)):
        inside_h = (index_h >= 0) & (index_h < cells) & near_h
        weights_hM[rows_h[inside_h], index_h[inside_h].astype(np.int64)] += weight_h[inside_h]
    return weights_hM
