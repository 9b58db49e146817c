"""The graph of Mask R-CNN and Cascade Mask R-CNN, with masks or without.

B images, N anchors of a map, P proposals of an image, R = B x P regions, C classes, K boxes of a region (C, or one for
all classes), D detections of an image, M x M cells of a mask.

Every image has the same number of proposals: where suppression leaves fewer, the places that are free hold a box in the
corner of the image and score nothing.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fourstage.export.graphs.base import Graph, best, round_up, rows
from fourstage.exported.description import Suppression
from fourstage.ops.nms_mask import nms_mask
from fourstage.tasks.detection.box_head import BoxHead
from fourstage.tasks.detection.cascade_mask_rcnn import CascadeMaskRCNN
from fourstage.tasks.detection.mask_head import MaskHead
from fourstage.tasks.detection.mask_rcnn import MaskRCNN
from fourstage.tasks.detection.rois import to_rois_of_batch
from fourstage.tasks.detection.single_stage import by_anchor
from fourstage.tasks.detection.two_stage import TwoStage
from fourstage.tasks.parts.levels import feature_maps

NOTHING = -1.0  # the score of a place that is free
LOWEST = 1e-3  # pairs with masks score more: few of a trained network, and enough of another one to compare
SHARE = 0.5  # of the score of each class where all are equal: an untrained network with many classes has no more


class TwoStageGraph(Graph):
    """The detections with masks, after suppression; or the boxes and scores of all proposals, before it.

    Boxes without masks are suppressed in pixels of the original image, which a graph does not know.
    """

    kind = "detections"
    reads_sizes = True  # proposals end at the border of the image without its padding

    def __init__(self, detector: TwoStage) -> None:
        super().__init__()
        self.detector, limits, self.multiple = detector, detector.limits, detector.pad_to
        self.box_heads, self.mask_heads = _box_heads(detector), _mask_heads(detector)
        coarsest = detector.rpn.anchors.strides[-1]
        self.smallest_sides = tuple(round_up(side, self.multiple) for side in (coarsest + 1, 2 * coarsest + 1))
        if self.mask_heads:
            self.lowest = min(limits.score_threshold, LOWEST, SHARE / (detector.num_classes + 1))
        self.outputs = ("boxes", "scores", "labels", "masks") if self.mask_heads else ("boxes", "scores")
        self.suppression = Suppression(
            threshold=limits.score_threshold,
            iou=None if self.mask_heads else limits.iou_threshold,
            most=limits.per_image,
            where="input" if self.mask_heads else "image",
            mask_threshold=limits.mask_threshold,
        )

    def forward(self, images_BCHW: Tensor, sizes_B2: Tensor) -> tuple[Tensor, ...]:
        detector = self.detector
        maps = detector.neck(feature_maps(detector.backbone, images_BCHW))
        boxes_BP4, is_free_BP = self._propose(maps, sizes_B2)
        boxes_BPK4, scores_BPC = self._classify(maps, boxes_BP4, sizes_B2)
        scores_BPC = scores_BPC.masked_fill(is_free_BP[..., None], 0.0)
        if not self.mask_heads:
            return boxes_BPK4, scores_BPC
        boxes_BD4, scores_BD, labels_BD = self._select(boxes_BPK4, scores_BPC)
        return boxes_BD4, scores_BD, labels_BD, self._masks(maps, boxes_BD4, labels_BD)

    def _propose(self, maps: Sequence[Tensor], sizes_B2: Tensor) -> tuple[Tensor, Tensor]:
        """Return the proposals (B, P, 4) and which of them are none (B, P)."""
        rpn, how = self.detector.rpn, self.detector.rpn.proposals
        logits, deltas = rpn(maps)
        anchors = rpn.anchors.boxes([(x.shape[-2], x.shape[-1]) for x in logits], logits[0].device)
        boxes, scores = [], []
        for logits_BAHW, deltas_BAHW, anchors_N4 in zip(logits, deltas, anchors, strict=True):
            scores_BN, place_BN = best(by_anchor(logits_BAHW, 1).squeeze(2).sigmoid(), how.per_level)
            deltas_BN4 = rows(by_anchor(deltas_BAHW, 4), place_BN)
            boxes_BN4 = rpn.coder.decode(anchors_N4[place_BN], deltas_BN4, sizes_B2[:, None])
            has_area_BN = (boxes_BN4[..., 2:] > boxes_BN4[..., :2]).all(dim=2)
            scores_BN = scores_BN.masked_fill(~has_area_BN, NOTHING)
            kept_BN = nms_mask(boxes_BN4, scores_BN, how.iou_threshold, NOTHING / 2, how.per_image)
            boxes.append(boxes_BN4)
            scores.append(scores_BN.masked_fill(~kept_BN, NOTHING))
        scores_BP, place_BP = best(torch.cat(scores, dim=1), how.per_image)
        is_free_BP = scores_BP <= NOTHING / 2
        return _in_corner(rows(torch.cat(boxes, dim=1), place_BP), is_free_BP), is_free_BP

    def _classify(self, maps: Sequence[Tensor], boxes_BP4: Tensor, sizes_B2: Tensor) -> tuple[Tensor, Tensor]:
        """Return the boxes (B, P, K, 4) of the last head, and the scores (B, P, C) of all heads together."""
        batch, count = boxes_BP4.shape[:2]
        size_R2 = sizes_B2[:, None].expand(-1, count, -1).flatten(0, 1)
        boxes_R4, all_logits, deltas_RK4 = boxes_BP4.flatten(0, 1), [], boxes_BP4[:, :, None].flatten(0, 1)
        for i, head in enumerate(self.box_heads):
            rois_R5 = to_rois_of_batch(boxes_R4.unflatten(0, (batch, count)))
            logits_RC, deltas_RK4 = head(self.detector.box_pool(maps, rois_R5))
            all_logits.append(logits_RC)
            if i + 1 < len(self.box_heads):
                boxes_R4 = head.refine(boxes_R4, deltas_RK4, logits_RC[:, :-1].argmax(dim=1), size_R2)
        scores_RC = (torch.stack(all_logits).sum(dim=0) / len(all_logits)).softmax(dim=1)[:, :-1]
        boxes_RK4 = self.box_heads[-1].coder.decode(boxes_R4[:, None], deltas_RK4, size_R2[:, None])
        return boxes_RK4.unflatten(0, (batch, count)), scores_RC.unflatten(0, (batch, count))

    def _select(self, boxes_BPK4: Tensor, scores_BPC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the detections that suppression within each class leaves: boxes, scores and labels, best first."""
        limits = self.detector.limits
        batch, count, classes = scores_BPC.shape
        boxes_BCP4 = boxes_BPK4.transpose(1, 2).expand(-1, classes, -1, -1)
        scores_BCP = scores_BPC.transpose(1, 2)
        kept_GP = nms_mask(
            boxes_BCP4.flatten(0, 1), scores_BCP.flatten(0, 1), limits.iou_threshold, self.lowest, limits.per_image
        )
        scores_BCP = scores_BCP.masked_fill(~kept_GP.unflatten(0, (batch, classes)), NOTHING)
        scores_BD, place_BD = best(scores_BCP.flatten(1), limits.per_image)
        labels_BD = torch.div(place_BD, count, rounding_mode="floor")
        boxes_BD4 = rows(boxes_BCP4.flatten(1, 2), place_BD)
        return _in_corner(boxes_BD4, scores_BD <= NOTHING / 2), scores_BD, labels_BD

    def _masks(self, maps: Sequence[Tensor], boxes_BD4: Tensor, labels_BD: Tensor) -> Tensor:
        """Return the mean probabilities (B, D, M, M) of all mask heads."""
        regions = self.detector.mask_pool(maps, to_rois_of_batch(boxes_BD4))
        labels_R = labels_BD.flatten()
        masks = [head.of_class(regions, labels_R).sigmoid() for head in self.mask_heads]
        return torch.stack(masks).mean(dim=0).unflatten(0, boxes_BD4.shape[:2])


def _box_heads(detector: TwoStage) -> list[BoxHead]:
    if isinstance(detector, MaskRCNN):
        return [detector.box_head]
    assert isinstance(detector, CascadeMaskRCNN), "there are two methods with two stages"
    return [head for head in detector.box_heads if isinstance(head, BoxHead)]


def _mask_heads(detector: TwoStage) -> list[MaskHead]:
    if isinstance(detector, MaskRCNN):
        return [] if detector.mask_head is None else [detector.mask_head]
    assert isinstance(detector, CascadeMaskRCNN), "there are two methods with two stages"
    return [head for head in detector.mask_heads if isinstance(head, MaskHead)]


def _in_corner(boxes_BP4: Tensor, is_free_BP: Tensor) -> Tensor:
    """Return boxes of which some are moved to the first pixel of the image, where pooling costs little."""
    return torch.where(is_free_BP[..., None], boxes_BP4.new_tensor([0.0, 0.0, 1.0, 1.0]), boxes_BP4)
