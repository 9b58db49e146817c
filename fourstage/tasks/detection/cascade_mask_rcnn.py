"""Cascade Mask R-CNN, https://arxiv.org/abs/1906.09756. R regions, C classes, N proposals."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from fourstage.data.sample import Batch
from fourstage.tasks.detection.box_head import DEFAULT_LIMITS, BoxHead, DetectionLimits, Samples, regions_of
from fourstage.tasks.detection.detector import Detections, ground_truths
from fourstage.tasks.detection.mask_head import MaskHead
from fourstage.tasks.detection.matching import Draws, OverlapMatcher, ThresholdMatcher
from fourstage.tasks.detection.rois import FINEST_SCALE, to_rois
from fourstage.tasks.detection.rpn import ProposalLimits
from fourstage.tasks.detection.two_stage import BoxLossName, Heads, RegionHeads, TwoStage
from fourstage.tasks.parts.settings import check_sizes, settings_from


@dataclass(frozen=True)
class CascadeStage:
    """One box head of several.

    Args:
        iou: overlap with an object from which on a region is a positive.
        stds: standard deviations by which the deltas of its boxes are divided, of x, y, width and height.
        weight: factor on its losses.

    Raises:
        ValueError: `stds` are not four numbers above 0.
    """

    iou: float
    stds: tuple[float, float, float, float]
    weight: float

    def __post_init__(self) -> None:
        check_sizes(stds=self.stds)
        if not isinstance(self.stds, Sequence) or len(self.stds) != 4:
            raise ValueError(f"stds of a stage are four numbers, of x, y, width and height; got {self.stds!r}")


STAGES = (
    CascadeStage(0.5, (0.1, 0.1, 0.2, 0.2), 1.0),
    CascadeStage(0.6, (0.05, 0.05, 0.1, 0.1), 0.5),
    CascadeStage(0.7, (0.033, 0.033, 0.067, 0.067), 0.25),
)

PROPOSALS = ProposalLimits(2000, 2000)  # in training


class CascadeMaskRCNN(TwoStage):
    """Several box heads one after the other, each on the boxes of the one before, and as many mask heads.

    Args:
        backbone: with `levels`, all of which are used.
        masks: whether masks are predicted; False: boxes alone, as in Cascade R-CNN.
        heads: "2fc": two linear layers, one box for all classes, smooth L1 loss. "4conv1fc": four convolutions with
            norm and a linear layer, a box for each class, GIoU loss on the boxes, as the Swin line has them.
        class_agnostic: whether a region has one box for all classes instead of a box for each; None: as `heads` have
            it.
        stages: settings of the box heads, one after the other.
        regions: number of regions of an image that train the heads of a stage.
        norm, box_loss, channels, num_outs, conv_channels, fc_channels, mask_channels, mask_convs, training_proposals,
            rpn, finest_scale, selecting: see `MaskRCNN`.

    Raises:
        ValueError: `stages` is empty, or an argument is wrong.
    """

    method = "cascade_mask_rcnn"
    rpn_defaults = MappingProxyType({"beta": 1 / 9, "whole_anchors": True})

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        masks: bool = True,
        heads: Heads = "2fc",
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
        class_agnostic: bool | None = None,
        box_loss: BoxLossName | None = None,
        stages: Sequence[CascadeStage | Mapping[str, Any]] = STAGES,
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
        two_layers = heads == "2fc"
        settings = RegionHeads(
            heads=heads,
            norm=norm,
            class_agnostic=two_layers if class_agnostic is None else class_agnostic,
            box_loss=box_loss or ("smooth_l1" if two_layers else "giou"),
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
        self.stages = tuple(settings_from(CascadeStage, "a stage", stage) for stage in stages)
        if not self.stages:
            raise ValueError("a cascade has at least one stage; stages is empty")
        self.matchers = [OverlapMatcher(ThresholdMatcher(s.iou, s.iou, s.iou, rescue=False)) for s in self.stages]
        self.box_heads = nn.ModuleList(settings.box_head(channels, num_classes, s.stds) for s in self.stages)
        self.mask_heads = nn.ModuleList(settings.mask_head(channels, num_classes) for _ in self.stages if masks)

    def losses(self, batch: Batch, seed: int | None = None) -> dict[str, Tensor]:
        """Return the losses of proposals, and for each stage `s0.loss_cls`, `s0.loss_bbox`, `s0.loss_mask` ..."""
        draws, truths = Draws(seed), ground_truths(batch, masks=len(self.mask_heads) > 0)
        maps = self.maps(batch)
        logits, deltas = self.rpn(maps)
        losses = self.rpn.losses(logits, deltas, batch, truths, draws, self.mean_over_ranks)
        proposals = [boxes for boxes, _ in self.rpn.propose(logits, deltas, batch, self.rpn.training_proposals)]
        for i, (stage, matcher, head) in enumerate(zip(self.stages, self.matchers, self._heads(), strict=True)):
            samples = self.sample(proposals, truths, batch, matcher, draws, purpose=1 + i)
            logits_RC, deltas_RK4 = head(self.box_pool(maps, regions_of(samples)))
            own = head.losses(logits_RC, deltas_RK4, samples, truths, self.mean_over_ranks)
            if len(self.mask_heads):
                mask_head = self.mask_heads[i]
                assert isinstance(mask_head, MaskHead)
                own["loss_mask"] = self.mask_loss(mask_head, maps, samples, truths)
            losses |= {f"s{i}.{name}": value * stage.weight for name, value in own.items()}
            if i + 1 < len(self.stages):
                proposals = self._refined(head, samples, logits_RC.detach(), deltas_RK4.detach(), batch)
        return losses

    def _heads(self) -> list[BoxHead]:
        return [head for head in self.box_heads if isinstance(head, BoxHead)]

    def _refined(
        self, head: BoxHead, samples: Sequence[Samples], logits_RC: Tensor, deltas_RK4: Tensor, batch: Batch
    ) -> list[Tensor]:
        """Return the boxes for the next stage, without the ground-truth boxes, which that stage adds again.

        Positives move by the deltas of their ground-truth class, others by those of their best class.
        """
        counts = [len(s.labels_R) for s in samples]
        out = []
        for i, (s, logits, deltas) in enumerate(
            zip(samples, logits_RC.split(counts), deltas_RK4.split(counts), strict=True)
        ):
            labels_R = torch.where(s.labels_R == self.num_classes, logits[:, :-1].argmax(dim=1), s.labels_R)
            boxes_R4 = head.refine(s.boxes_R4, deltas, labels_R, batch.sizes[i])
            keep_R = torch.ones(len(boxes_R4), dtype=torch.bool, device=boxes_R4.device)
            keep_R[: len(s.is_ground_truth_P)] = ~s.is_ground_truth_P
            out.append(boxes_R4[keep_R])
        return out

    @torch.no_grad()
    def detect(self, batch: Batch, *, rescale: bool = True) -> list[Detections]:
        """As `Detector.detect`. Classes come from the mean logits of all stages, masks from mean probabilities."""
        maps = self.maps(batch)
        logits, deltas = self.rpn(maps)
        boxes = [boxes for boxes, _ in self.rpn.propose(logits, deltas, batch, self.rpn.proposals)]
        counts = [len(b) for b in boxes]
        heads, all_logits, deltas_RK4 = self._heads(), [], deltas[0]
        for i, head in enumerate(heads):
            logits_RC, deltas_RK4 = head(self.box_pool(maps, to_rois(boxes)))
            all_logits.append(logits_RC)
            if i + 1 < len(heads):
                labels = logits_RC[:, :-1].argmax(dim=1).split(counts)
                images = zip(boxes, deltas_RK4.split(counts), labels, batch.sizes, strict=True)
                boxes = [head.refine(b, d, label, size) for b, d, label, size in images]
        mean_RC = torch.stack(all_logits).sum(dim=0) / len(heads)
        mask_heads = [head for head in self.mask_heads if isinstance(head, MaskHead)]
        return self.finish(maps, batch, boxes, mean_RC, deltas_RK4, heads[-1], mask_heads, rescale=rescale)
