"""Mixup and cutmix of a batch, as timm has them."""

from collections.abc import Callable
from dataclasses import replace

from fourstage.data.sample import Batch


def mixing(
    num_classes: int,
    *,
    mixup: float,
    cutmix: float,
    prob: float,
    switch_prob: float,
    mode: str,
    smoothing: float,
) -> Callable[[Batch], Batch]:
    """A function that mixes a batch of images pairwise and its labels to soft targets.

    Draws from numpy's global generator, which the loader seeds by the place of the batch. Batches must be even.

    Source: mixup, https://arxiv.org/abs/1710.09412; cutmix, https://arxiv.org/abs/1905.04899.
    """
    from timm.data.mixup import Mixup

    blend = Mixup(mixup, cutmix, None, prob, switch_prob, mode, label_smoothing=smoothing, num_classes=num_classes)

    def mix(batch: Batch) -> Batch:
        assert batch.labels_B is not None, "mixing needs class labels"
        images_BCHW, targets_BC = blend(batch.images_BCHW, batch.labels_B)
        return replace(batch, images_BCHW=images_BCHW, targets_BC=targets_BC)

    return mix
