"""Losses as sums, and their division by a count. N boxes, C classes.

A count is a scalar tensor. As in the published detectors, the smallest float32 step is added to it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fourstage.tasks.detection.boxes import generalized_iou

EPSILON = torch.finfo(torch.float32).eps


def divide(total: Tensor, count: Tensor | float) -> Tensor:
    return total / (count + EPSILON)


def focal_sum(logits: Tensor, used: Tensor, positive_P: Tensor, *, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Return the focal loss of binary logits, summed; https://arxiv.org/abs/1708.02002.

    Nearly all entries are negative, so all are summed as negatives first; the positive ones are corrected afterwards.

    Args:
        logits: any shape, float32.
        used: weights that broadcast against `logits`; 0 leaves an entry out.
        positive_P: the positive entries among those in use, out of `logits`.
    """
    negatives = (_focal(-logits, gamma) * used).sum() * (1 - alpha)
    return negatives + (alpha * _focal(positive_P, gamma) - (1 - alpha) * _focal(-positive_P, gamma)).sum()


def _focal(agreement: Tensor, gamma: float) -> Tensor:
    """Return the focal loss of logits that should be large, without alpha."""
    return F.softplus(-agreement) * torch.sigmoid(-agreement) ** gamma


def smooth_l1_sum(predicted_N4: Tensor, target_N4: Tensor, beta: float = 0.0) -> Tensor:
    """Return absolute differences, summed; quadratic below `beta`, where that is above 0."""
    return F.smooth_l1_loss(predicted_N4, target_N4, beta=beta, reduction="sum")


def giou_sum(predicted_N4: Tensor, target_N4: Tensor) -> Tensor:
    """Return 1 - generalised IoU of box pairs, summed."""
    return (1 - generalized_iou(predicted_N4, target_N4)).sum()
