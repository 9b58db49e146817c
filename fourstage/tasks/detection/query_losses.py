"""Costs and losses of queries whose boxes are centre, width and height as shares of the image.

B images, Q queries, C classes, G objects, M matched pairs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fourstage.tasks.detection.boxes import as_float32, center_form, corner_form, generalized_iou, overlaps
from fourstage.tasks.detection.detector import GroundTruth
from fourstage.tasks.detection.losses import focal_sum, giou_sum
from fourstage.tasks.detection.set_criterion import Loss, MatchedPairs, Queries

ALPHA, GAMMA = 0.25, 2.0
SMALL = 1e-8  # is added to a share before it divides or its logarithm is taken
CERTAIN = 1e-12  # is added to a probability before its logarithm is taken, in the cost of a class
UNIT = 1000.0  # of shares, for the generalised IoU: it has no unit, but the floor of its areas is meant for pixels


def focal_cost(logits_QC: Tensor, labels_G: Tensor) -> Tensor:
    """Return (Q, G): the focal loss of a query for the object's class, less that for no object.

    It is computed from the probability, as in MMDetection: a certain query costs no more than -log(1e-12), and its
    rounding decides between queries of high scores. Logarithms of the logits would match other queries.
    """
    share_QG = as_float32(logits_QC)[:, labels_G].sigmoid()
    negative_QG = -(1 - share_QG + CERTAIN).log() * (1 - ALPHA) * share_QG**GAMMA
    return -(share_QG + CERTAIN).log() * ALPHA * (1 - share_QG) ** GAMMA - negative_QG


def giou_of(boxes_N4: Tensor, truth_N4: Tensor) -> Tensor:
    """Return the generalised IoU of predicted boxes with true ones, which are corners; both as shares, broadcast."""
    return generalized_iou(corner_form(boxes_N4) * UNIT, truth_N4 * UNIT)


def set_cost(logits_QC: Tensor, boxes_Q4: Tensor, truth: GroundTruth) -> Tensor:
    """Return the cost of matching: classes, boxes and overlaps, with weights 2, 5 and 2."""
    distance_QG = torch.cdist(boxes_Q4, center_form(truth.boxes_G4.to(boxes_Q4.dtype)), p=1)
    giou_QG = giou_of(boxes_Q4[:, None], truth.boxes_G4[None])
    return focal_cost(logits_QC, truth.labels_G) * 2.0 + distance_QG * 5.0 - giou_QG * 2.0


def position_modulated_cost(layers: int, logits_QC: Tensor, boxes_Q4: Tensor, truth: GroundTruth) -> Tensor:
    """Return Stable-DINO's cost, https://arxiv.org/abs/2304.04742: a class counts as far as its box fits the object.

    The probability of a class is multiplied by the root of the overlap, which the best pair of a layer and image has
    as 1.

    Args:
        layers: whose queries come one after the other.
    """
    distance_QG = torch.cdist(boxes_Q4, center_form(truth.boxes_G4.to(boxes_Q4.dtype)), p=1)
    giou_QG = giou_of(boxes_Q4[:, None], truth.boxes_G4[None])
    if not giou_QG.numel():
        return distance_QG
    fit_QG = (giou_QG + 1) / 2
    fit_LN = fit_QG.reshape(layers, -1)
    fit_QG = (fit_LN / fit_LN.amax(dim=1, keepdim=True).clamp(min=SMALL, max=1)).reshape_as(fit_QG)
    share_QG = as_float32(logits_QC)[:, truth.labels_G].sigmoid() * fit_QG.sqrt()
    positive_QG = -ALPHA * (1 - share_QG) ** GAMMA * (share_QG + SMALL).log()
    negative_QG = -(1 - ALPHA) * share_QG**GAMMA * (1 - share_QG + SMALL).log()
    return (positive_QG - negative_QG) * 2.0 + distance_QG * 5.0 - giou_QG * 2.0


def class_loss(queries: Queries, pairs: MatchedPairs) -> Tensor:
    """Return the focal loss, summed: 1 for the class of a matched query, 0 for all others."""
    logits_BQC = as_float32(queries.logits_BQC)
    positive_M = logits_BQC[pairs.image_M, pairs.query_M, pairs.labels_M]
    return focal_sum(logits_BQC, logits_BQC.new_ones(()), positive_M, alpha=ALPHA, gamma=GAMMA)


def position_supervised_loss(queries: Queries, pairs: MatchedPairs) -> Tensor:
    """Return Stable-DINO's loss of the classes, summed: the target of a matched query is its squared overlap.

    The best target of an image is raised to 1. Queries that are matched to nothing have the focal loss.
    """
    logits_BQC = as_float32(queries.logits_BQC)
    logits_M = logits_BQC[pairs.image_M, pairs.query_M, pairs.labels_M]
    boxes_M4 = corner_form(queries.boxes_BQ4[pairs.image_M, pairs.query_M].detach())
    both_M, union_M = overlaps(boxes_M4 * UNIT, pairs.boxes_M4 * UNIT)
    target_M = (both_M / union_M) ** 2
    best_B = target_M.new_zeros(len(logits_BQC)).scatter_reduce(0, pairs.image_M, target_M, "amax")
    target_M = target_M / (best_B[pairs.image_M] + SMALL).clamp(max=1)
    share_M = logits_M.sigmoid()
    error_M = F.binary_cross_entropy_with_logits(logits_M, target_M, reduction="none")
    matched = (ALPHA * (target_M - share_M) ** GAMMA * error_M).sum()
    negative = (1 - ALPHA) * (F.softplus(logits_BQC) * logits_BQC.sigmoid() ** GAMMA).sum()
    return negative - (1 - ALPHA) * (F.softplus(logits_M) * share_M**GAMMA).sum() + matched


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
STABLE_LOSSES: dict[str, Loss] = {**LOSSES, "loss_cls": position_supervised_loss}
STABLE_WEIGHTS = {**WEIGHTS, "loss_cls": 6.0}
