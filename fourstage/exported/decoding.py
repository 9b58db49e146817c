"""From the outputs of a detector's graph to detections, as in `tasks/detection`, with numpy alone.

C classes, P pairs of a box and a class, N detections, H x W pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fourstage.data.transforms.resizing import Size
from fourstage.exported.description import Suppression
from fourstage.exported.small_masks import SmallMasks


@dataclass(frozen=True, eq=False)
class Decoded:
    """The detections in one image, in its own pixels, best score first."""

    boxes_N4: np.ndarray
    labels_N: np.ndarray
    scores_N: np.ndarray
    masks: SmallMasks | None = None


def decode(outputs: Mapping[str, np.ndarray], rule: Suppression, size: Size, original: Size) -> Decoded:
    """Return the detections in one image.

    Args:
        outputs: of this image, without the axis of the batch; see `Suppression`.
        size: (H, W) of the image in the input, without padding.
        original: (H, W) of the image itself.
    """
    boxes_P4, scores_P, labels_P, chosen_P = _pairs(outputs, rule.threshold)
    if rule.clip:
        boxes_P4 = np.minimum(np.maximum(boxes_P4, 0), np.array([size[1], size[0]] * 2, np.float32))
    down, across = (new / old for new, old in zip(size, original, strict=True))
    back_4 = np.array([1 / across, 1 / down] * 2, np.float32)
    if rule.where == "image":
        boxes_P4 = boxes_P4 * back_4
    kept_P = np.arange(len(boxes_P4))
    if rule.drop_empty:
        kept_P = np.flatnonzero((boxes_P4[:, 2:] > boxes_P4[:, :2]).all(axis=1))
    if rule.iou is not None:
        kept_P = kept_P[grouped_nms(boxes_P4[kept_P], scores_P[kept_P], labels_P[kept_P], rule.iou)]
    else:
        kept_P = kept_P[np.argsort(-scores_P[kept_P], kind="stable")]
    kept_N = kept_P[: rule.most]
    boxes_N4 = boxes_P4[kept_N] if rule.where == "image" else boxes_P4[kept_N] * back_4
    masks = None
    if "masks" in outputs:
        masks = SmallMasks(_float32(outputs["masks"])[chosen_P[kept_N]], boxes_N4, original, rule.mask_threshold)
    return Decoded(boxes_N4, labels_P[kept_N], scores_P[kept_N], masks)


def _pairs(
    outputs: Mapping[str, np.ndarray], threshold: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return boxes (P, 4), scores (P,), labels (P,) and the box's number (P,) of the pairs above the threshold."""
    boxes, scores = _float32(outputs["boxes"]), _float32(outputs["scores"])
    if scores.ndim == 1:
        (chosen_P,) = np.nonzero(scores > threshold)
        labels_P, scores_P = outputs["labels"][chosen_P].astype(np.int64), scores[chosen_P]
    else:
        chosen_P, labels_P = np.nonzero(scores > threshold)
        scores_P = scores[chosen_P, labels_P]
    if "factors" in outputs:
        scores_P = scores_P * _float32(outputs["factors"])[chosen_P]
    boxes_P4 = boxes[chosen_P] if boxes.ndim == 2 else boxes[chosen_P, labels_P if boxes.shape[1] > 1 else 0]
    return boxes_P4, scores_P, labels_P, chosen_P


def grouped_nms(boxes_N4: np.ndarray, scores_N: np.ndarray, groups_N: np.ndarray, iou: float) -> np.ndarray:
    """Return the indices that non-maximum suppression within each group leaves, best score first.

    The arithmetic is that of `tasks.detection.boxes.grouped_nms`: groups are moved apart by float32 offsets.

    Args:
        boxes_N4: float32, none negative.
        groups_N: whole numbers from 0.
    """
    if not len(boxes_N4):
        return np.zeros(0, np.int64)
    apart_N4 = boxes_N4 + (groups_N.astype(np.float32) * (boxes_N4.max() + np.float32(1)))[:, None]
    kept = [rows[_nms(apart_N4[rows], scores_N[rows], iou)] for rows in _by_group(groups_N)]
    kept_N = np.sort(np.concatenate(kept))
    return kept_N[np.argsort(-scores_N[kept_N], kind="stable")]


def _by_group(groups_N: np.ndarray) -> list[np.ndarray]:
    order_N = np.argsort(groups_N, kind="stable")
    return np.split(order_N, np.flatnonzero(np.diff(groups_N[order_N])) + 1)


def _nms(boxes_N4: np.ndarray, scores_N: np.ndarray, iou: float) -> np.ndarray:
    """Return the indices that suppression leaves, in the order of the boxes' scores."""
    order_N = np.argsort(-scores_N, kind="stable")
    boxes_N4 = boxes_N4[order_N]
    areas_N = (boxes_N4[:, 2] - boxes_N4[:, 0]) * (boxes_N4[:, 3] - boxes_N4[:, 1])
    alive_N, kept = np.ones(len(boxes_N4), bool), []
    for i in range(len(boxes_N4)):
        if not alive_N[i]:
            continue
        kept.append(i)
        rest_M4 = boxes_N4[i + 1 :]
        low_M2, high_M2 = np.maximum(boxes_N4[i, :2], rest_M4[:, :2]), np.minimum(boxes_N4[i, 2:], rest_M4[:, 2:])
        both_M = np.maximum(high_M2 - low_M2, 0).prod(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):  # boxes without area overlap nothing
            alive_N[i + 1 :] &= ~(both_M / (areas_N[i] + areas_N[i + 1 :] - both_M) > iou)
    return order_N[kept]


def _float32(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32, copy=False)
