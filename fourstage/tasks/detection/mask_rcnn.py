"""Mask R-CNN, https://arxiv.org/abs/1703.06870; without masks it is Faster R-CNN."""

import torch
from torch import Tensor, nn

from fourstage.data.sample import Batch
from fourstage.tasks.detection.box_head import USUAL, BoxHead, Selecting, regions_of
from fourstage.tasks.detection.detector import Detections, truths_of
from fourstage.tasks.detection.mask_head import MaskHead
from fourstage.tasks.detection.matching import Draws, IoUMatcher
from fourstage.tasks.detection.rois import to_rois
from fourstage.tasks.detection.rpn import Proposing
from fourstage.tasks.detection.two_stage import BOX_REGION, TwoStage

PROPOSALS = Proposing(2000, 1000)  # in training


class MaskRCNN(TwoStage):
    """Proposals, then a class, a box and a mask for each.

    Args:
        backbone: with `levels`, all of which are used.
        masks: False: boxes alone.
        channels: of the neck.
        fc_channels: of the box head.
        mask_channels: of the mask head.
        regions: that train the heads, in each image.
        selecting: which detections remain.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        masks: bool = True,
        channels: int = 256,
        fc_channels: int = 1024,
        mask_channels: int = 256,
        training_proposals: Proposing = PROPOSALS,
        regions: int = 512,
        selecting: Selecting = USUAL,
    ) -> None:
        super().__init__(
            backbone,
            num_classes,
            channels=channels,
            beta=0.0,
            whole_anchors=False,
            training_proposals=training_proposals,
            regions=regions,
            selecting=selecting,
        )
        self.box_head = BoxHead(channels, num_classes, size=BOX_REGION, channels=fc_channels)
        self.mask_head = MaskHead(channels, num_classes, channels=mask_channels) if masks else None
        self.matcher = IoUMatcher(0.5, 0.5, 0.5)

    def losses(self, batch: Batch, seed: int | None = None) -> dict[str, Tensor]:
        """Of proposals, classes, boxes and, where there is a mask head, masks."""
        draws, truths = Draws(seed), truths_of(batch, masks=self.mask_head is not None)
        maps = self.maps(batch)
        logits, deltas = self.rpn(maps)
        losses = self.rpn.losses(logits, deltas, batch, truths, draws, self.mean_over_ranks)
        proposals = [boxes for boxes, _ in self.rpn.propose(logits, deltas, batch, self.rpn.training_proposals)]
        samples = self.sample(proposals, truths, batch, self.matcher, draws, purpose=1)
        logits_RC, deltas_RK4 = self.box_head(self.box_pool(maps, regions_of(samples)))
        losses |= self.box_head.losses(logits_RC, deltas_RK4, samples, truths, self.mean_over_ranks)
        if self.mask_head is not None:
            losses["loss_mask"] = self.mask_loss(self.mask_head, maps, samples, truths)
        return losses

    @torch.no_grad()
    def detect(self, batch: Batch, *, rescale: bool = True) -> list[Detections]:
        """As `Detector.detect`."""
        maps = self.maps(batch)
        logits, deltas = self.rpn(maps)
        proposals = [boxes for boxes, _ in self.rpn.propose(logits, deltas, batch, self.rpn.proposals)]
        logits_RC, deltas_RK4 = self.box_head(self.box_pool(maps, to_rois(proposals)))
        heads = [] if self.mask_head is None else [self.mask_head]
        return self.finish(maps, batch, proposals, logits_RC, deltas_RK4, self.box_head, heads, rescale=rescale)
