"""Mixup and cutmix of a batch, as timm has them."""

from dataclasses import replace
from typing import Any

from fourstage.data.sample import Batch


class Mixing:
    """Mixes a batch of images pairwise and its labels to soft targets. Batches must be even.

    Draws from numpy's global generator, which the loader seeds by the place of the batch.

    Source: mixup, https://arxiv.org/abs/1710.09412; cutmix, https://arxiv.org/abs/1905.04899.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        mixup: float,
        cutmix: float,
        prob: float,
        switch_prob: float,
        mode: str,
        smoothing: float,
        cutmix_minmax: tuple[float, float] | None = None,
    ) -> None:
        from timm.data.mixup import Mixup

        self.blend: Any = Mixup(
            mixup, cutmix, cutmix_minmax, prob, switch_prob, mode, label_smoothing=smoothing, num_classes=num_classes
        )

    def __call__(self, batch: Batch) -> Batch:
        assert batch.labels_B is not None, "mixing needs class labels"
        images_BCHW, targets_BC = self.blend(batch.images_BCHW, batch.labels_B)
        return replace(batch, images_BCHW=images_BCHW, targets_BC=targets_BC)
