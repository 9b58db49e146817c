"""Non-maximum suppression whose result has a fixed shape, so that a graph can hold it. G groups, N boxes in each.

It is an operator of its own, `torch.ops.fourstage.nms_mask`, because `torch.export` cannot record a number of boxes
that depends on the image, and a graph of `torchvision::nms` holds one group. `export/onnx_file.py` writes it as ONNX's
`NonMaxSuppression`.
"""

import torch
from torch import Tensor

from fourstage.ops.torchvision_kernels import nms


@torch.library.custom_op("fourstage::nms_mask", mutates_args=())
def nms_mask(boxes_GN4: Tensor, scores_GN: Tensor, iou_threshold: float, score_threshold: float, most: int) -> Tensor:
    """Return (G, N) bool: the boxes that remain of each group.

    Args:
        score_threshold: boxes that do not score more take no part.
        most: boxes that remain in a group.
    """
    kept_GN = torch.zeros_like(scores_GN, dtype=torch.bool)
    for boxes_N4, scores_N, kept_N in zip(boxes_GN4, scores_GN, kept_GN, strict=True):
        candidates = (scores_N > score_threshold).nonzero().squeeze(1)
        best = nms(boxes_N4[candidates], scores_N[candidates], iou_threshold)[:most]
        kept_N[candidates[best]] = True
    return kept_GN


@nms_mask.register_fake
def _(boxes_GN4: Tensor, scores_GN: Tensor, iou_threshold: float, score_threshold: float, most: int) -> Tensor:
    return torch.empty_like(scores_GN, dtype=torch.bool)
