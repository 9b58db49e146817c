"""Costs and losses of queries whose boxes are centre, width and height as shares of the image.

B images, Q queries, C classes, G objects, M matched pairs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fourstage.tasks.detection.boxes import as_float32, center_form, corner_form, generalized_iou
from fourstage.tasks.detection.detector import GroundTruth
from fourstage.tasks.detection.losses import focal_sum, giou_sum
from fourstage.tasks.detection.set_criterion import Cost, Loss, MatchedPairs, Queries

ALPHA, GAMMA = 0.25, 2.0
UNIT = 1000.0  # of shares, for the generalised IoU: it has no unit, but the floor of its areas is meant for pixels


def focal_cost(logits_QC: Tensor, labels_G: Tensor) -> Tensor:
    """Return (Q, G): the focal loss of a query for the object's class, less that for no object."""
    logits_QG = as_float32(logits_QC)[:, labels_G]
    share_QG = logits_QG.sigmoid()
    positive_QG = ALPHA * F.softplus(-logits_QG) * (1 - share_QG) ** GAMMA
    return positive_QG - (1 - ALPHA) * F.softplus(logits_QG) * share_QG**GAMMA


def giou_of(boxes_N4: Tensor, truth_N4: Tensor) -> Tensor:
    """Return the generalised IoU of predicted boxes with true ones, which are corners; both as shares, broadcast."""
    return generalized_iou(corner_form(boxes_N4) * UNIT, truth_N4 * UNIT)


def set_cost(class_weight: float = 2.0, box_weight: float = 5.0, giou_weight: float = 2.0) -> Cost:
    """Return the cost of matching: classes, boxes and overlaps, with these weights."""

    def cost(logits_QC: Tensor, boxes_Q4: Tensor, truth: GroundTruth) -> Tensor:
        distance_QG = torch.cdist(boxes_Q4, center_form(truth.boxes_G4), p=1)
        giou_QG = giou_of(boxes_Q4[:, None], truth.boxes_G4[None])
        return focal_cost(logits_QC, truth.labels_G) * class_weight + distance_QG * box_weight - giou_QG * giou_weight

    return cost


def class_loss(queries: Queries, pairs: MatchedPairs) -> Tensor:
    """Return the focal loss, summed: 1 for the class of a matched query, 0 for all others."""
    logits_BQC = as_float32(queries.logits_BQC)
    positive_M = logits_BQC[pairs.image_M, pairs.query_M, pairs.labels_M]
    return focal_sum(logits_BQC, logits_BQC.new_ones(()), positive_M, alpha=ALPHA, gamma=GAMMA)


def box_loss(queries: Queries, pairs: MatchedPairs) -> Tensor:
    """Return absolute differences of centres, widths and heights, summed."""
    boxes_M4 = queries.boxes_BQ4[pairs.image_M, pairs.query_M]
    return F.l1_loss(boxes_M4, center_form(pairs.boxes_M4), reduction="sum")


def giou_loss(queries: Queries, pairs: MatchedPairs) -> Tensor:
    """Return 1 - generalised IoU, summed."""
    boxes_M4 = queries.boxes_BQ4[pairs.image_M, pairs.query_M]
    return giou_sum(corner_form(boxes_M4) * UNIT, pairs.boxes_M4 * UNIT)


LOSSES: dict[str, Loss] = {"loss_cls": class_loss, "loss_bbox": box_loss, "loss_iou": giou_loss}
WEIGHTS = {"loss_bbox": 5.0, "loss_iou": 2.0}
