"""The loss of segmentors. B images, C classes, h x w cells of the logits, H x W pixels."""

from torch import Tensor

from fourstage.data.sample import IGNORE
from fourstage.ops.resized_loss import resized_cross_entropy


def pixel_cross_entropy(
    logits_BChw: Tensor,
    labels_BHW: Tensor,
    *,
    over_valid: bool = False,
    ignore: int = IGNORE,
    align_corners: bool = False,
) -> Tensor:
    """Return the cross-entropy of logits that are first resized to the label maps.

    Args:
        logits_BChw: (B, C, h, w) of any size, in float32 or better.
        labels_BHW: (B, H, W) integers.
        over_valid: divide by the number of pixels that are not ignored; as published, by all pixels.
        ignore: the label that adds nothing.
        align_corners: of the resizing.

    Returns:
        A scalar; 0 where all pixels are ignored.
    """
    total = resized_cross_entropy(logits_BChw, labels_BHW, ignore, align_corners)
    if not over_valid:
        return total / labels_BHW.numel()
    return total / (labels_BHW != ignore).sum().clamp(min=1)
