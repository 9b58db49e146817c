"""The graph of Sparse R-CNN. B images, Q proposals, D detections, R = B x Q regions, H x W pixels."""

import torch
from torch import Tensor

from fourstage.export.graphs.base import Graph, best, round_up, rows
from fourstage.exported.description import Suppression
from fourstage.tasks.detection.sparse_rcnn import SparseRCNN
from fourstage.tasks.parts.levels import feature_maps


class SparseRCNNGraph(Graph):
    """The best pairs of a proposal and a class of Sparse R-CNN; its boxes may end outside of the image."""

    kind, outputs = "detections", ("boxes", "scores", "labels")
    reads_sizes = True  # its proposals begin as shares of the image without its padding

    def __init__(self, detector: SparseRCNN) -> None:
        super().__init__()
        self.detector, self.multiple = detector, detector.pad_to
        self.suppression = Suppression(threshold=-1.0, iou=None, most=detector.per_image, where="image", clip=False)
        coarsest = detector.box_pool.strides[-1]
        self.smallest_sides = tuple(round_up(side, self.multiple) for side in (coarsest + 1, 2 * coarsest + 1))

    def forward(self, images_BCHW: Tensor, sizes_B2: Tensor) -> tuple[Tensor, ...]:
        maps = self.detector.neck(feature_maps(self.detector.backbone, images_BCHW))
        queries_BQD = self.detector.proposal_features.weight[None].repeat(images_BCHW.shape[0], 1, 1)
        last = self.detector.refine_maps(maps, queries_BQD, sizes_B2.flip(1).repeat(1, 2)[:, None])[-1]
        classes = last.logits_BQC.shape[2]
        scores_BD, place_BD = best(last.logits_BQC.sigmoid().flatten(1), self.detector.per_image)
        query_BD = torch.div(place_BD, classes, rounding_mode="floor")
        return rows(last.boxes_BQ4, query_BD), scores_BD, place_BD - query_BD * classes
