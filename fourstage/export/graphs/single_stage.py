"""The graph of RetinaNet and ATSS. B images, N anchors, P chosen ones, C classes, K pairs of an anchor and a class."""

import torch
from torch import Tensor

from fourstage.export.graphs.base import Graph, best, round_up, rows
from fourstage.exported.description import Suppression
from fourstage.tasks.detection.atss import ATSS
from fourstage.tasks.detection.single_stage import SingleStage, by_anchor
from fourstage.tasks.parts.levels import feature_maps


class SingleStageGraph(Graph):
    """The candidates of RetinaNet or ATSS, before suppression, which their reader does in the original image.

    With the candidates "pairs", of each map the best pairs of an anchor and a class: boxes (B, P, 4), scores (B, P)
    and labels (B, P). With "anchors", all classes of its best anchors: scores (B, P, C). Boxes are pixels of the input.
    """

    kind = "detections"

    def __init__(self, detector: SingleStage) -> None:
        super().__init__()
        self.detector, limits, self.multiple = detector, detector.limits, detector.pad_to
        coarsest = detector.dense_head.anchors.strides[-1]
        self.smallest_sides = tuple(round_up(side, self.multiple) for side in (coarsest + 1, 2 * coarsest + 1))
        self.pairs = limits.candidates == "pairs"
        self.has_factors = isinstance(detector, ATSS)
        self.outputs = ("boxes", "scores", *(["labels"] if self.pairs else []))
        self.outputs += ("factors",) if self.has_factors else ()
        self.suppression = Suppression(
            threshold=limits.score_threshold,
            iou=limits.iou_threshold,
            most=limits.per_image,
            where="image",
            drop_empty=self.pairs,
        )

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        detector, head = self.detector, self.detector.dense_head
        maps = detector.neck(feature_maps(detector.backbone, images_BCHW))
        logits, deltas, *centers = head(maps)
        anchors = head.anchors.boxes([(x.shape[-2], x.shape[-1]) for x in logits], logits[0].device)
        found = []
        for i, anchors_N4 in enumerate(anchors):
            scores_BNC = by_anchor(logits[i], head.num_classes).sigmoid()
            factors_BN = by_anchor(centers[0][i], 1).squeeze(2).sigmoid() if self.has_factors else None
            choose = self._best_pairs if self.pairs else self._best_anchors
            found.append(choose(scores_BNC, by_anchor(deltas[i], 4), anchors_N4, factors_BN))
        return tuple(torch.cat(of_maps, dim=1) for of_maps in zip(*found, strict=True))

    def _best_pairs(
        self, scores_BNC: Tensor, deltas_BN4: Tensor, anchors_N4: Tensor, factors_BN: Tensor | None
    ) -> list[Tensor]:
        scores_BK, classes = scores_BNC.flatten(1), scores_BNC.shape[2]
        scores_BP, place_BP = best(scores_BK, self.detector.limits.per_level)
        anchor_BP = torch.div(place_BP, classes, rounding_mode="floor")
        found = [self._boxes(anchors_N4, deltas_BN4, anchor_BP), scores_BP, place_BP - anchor_BP * classes]
        return found if factors_BN is None else [*found, factors_BN.gather(1, anchor_BP)]

    def _best_anchors(
        self, scores_BNC: Tensor, deltas_BN4: Tensor, anchors_N4: Tensor, factors_BN: Tensor | None
    ) -> list[Tensor]:
        ranks_BN = scores_BNC.amax(dim=2)
        ranks_BN = ranks_BN if factors_BN is None else ranks_BN * factors_BN
        _, anchor_BP = best(ranks_BN, self.detector.limits.per_level)
        found = [self._boxes(anchors_N4, deltas_BN4, anchor_BP), rows(scores_BNC, anchor_BP)]
        return found if factors_BN is None else [*found, factors_BN.gather(1, anchor_BP)]

    def _boxes(self, anchors_N4: Tensor, deltas_BN4: Tensor, anchor_BP: Tensor) -> Tensor:
        return self.detector.dense_head.coder.decode(anchors_N4[anchor_BP], rows(deltas_BN4, anchor_BP))
