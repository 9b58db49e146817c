"""The graph of DINO. B images, P chosen pairs of a query and a class, H x W pixels, h x w cells."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fourstage.export.graphs.base import Graph, best, round_up, rows
from fourstage.exported.description import Suppression
from fourstage.tasks.detection.boxes import corner_form
from fourstage.tasks.detection.dino import DINO
from fourstage.tasks.parts.levels import feature_maps


class DINOGraph(Graph):
    """The best pairs of a query and a class of DINO: nothing remains but to clip the boxes to the image.

    It reads the size of each image beside its pixels, because its attention leaves padding out.
    """

    kind, outputs = "detections", ("boxes", "scores", "labels")
    reads_sizes = True

    def __init__(self, detector: DINO) -> None:
        super().__init__()
        self.detector, self.multiple = detector, detector.pad_to
        self.suppression = Suppression(threshold=-1.0, iou=None, most=detector.per_image, where="image")
        neck: Any = detector.neck
        strides = [level.stride for level in neck.levels]
        self.smallest_sides = tuple(
            round_up(side, self.multiple) for side in (_side_with(strides, detector.queries), 2 * strides[-1] + 1)
        )

    def forward(self, images_BCHW: Tensor, sizes_B2: Tensor) -> tuple[Tensor, ...]:
        detector = self.detector
        maps = detector.neck(feature_maps(detector.backbone, images_BCHW))
        memory = detector.encode(maps, _padding_masks(images_BCHW, sizes_B2, maps))
        decoded = detector.decode(memory, detector.choose(memory))
        last = detector.predict(len(decoded) - 1, decoded[-1])
        classes = last.logits_BQC.shape[2]
        scores_BP, place_BP = best(last.logits_BQC.sigmoid().flatten(1), detector.per_image)
        query_BP = torch.div(place_BP, classes, rounding_mode="floor")
        scale_B14 = sizes_B2.flip(1).repeat(1, 2)[:, None].to(last.boxes_BQ4.dtype)
        boxes_BP4 = corner_form(rows(last.boxes_BQ4, query_BP)) * scale_B14
        return boxes_BP4, scores_BP, place_BP - query_BP * classes


def _padding_masks(images_BCHW: Tensor, sizes_B2: Tensor, maps: Sequence[Tensor]) -> list[Tensor]:
    """Return as `Detector.padding_masks`, of sizes in a tensor."""
    beyond = []
    for axis in (0, 1):
        places = torch.arange(images_BCHW.shape[2 + axis], device=images_BCHW.device)
        beyond.append((places[None] >= sizes_B2[:, axis, None]).float())
    masks = []
    for x_BCHW in maps:
        rows_Bh, columns_Bw = (
            line_BS.index_select(1, _nearest(line_BS.shape[1], side, line_BS.device))
            for line_BS, side in zip(beyond, x_BCHW.shape[2:], strict=True)
        )
        masks.append((rows_Bh[:, :, None] + columns_Bw[:, None]) > 0)
    return masks


def _nearest(side: int, cells: int, device: torch.device) -> Tensor:
    """Return which of `side` pixels each of the cells takes, as `interpolate` has it for nearest neighbours."""
    return torch.div(torch.arange(cells, device=device) * side, cells, rounding_mode="floor")


def _side_with(strides: Sequence[int], cells: int) -> int:
    """Return the smallest side of a square image whose maps have this number of cells together."""
    return next(side for side in range(32, 2**16) if sum((side // stride) ** 2 for stride in strides) >= cells)
