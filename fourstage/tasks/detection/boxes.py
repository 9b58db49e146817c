"""Boxes are x1 y1 x2 y2 in pixels, x2 and y2 exclusive. N, M boxes, K classes."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fourstage.ops.torchvision_kernels import nms

SMALLEST_AREA = 1e-6  # square pixels; areas below are taken as this before something is divided by them
MAX_LOG_SCALE = abs(math.log(16 / 1000))  # a decoded side is at most 62.5 times the anchor's, and at least 1 / 62.5
ONE_NMS = 10_000  # boxes; from here on a GPU goes through the groups one by one, so that its bit matrix stays small


def as_float32(x: Tensor) -> Tensor:
    """Return half precision as float32, which boxes, scores and losses need; float64 stays."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def box_areas(boxes_N4: Tensor) -> Tensor:
    """Return (N,) areas in square pixels."""
    x1, y1, x2, y2 = boxes_N4.unbind(-1)
    return (x2 - x1) * (y2 - y1)


def box_centers(boxes_N4: Tensor) -> Tensor:
    """Return (N, 2) centres, x and y."""
    return (boxes_N4[..., :2] + boxes_N4[..., 2:]) * 0.5


def have_area(boxes_N4: Tensor) -> Tensor:
    """Return (N,) bool: which boxes have positive sides."""
    return (boxes_N4[:, 2:] > boxes_N4[:, :2]).all(dim=1)


def overlaps(a_N4: Tensor, b_N4: Tensor) -> tuple[Tensor, Tensor]:
    """Return the areas of intersection and union of boxes that broadcast against each other, without the last axis."""
    ax1, ay1, ax2, ay2 = a_N4.unbind(-1)
    bx1, by1, bx2, by2 = b_N4.unbind(-1)
    width = (torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1)).clamp(min=0)
    height = (torch.minimum(ay2, by2) - torch.maximum(ay1, by1)).clamp(min=0)
    both = width * height
    return both, (box_areas(a_N4) + box_areas(b_N4) - both).clamp(min=SMALLEST_AREA)


def box_iou(a_N4: Tensor, b_M4: Tensor) -> Tensor:
    """Return the (N, M) intersection over union of every box with every other."""
    both, union = overlaps(a_N4[:, None], b_M4[None])
    return both / union


def generalized_iou(a_N4: Tensor, b_N4: Tensor) -> Tensor:
    """Return the (N,) generalised IoU, in [-1, 1], of boxes that broadcast against each other; https://arxiv.org/abs/1902.09630."""
    both, union = overlaps(a_N4, b_N4)
    low, high = torch.minimum(a_N4[..., :2], b_N4[..., :2]), torch.maximum(a_N4[..., 2:], b_N4[..., 2:])
    around = (high - low).clamp(min=0).prod(dim=-1).clamp(min=SMALLEST_AREA)
    return both / union - (around - union) / around


def center_form(boxes_N4: Tensor) -> Tensor:
    """Return (..., 4) centre x, centre y, width, height of boxes by their corners."""
    return torch.cat(_center_size(boxes_N4), dim=-1)


def corner_form(boxes_N4: Tensor) -> Tensor:
    """Return (..., 4) corners of boxes by their centre x, centre y, width and height."""
    center_N2, half_N2 = boxes_N4[..., :2], boxes_N4[..., 2:] * 0.5
    return torch.cat([center_N2 - half_N2, center_N2 + half_N2], dim=-1)


def clip_boxes(boxes_N4: Tensor, size: tuple[int, int] | Tensor) -> Tensor:
    """Clip boxes to the border of an image of `size` (H, W), a pair or a tensor that broadcasts: (..., 2)."""
    limit = torch.as_tensor(size, dtype=boxes_N4.dtype, device=boxes_N4.device)
    limit = torch.stack([limit[..., 1], limit[..., 0]] * 2, dim=-1)
    return torch.minimum(boxes_N4.clamp(min=0), limit)


@dataclass(frozen=True)
class BoxCoder:
    """Boxes as deltas from anchors: dx, dy in anchor widths and heights, dw, dh logs of size ratios, over `stds`.

    Source: R-CNN's parameterisation, https://arxiv.org/abs/1311.2524, appendix C.
    """

    stds: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)

    def encode(self, anchors_N4: Tensor, boxes_N4: Tensor) -> Tensor:
        """Return (N, 4) deltas that take anchors to boxes, both with positive sides."""
        center_N2, size_N2 = _center_size(anchors_N4)
        to_center_N2, to_size_N2 = _center_size(boxes_N4)
        deltas_N4 = torch.cat([(to_center_N2 - center_N2) / size_N2, (to_size_N2 / size_N2).log()], dim=-1)
        return deltas_N4 / deltas_N4.new_tensor(self.stds)

    def decode(self, anchors_N4: Tensor, deltas_N4: Tensor, size: tuple[int, int] | Tensor | None = None) -> Tensor:
        """The inverse of `encode` on shapes (..., 4) that broadcast, clipped to `size` (H, W) where it is given.

        Sides change by a factor of at most 62.5, so that a wild prediction stays finite.
        """
        center_N2, size_N2 = _center_size(anchors_N4)
        deltas_N4 = deltas_N4 * deltas_N4.new_tensor(self.stds)
        center_N2 = center_N2 + size_N2 * deltas_N4[..., :2]
        half_N2 = size_N2 * deltas_N4[..., 2:].clamp(-MAX_LOG_SCALE, MAX_LOG_SCALE).exp() * 0.5
        boxes_N4 = torch.cat([center_N2 - half_N2, center_N2 + half_N2], dim=-1)
        return boxes_N4 if size is None else clip_boxes(boxes_N4, size)


def _center_size(boxes_N4: Tensor) -> tuple[Tensor, Tensor]:
    return box_centers(boxes_N4), boxes_N4[..., 2:] - boxes_N4[..., :2]


def grouped_nms(boxes_N4: Tensor, scores_N: Tensor, groups_N: Tensor, iou_threshold: float) -> Tensor:
    """Non-maximum suppression within each group (class, level).

    As the published detectors do it, groups are moved apart by float32 offsets, which cost the overlaps of later groups
    a little precision: borderline boxes fall the same way as theirs.

    Args:
        boxes_N4: float32, none negative.
        groups_N: whole numbers from 0.

    Returns:
        (kept,) indices, best score first.
    """
    if boxes_N4.numel() == 0:
        return torch.empty(0, dtype=torch.int64, device=boxes_N4.device)
    apart_N4 = boxes_N4 + (groups_N.to(boxes_N4) * (boxes_N4.max() + 1))[:, None]
    if boxes_N4.is_cuda and len(boxes_N4) < ONE_NMS:
        return nms(apart_N4, scores_N, iou_threshold)
    order_N = groups_N.argsort(stable=True)  # group by group the same boxes stay, for the sum of squares of pairs
    counts = groups_N.bincount().tolist()
    groups = [g for g in order_N.split(counts) if len(g)]
    kept_N = torch.cat([g[nms(apart_N4[g], scores_N[g], iou_threshold)] for g in groups]).sort().values
    return kept_N[scores_N[kept_N].argsort(descending=True, stable=True)]
