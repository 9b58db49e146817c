"""Mask R-CNN, https://arxiv.org/abs/1703.06870; without masks it is Faster R-CNN."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fourstage.data.sample import Batch
from fourstage.tasks.detection.box_head import DEFAULT_LIMITS, DetectionLimits, regions_of
from fourstage.tasks.detection.detector import Detections, ground_truths
from fourstage.tasks.detection.matching import Draws, OverlapMatcher, ThresholdMatcher
from fourstage.tasks.detection.rois import FINEST_SCALE, to_rois
from fourstage.tasks.detection.rpn import ProposalLimits
from fourstage.tasks.detection.two_stage import BoxLossName, Heads, RegionHeads, TwoStage

PROPOSALS = ProposalLimits(2000, 1000)  # in training
STDS = (0.1, 0.1, 0.2, 0.2)  # of the deltas of boxes


class MaskRCNN(TwoStage):
    """Two-stage detector: proposals, then a class, a box and a mask for each.

    Args:
        backbone: with `levels`, all of which are used.
        masks: whether masks are predicted; False: boxes alone, as in Faster R-CNN.
        heads: "2fc": two linear layers, L1 loss. "4conv1fc": four convolutions with norm and a linear layer, GIoU loss
            on the boxes.
        norm: builds the norm of the box head's convolutions from their width; only from Python. A norm over all
            processes is better where batches are small.
        class_agnostic: whether a region has one box for all classes instead of a box for each.
        box_loss: loss of the boxes; None: that of `heads`.
        channels, num_outs: see `TwoStage`.
        conv_channels: width of the box head's convolutions.
        fc_channels: width of the box head's linear layers.
        mask_channels: width of the mask head.
        mask_convs: number of 3x3 convolutions of the mask head.
        training_proposals: how many proposals of an image the heads can train with.
        rpn: further settings of the proposals, arguments of `RPNHead`.
        finest_scale, regions, selecting: see `TwoStage`.
    """

    method = "mask_rcnn"

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        masks: bool = True,
        heads: Heads = "2fc",
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
        class_agnostic: bool = False,
        box_loss: BoxLossName | None = None,
        channels: int = 256,
        num_outs: int | None = None,
        conv_channels: int = 256,
        fc_channels: int = 1024,
        mask_channels: int = 256,
        mask_convs: int = 4,
        training_proposals: ProposalLimits | Mapping[str, Any] = PROPOSALS,
        rpn: Mapping[str, Any] | None = None,
        finest_scale: float = FINEST_SCALE,
        regions: int = 512,
        selecting: DetectionLimits | Mapping[str, Any] = DEFAULT_LIMITS,
    ) -> None:
        settings = RegionHeads(
            heads=heads,
            norm=norm,
            class_agnostic=class_agnostic,
            box_loss=box_loss or ("l1" if heads == "2fc" else "giou"),
            conv_channels=conv_channels,
            fc_channels=fc_channels,
            mask_channels=mask_channels,
            mask_convs=mask_convs,
        )
        super().__init__(
            backbone,
            num_classes,
            channels=channels,
            num_outs=num_outs,
            rpn={"training_proposals": training_proposals, **(rpn or {})},
            finest_scale=finest_scale,
            regions=regions,
            selecting=selecting,
        )
        self.box_head = settings.box_head(channels, num_classes, STDS)
        self.mask_head = settings.mask_head(channels, num_classes) if masks else None
        self.matcher = OverlapMatcher(ThresholdMatcher(0.5, 0.5, 0.5))

    def losses(self, batch: Batch, seed: int | None = None) -> dict[str, Tensor]:
        """Return the losses of proposals, classes, boxes and, where there is a mask head, masks."""
        draws, truths = Draws(seed), ground_truths(batch, masks=self.mask_head is not None)
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
