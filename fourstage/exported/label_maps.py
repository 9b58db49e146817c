"""Label maps by a segmentor's graph, as `tasks.segmentation.inference`, with numpy alone and one view of an image.

The logits of a window are kept at the size that the graph returns. The scores of all classes exist for a strip of rows
at a time. C classes, H x W pixels of the view or of the image, h x w cells of the logits, R rows of a strip.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod

import numpy as np

from fourstage.data.transforms.resizing import Size, resize_nearest

Span = tuple[int, int]  # first, and one past the last
Run = Callable[[Sequence[tuple[int, int]]], np.ndarray]  # corners of windows to (B, C, h, w) logits, or (B, H, W)
Progress = Callable[[int, int], None]

AT_ONCE = 2**19  # pixels of windows that pass the graph together
STRIP = 2**23  # scores of a strip, all classes together


@dataclass(eq=False)
class View:
    """The windows of an image as the graph reads them.

    Attributes:
        size: (H, W) of the resized image, without what it is filled up with.
        extent: (H, W) of each window.
        corners: top and left of each window.
        run: returns the outputs for windows with these corners.
        aligned: whether logits are resized with aligned corners.
        coarse: the logits of windows that are computed, (C, h, w) by their number.
    """

    size: Size
    extent: Size
    corners: Sequence[tuple[int, int]]
    run: Run
    aligned: bool = False
    coarse: dict[int, np.ndarray] = field(default_factory=dict)

    def scores(self, out: Size, rows: Span) -> np.ndarray:
        """Return (C, R, W) rows of the logits of this view resized to `out`."""
        down = input_span(self.size[0], out[0], rows, self.aligned)
        self._provide(down)
        logits_CRW = resized_part(
            self._averaged(down), self.size[0], out[0], rows, down[0], axis=1, aligned=self.aligned
        )
        columns = (0, out[1])
        return resized_part(logits_CRW, self.size[1], out[1], columns, 0, axis=2, aligned=self.aligned)

    def classes(self) -> int:
        """Return the number of classes, after the first window has passed the graph."""
        self._run([0])
        return len(self.coarse[0])

    def _provide(self, rows: Span) -> None:
        """Compute the missing windows that these rows of the view need, and drop those that end above."""
        height = self.extent[0]
        self.coarse = {i: kept for i, kept in self.coarse.items() if self.corners[i][0] + height > rows[0]}
        self._run([i for i in self._touching(rows) if i not in self.coarse])

    def _touching(self, rows: Span) -> list[int]:
        return [i for i, (top, _) in enumerate(self.corners) if top < rows[1] and top + self.extent[0] > rows[0]]

    def _run(self, numbers: Sequence[int]) -> None:
        count = max(1, AT_ONCE // prod(self.extent))
        for start in range(0, len(numbers), count):
            some = numbers[start : start + count]
            self.coarse |= zip(some, self.run([self.corners[i] for i in some]).astype(np.float32), strict=True)

    def _averaged(self, rows: Span) -> np.ndarray:
        """Return (C, R, W), the mean over all windows, on these rows of the view."""
        if len(self.corners) == 1:
            return self._enlarged(0, rows)[:, :, : self.size[1]]
        first = next(iter(self.coarse.values()))
        total_CRW = np.zeros((len(first), rows[1] - rows[0], self.size[1]), np.float32)
        count_RW = np.zeros(total_CRW.shape[1:], np.float32)
        for i in self._touching(rows):
            top, left = self.corners[i]
            span = max(top, rows[0]), min(top + self.extent[0], rows[1])
            right = min(left + self.extent[1], self.size[1])
            place = slice(span[0] - rows[0], span[1] - rows[0]), slice(left, right)
            total_CRW[:, place[0], place[1]] += self._enlarged(i, (span[0] - top, span[1] - top))[:, :, : right - left]
            count_RW[place] += 1
        return total_CRW / count_RW

    def _enlarged(self, number: int, rows: Span) -> np.ndarray:
        """Return rows of a window's logits on its pixels, (C, R, width of the window)."""
        coarse_Chw = self.coarse[number]
        (high, wide), (height, width) = coarse_Chw.shape[1:], self.extent
        first, last = input_span(high, height, rows, self.aligned)
        part = resized_part(coarse_Chw[:, first:last], high, height, rows, first, axis=1, aligned=self.aligned)
        return resized_part(part, wide, width, (0, width), 0, axis=2, aligned=self.aligned)


def label_map(view: View, out: Size, progress: Progress) -> np.ndarray:
    """Return (H, W) uint8, the most likely class of every pixel of an image of size `out`."""
    labels_HW = np.empty(out, np.uint8)
    larger = max(1.0, prod(view.size) / prod(out))
    step = max(1, int(STRIP / (view.classes() * out[1] * larger)))
    for top in range(0, out[0], step):
        bottom = min(top + step, out[0])
        labels_HW[top:bottom] = view.scores(out, (top, bottom)).argmax(axis=0)
        progress(bottom * out[1], prod(out))
    return labels_HW


def label_map_of_graph(view: View, out: Size) -> np.ndarray:
    """Return (H, W) uint8 of an image of size `out` from the label map that the graph returns for one window."""
    height, width = view.size
    return resize_nearest(view.run(view.corners)[0][:height, :width].astype(np.uint8), out)


def resized_part(
    x_CHW: np.ndarray, old: int, new: int, cells: Span, origin: int, *, axis: int, aligned: bool
) -> np.ndarray:
    """Return some cells of a map that is resized along one axis, by bilinear interpolation.

    Args:
        x_CHW: the map from `origin` on, as far as it is read; see `input_span`.
        old, new: cells along the axis of the complete map and of the complete result.
        cells: of the result.
        axis: 1 or 2.
    """
    if old == new:
        first, last = cells[0] - origin, cells[1] - origin
        return x_CHW[:, first:last] if axis == 1 else x_CHW[:, :, first:last]
    matrix = _matrix(old, new, cells, origin, x_CHW.shape[axis], aligned)
    return matrix @ x_CHW if axis == 1 else x_CHW @ matrix.T


def input_span(old: int, new: int, cells: Span, aligned: bool) -> Span:
    """Return the cells, of `old` along an axis, that some cells of `new` are computed from."""
    if old == new:
        return cells
    low, high, _ = _taps(old, new, cells, aligned)
    return int(low[0]), int(high[-1]) + 1


def _taps(old: int, new: int, cells: Span, aligned: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the two cells that each cell of the result is computed from, and the weight of the second one."""
    place = np.arange(*cells, dtype=np.float32)
    if aligned:
        place = place * (np.float32(old - 1) / np.float32(max(new - 1, 1)))
    else:
        place = np.maximum((place + np.float32(0.5)) * (np.float32(old) / np.float32(new)) - np.float32(0.5), 0)
    low = np.minimum(place.astype(np.int64), old - 1)
    return low, np.minimum(low + 1, old - 1), (place - low).astype(np.float32)


@lru_cache(maxsize=64)
def _matrix(old: int, new: int, cells: Span, origin: int, count: int, aligned: bool) -> np.ndarray:
    """Return (cells of the result, `count` cells of the map from `origin` on), two weights in each row."""
    low, high, weight = _taps(old, new, cells, aligned)
    matrix = np.zeros((len(low), count), np.float32)
    rows = np.arange(len(low))
    matrix[rows, low - origin] += 1 - weight
    matrix[rows, high - origin] += weight
    return matrix
