"""From detections, or from those of tiles, to the objects of an image. Without torch. N detections, H x W pixels."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fourstage.predict.base import ImagePredictor, ReadImage, Tiling
from fourstage.predict.masks import ObjectMasks, Pieces
from fourstage.predict.results import SHOWN_SCORE, ObjectResult, Result
from fourstage.predict.tiles import Box, Grid, TileObjects, join


@dataclass(frozen=True, eq=False)
class Found:
    """The detections in one image, best score first."""

    boxes_N4: np.ndarray
    labels_N: np.ndarray
    scores_N: np.ndarray
    masks: Pieces | None = None

    def scoring(self, threshold: float) -> "Found":
        """Return the detections without those of lower scores."""
        kept = (~(self.scores_N < threshold)).nonzero()[0]
        masks = None if self.masks is None else self.masks.chosen(kept.tolist())
        return Found(self.boxes_N4[kept], self.labels_N[kept], self.scores_N[kept], masks)


class ObjectPredictor(ImagePredictor):
    """Predicts the objects in images, complete or tile by tile; see `tiles.py`.

    Args:
        threshold: detections with a lower score are left out.
        category_ids: the id of each class in the COCO json of the training data; None: it had none.
        tiling: how images are cut, whose tiles pass the network in batches; None: they are not.
    """

    gives = "objects"

    def __init__(self, threshold: float, category_ids: tuple[int, ...] | None, tiling: Tiling | None) -> None:
        super().__init__()
        self.threshold, self.category_ids, self.tiling = threshold, category_ids, tiling
        self.is_tiled = tiling is not None

    @abstractmethod
    def detect(self, images: Sequence[np.ndarray], names: Sequence[str]) -> list[Found]:
        """Return the detections in each image, in its pixels."""

    def predict(self, images: Sequence[ReadImage]) -> list[Result]:
        if self.tiling is not None:
            return [self._joined(one, self.tiling) for one in images]
        found = self.detect([one.pixels_HW3 for one in images], [one.source.name for one in images])
        return [
            self._complete(one, all_of_it.scoring(self.threshold)) for one, all_of_it in zip(images, found, strict=True)
        ]

    def _complete(self, one: ReadImage, found: Found) -> Result:
        members = tuple((i,) for i in range(len(found.labels_N)))
        masks = None if found.masks is None else ObjectMasks(found.masks, members)
        return self._result(one, found.labels_N, found.scores_N, found.boxes_N4, masks)

    def _joined(self, one: ReadImage, tiling: Tiling) -> Result:
        grid = Grid.of(one.size, tiling.side, tiling.overlap)
        tiles = self._each_tile(one, grid, tiling)
        of_tiles = [_in_the_image(found.scoring(self.threshold), box) for box, found in tiles]
        numbers_N = np.repeat(np.arange(len(of_tiles)), [len(detections.labels_N) for detections in of_tiles])
        boxes_N4, labels_N, scores_N = (
            np.concatenate([getattr(detections, name) for detections in of_tiles])
            for name in ("boxes_N4", "labels_N", "scores_N")
        )
        objects = join(grid, TileObjects(boxes_N4, labels_N, scores_N, numbers_N))
        pieces = [detections.masks for detections in of_tiles if detections.masks is not None]
        masks = ObjectMasks(pieces[0].joined(pieces, one.size), objects.members) if pieces else None
        return self._result(one, objects.labels_N, objects.scores_N, objects.boxes_N4, masks)

    def _each_tile(self, one: ReadImage, grid: Grid, tiling: Tiling) -> Iterator[tuple[Box, Found]]:
        """Yield the rectangle and the detections of each tile."""
        tiles = grid.boxes
        for first in range(0, len(tiles), tiling.batch_size):
            some = tiles[first : first + tiling.batch_size]
            crops = [one.pixels_HW3[int(y1) : int(y2), int(x1) : int(x2)] for x1, y1, x2, y2 in some]
            yield from zip(some, self.detect(crops, [one.source.name] * len(some)), strict=True)
            self.progress(first + len(some), len(tiles))

    def _result(
        self,
        one: ReadImage,
        labels_N: np.ndarray,
        scores_N: np.ndarray,
        boxes_N4: np.ndarray,
        masks: ObjectMasks | None,
    ) -> Result:
        """Return the objects of an image as its result."""
        shown = self.threshold or SHOWN_SCORE
        return ObjectResult(
            one.source, one.size, self.class_names, labels_N, scores_N, boxes_N4, masks, shown, self.category_ids
        )


def _in_the_image(found: Found, box: Box) -> Found:
    """Return the detections of a tile in pixels of the complete image."""
    offset_4 = np.array([box[0], box[1], box[0], box[1]], dtype=np.float32)
    masks = None if found.masks is None else found.masks.moved(offset_4)
    return Found(found.boxes_N4 + offset_4, found.labels_N, found.scores_N, masks)
