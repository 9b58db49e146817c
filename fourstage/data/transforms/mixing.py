"""Mixup and cutmix of a batch, as timm has them."""

from dataclasses import replace
from typing import Any

from torch import Tensor

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
        from timm.data.mixup import Mixup, cutmix_bbox_and_lam

        self.blend: Any = Mixup(
            mixup, cutmix, cutmix_minmax, prob, switch_prob, mode, label_smoothing=smoothing, num_classes=num_classes
        )
        self.blend._mix_batch = self._mix_batch
        self._box: Any = cutmix_bbox_and_lam

    def __call__(self, batch: Batch) -> Batch:
        assert batch.labels_B is not None, "mixing needs class labels"
        images_BCHW, targets_BC = self.blend(batch.images_BCHW, batch.labels_B)
        return replace(batch, images_BCHW=images_BCHW, targets_BC=targets_BC)

    def _mix_batch(self, images_BCHW: Tensor) -> float:
        """What timm's does, to the last bit, pair by pair: they stay in the cache, where a batch does not.

        Returns:
            The share that each image keeps of itself.
        """
        keeps, cuts = self.blend._params_per_batch()
        if keeps == 1:
            return 1.0
        if cuts:
            minmax, correct = self.blend.cutmix_minmax, self.blend.correct_lam
            (top, bottom, left, right), keeps = self._box(
                images_BCHW.shape, keeps, ratio_minmax=minmax, correct_lam=correct
            )
            part_BCHW = images_BCHW[:, :, top:bottom, left:right]
            part_BCHW.copy_(part_BCHW.flip(0))
            return keeps
        half = len(images_BCHW) // 2
        for one_CHW, other_CHW in zip(images_BCHW[:half], reversed(images_BCHW[half:].unbind()), strict=True):
            ones_CHW, others_CHW = one_CHW * (1.0 - keeps), other_CHW * (1.0 - keeps)
            one_CHW.mul_(keeps).add_(others_CHW)
            other_CHW.mul_(keeps).add_(ones_CHW)
        return keeps
