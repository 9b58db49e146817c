"""Large images in overlapping tiles, and the objects of all tiles as those of one image.

Two detections of one class in different tiles are the same object if their boxes agree within the pixels that both
tiles show. This holds for an object that both tiles show completely, for one that a border cuts in one of them, and for
one that is larger than a tile. Detections are in pixels of the complete image. N, M detections, H x W pixels.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from numbers import Integral, Real

import numpy as np

Box = tuple[float, float, float, float]  # x1 y1 x2 y2

SMALLEST_TILE = 64  # pixels
MOST_OVERLAP = 0.9
AGREE = 0.5  # least overlap (IoU) of two boxes of one object, within the pixels that both tiles show
EDGE = 3.0  # pixels; a box that ends as close to the border of a tile is cut by it
WITHIN = 0.8  # least share of a cut box that is inside of another object, so that it is a piece of that object
OUTSIDE = 0.3  # least share of a piece outside of a complete box that shows that the box is not complete


@dataclass(frozen=True)
class Grid:
    """The tiles of an image, row by row.

    Attributes:
        size: (H, W) of the image.
        tops, lefts: where the rows and columns of tiles begin.
        side: height and width of each tile, or that of the image where it is smaller.
    """

    size: tuple[int, int]
    tops: tuple[int, ...]
    lefts: tuple[int, ...]
    side: int

    @staticmethod
    def of(size: tuple[int, int], side: int, overlap: float) -> "Grid":
        """Return tiles that cover an image, spread evenly, each overlapping the next by at least a share of its side.

        Raises:
            ValueError: a side or an overlap that no tiles can have.
        """
        check_tiles(side, overlap)
        tops, lefts = (_starts(length, side, overlap) for length in size)
        return Grid(size, tops, lefts, side)

    @property
    def boxes(self) -> list[Box]:
        """The rectangle of each tile."""
        height, width = self.size
        return [
            (left, top, min(left + self.side, width), min(top + self.side, height))
            for top, left in product(self.tops, self.lefts)
        ]

    def neighbours(self) -> Iterator[tuple[int, int]]:
        """Yield the numbers of tiles that overlap or touch, each pair once."""
        rows, columns = (_touching(starts, self.side) for starts in (self.tops, self.lefts))
        width = len(self.lefts)
        for (i, k), (j, n) in product(rows, columns):
            a, b = i * width + j, k * width + n
            if a < b:
                yield a, b


def check_tiles(side: int, overlap: float) -> None:
    """Raise ValueError for a side or an overlap that no tiles can have."""
    if not isinstance(side, Integral) or int(side) < SMALLEST_TILE:
        raise ValueError(f"tile is the side of a tile in pixels, a whole number from {SMALLEST_TILE} on; got {side!r}")
    if not (isinstance(overlap, Real) and 0 <= float(overlap) <= MOST_OVERLAP):
        raise ValueError(f"overlap is the share of a tile that the next one shows too, from 0 to 0.9; got {overlap!r}")


def _starts(length: int, side: int, overlap: float) -> tuple[int, ...]:
    if length <= side:
        return (0,)
    step = max(1, math.floor(side * (1 - overlap)))
    steps = math.ceil((length - side) / step)
    return tuple(round(i * (length - side) / steps) for i in range(steps + 1))


def _touching(starts: Sequence[int], side: int) -> list[tuple[int, int]]:
    """Return the numbers of intervals that overlap or touch, in both orders, and each with itself."""
    count = len(starts)
    return [(i, k) for i in range(count) for k in range(count) if abs(starts[i] - starts[k]) <= side]


@dataclass(frozen=True, eq=False)
class TileObjects:
    """The detections of all tiles of an image.

    Attributes:
        tile_N: the number of the tile of each detection.
    """

    boxes_N4: np.ndarray
    labels_N: np.ndarray
    scores_N: np.ndarray
    tile_N: np.ndarray


@dataclass(frozen=True, eq=False)
class JoinedObjects:
    """The objects of an image, best score first.

    Attributes:
        members: for each object the numbers of the detections that it consists of.
    """

    boxes_N4: np.ndarray
    labels_N: np.ndarray
    scores_N: np.ndarray
    members: tuple[tuple[int, ...], ...]


def join(grid: Grid, found: TileObjects) -> JoinedObjects:
    """Return the objects of an image from the detections of its tiles."""
    cut_N4 = _cut(grid, found)
    groups = _groups(_same_objects(grid, found, cut_N4), found.tile_N)
    is_cut_N = np.any(cut_N4, axis=1).reshape(-1)
    resolved = [_resolved(group, found, is_cut_N) for group in groups]
    boxes_M4 = np.array([box for box, _ in resolved], dtype=found.boxes_N4.dtype).reshape(-1, 4)
    scores_M = np.array([found.scores_N[group].max() for group in groups], dtype=found.scores_N.dtype)
    labels_M = np.array([found.labels_N[group[0]] for group in groups], dtype=np.int64)
    lone_M = np.array([len(group) == 1 and bool(is_cut_N[group[0]]) for group in groups], dtype=bool)
    kept = ~_pieces_of_others(boxes_M4, labels_M, lone_M)
    order = [int(i) for i in np.argsort(-scores_M, kind="stable") if kept[i]]
    return JoinedObjects(boxes_M4[order], labels_M[order], scores_M[order], tuple(resolved[i][1] for i in order))


def _cut(grid: Grid, found: TileObjects) -> np.ndarray:
    """Return (N, 4) bool: whether each side of a box ends at a border of its tile that is inside the image."""
    height, width = grid.size
    tiles_N4 = np.array(grid.boxes, dtype=np.float64).reshape(-1, 4)[found.tile_N]
    inside_N4 = tiles_N4 != np.array([0, 0, width, height])
    distance_N4 = (found.boxes_N4 - tiles_N4) * np.array([1, 1, -1, -1])
    return inside_N4 & (distance_N4 <= EDGE)


def _same_objects(grid: Grid, found: TileObjects, cut_N4: np.ndarray) -> list[tuple[float, int, int]]:
    """Return pairs of detections of neighbouring tiles that may be one object, with the overlap of their boxes."""
    tiles = grid.boxes
    outwards_4 = np.array([-1, -1, 1, 1]) * EDGE
    # A box that is cut goes on beyond the border, so that boxes meet where tiles touch without overlapping.
    tiles_N4 = np.array(tiles, dtype=np.float64).reshape(-1, 4)[found.tile_N]
    boxes_N4 = np.where(cut_N4, tiles_N4 + outwards_4, found.boxes_N4)
    order_N = np.argsort(found.tile_N, kind="stable")
    bounds = np.searchsorted(found.tile_N[order_N], np.arange(len(tiles) + 1))
    of_tile = [order_N[bounds[i] : bounds[i + 1]] for i in range(len(tiles))]
    pairs: list[tuple[float, int, int]] = []
    for a, b in grid.neighbours():
        if len(of_tile[a]) and len(of_tile[b]):
            shared_4 = _intersection(np.array(tiles[a]) + outwards_4, np.array(tiles[b]) + outwards_4)
            pairs += _agreeing(of_tile[a], of_tile[b], _intersection(boxes_N4, shared_4), found.labels_N)
    return pairs


def _agreeing(
    a: np.ndarray, b: np.ndarray, clipped_N4: np.ndarray, labels_N: np.ndarray
) -> list[tuple[float, int, int]]:
    """Return the pairs of detections of two tiles whose classes are equal and whose clipped boxes agree."""
    a, b = (rows[_areas(clipped_N4[rows]) > 0] for rows in (a, b))
    if not len(a) or not len(b):
        return []
    both_AB = _areas(_intersection(clipped_N4[a][:, None], clipped_N4[b][None]))
    iou_AB = both_AB / (_areas(clipped_N4[a])[:, None] + _areas(clipped_N4[b])[None] - both_AB)
    iou_AB[labels_N[a][:, None] != labels_N[b][None]] = 0
    return [(float(iou_AB[i, k]), int(a[i]), int(b[k])) for i, k in np.argwhere(iou_AB >= AGREE)]


def _groups(pairs: list[tuple[float, int, int]], tile_N: np.ndarray) -> list[list[int]]:
    """Return the numbers of the detections of each object; it has at most one detection in a tile.

    The boxes that agree best are joined first. What a tile shows as two objects stays two objects.
    """
    group_of: list[int] = list(range(len(tile_N)))
    members: list[list[int]] = [[i] for i in range(len(tile_N))]
    tiles: list[set[int]] = [{int(tile)} for tile in tile_N]
    for _, i, k in sorted(pairs, key=lambda pair: (-pair[0], pair[1], pair[2])):
        a, b = group_of[i], group_of[k]
        if a == b or tiles[a] & tiles[b]:
            continue
        for one in members[b]:
            group_of[one] = a
        members[a] += members[b]
        tiles[a] |= tiles[b]
        members[b] = []
    return [group for group in members if group]


def _resolved(group: Sequence[int], found: TileObjects, is_cut_N: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """Return the box of an object, and the detections that its mask consists of.

    A tile that shows the object completely decides; else the pieces are joined.
    """
    boxes_M4 = found.boxes_N4[list(group)]
    complete = [i for i in group if not is_cut_N[i]]
    if complete:
        best = max(complete, key=lambda i: float(found.scores_N[i]))
        box_4 = found.boxes_N4[best]
        share_M = _areas(_intersection(boxes_M4, box_4)) / np.maximum(_areas(boxes_M4), 1e-6)
        if len(group) == len(complete) or share_M.min() >= 1 - OUTSIDE:
            return box_4, (best,)
    return np.concatenate([boxes_M4[:, :2].min(axis=0), boxes_M4[:, 2:].max(axis=0)]), tuple(group)


def _pieces_of_others(boxes_N4: np.ndarray, labels_N: np.ndarray, lone_N: np.ndarray) -> np.ndarray:
    """Return (N,) bool: which objects were cut, were found by one tile alone, and are inside of another of their class.

    The next tile shows the other side of the border. Had there been an object, it would have found it too.
    """
    out_N = np.zeros(len(boxes_N4), dtype=bool)
    for i in np.flatnonzero(lone_N):
        others = (labels_N == labels_N[i]) & ~lone_N
        inside_M = _areas(_intersection(boxes_N4[others], boxes_N4[i]))
        out_N[i] = bool((inside_M >= WITHIN * max(float(_areas(boxes_N4[i])), 1e-6)).any())
    return out_N


def _intersection(a_N4: np.ndarray, b_N4: np.ndarray) -> np.ndarray:
    """Return the boxes that are in both; where they do not meet, boxes without area."""
    low_N2, high_N2 = np.maximum(a_N4[..., :2], b_N4[..., :2]), np.minimum(a_N4[..., 2:], b_N4[..., 2:])
    return np.concatenate([low_N2, np.maximum(high_N2, low_N2)], axis=-1)


def _areas(boxes_N4: np.ndarray) -> np.ndarray:
    return (boxes_N4[..., 2] - boxes_N4[..., 0]) * (boxes_N4[..., 3] - boxes_N4[..., 1])
