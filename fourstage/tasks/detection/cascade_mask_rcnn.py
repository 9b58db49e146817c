"""Cascade Mask R-CNN, https://arxiv.org/abs/1906.09756. R regions, C classes, N proposals."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fourstage.data.sample import Batch
from fourstage.tasks.detection.box_head import USUAL, BoxHead, BoxLoss, Samples, Selecting, regions_of
from fourstage.tasks.detection.detector import Detections, truths_of
from fourstage.tasks.detection.mask_head import MaskHead
from fourstage.tasks.detection.matching import Draws, IoUMatcher
from fourstage.tasks.detection.rois import to_rois
from fourstage.tasks.detection.rpn import Proposing
from fourstage.tasks.detection.two_stage import BOX_REGION, TwoStage

Heads = Literal["2fc", "4conv1fc"]


@dataclass(frozen=True)
class CascadeStage:
    """One look of several."""

    iou: float  # from this overlap on a region is a positive
    stds: tuple[float, float, float, float]  # of its deltas
    weight: float  # of its losses


STAGES = (
    CascadeStage(0.5, (0.1, 0.1, 0.2, 0.2), 1.0),
    CascadeStage(0.6, (0.05, 0.05, 0.1, 0.1), 0.5),
    CascadeStage(0.7, (0.033, 0.033, 0.067, 0.067), 0.25),
)

PROPOSALS = Proposing(2000, 2000)  # in training


class CascadeMaskRCNN(TwoStage):
    """Several box heads one after the other, each on the boxes of the one before, and as many mask heads.

    Args:
        backbone: with `levels`, all of which are used.
        masks: False: boxes alone, Cascade R-CNN.
        heads: "2fc": two linear layers, one box for all classes, smooth L1 loss. "4conv1fc": four convolutions with
            norm and a linear layer, a box for each class, GIoU loss on the boxes, as the Swin line has them.
        norm: of the convolutions; over all processes where batches are small.
        channels: of the neck.
        regions: that train the heads, in each image and stage.
        selecting: which detections remain.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        masks: bool = True,
        heads: Heads = "2fc",
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
        stages: Sequence[CascadeStage] = STAGES,
        channels: int = 256,
        conv_channels: int = 256,
        fc_channels: int = 1024,
        mask_channels: int = 256,
        training_proposals: Proposing = PROPOSALS,
        regions: int = 512,
        selecting: Selecting = USUAL,
    ) -> None:
        if heads not in ("2fc", "4conv1fc"):
            raise ValueError(f"heads are '2fc' or '4conv1fc'; got {heads!r}")
        super().__init__(
            backbone,
            num_classes,
            channels=channels,
            beta=1 / 9,
            whole_anchors=True,
            training_proposals=training_proposals,
            regions=regions,
            selecting=selecting,
        )
        plain = heads == "2fc"
        self.stages = tuple(stages)
        self.matchers = [IoUMatcher(s.iou, s.iou, s.iou, rescue=False) for s in stages]
        self.box_heads = nn.ModuleList(
            BoxHead(
                channels,
                num_classes,
                size=BOX_REGION,
                convs=0 if plain else 4,
                conv_channels=conv_channels,
                norm=None if plain else norm,
                fcs=2 if plain else 1,
                channels=fc_channels,
                class_agnostic=plain,
                stds=s.stds,
                loss=BoxLoss("smooth_l1") if plain else BoxLoss("giou", 10.0),
            )
            for s in stages
        )
        self.mask_heads = nn.ModuleList(
            MaskHead(channels, num_classes, channels=mask_channels) for _ in stages if masks
        )

    def losses(self, batch: Batch, seed: int | None = None) -> dict[str, Tensor]:
        """Of proposals, and `s0.loss_cls`, `s0.loss_bbox`, `s0.loss_mask` and so on, a stage each."""
        draws, truths = Draws(seed), truths_of(batch, masks=len(self.mask_heads) > 0)
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
        """Boxes for the next stage: positives move as their true class says; true boxes come in anew there."""
        counts = [len(s.labels_R) for s in samples]
        out = []
        for i, (s, logits, deltas) in enumerate(
            zip(samples, logits_RC.split(counts), deltas_RK4.split(counts), strict=True)
        ):
            labels_R = torch.where(s.labels_R == self.num_classes, logits[:, :-1].argmax(dim=1), s.labels_R)
            boxes_R4 = head.refine(s.boxes_R4, deltas, labels_R, batch.sizes[i])
            keep_R = torch.ones(len(boxes_R4), dtype=torch.bool, device=boxes_R4.device)
            keep_R[: len(s.is_truth_P)] = ~s.is_truth_P
            out.append(boxes_R4[keep_R])
        return out

    @torch.no_grad()
    def detect(self, batch: Batch, *, rescale: bool = True) -> list[Detections]:
        """As `Detector.detect`. Classes are those of the mean logits of all stages, masks their mean probabilities."""
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
                parts = zip(boxes, deltas_RK4.split(counts), labels, batch.sizes, strict=True)
                boxes = [head.refine(b, d, label, size) for b, d, label, size in parts]
        mean_RC = torch.stack(all_logits).sum(dim=0) / len(heads)
        mask_heads = [head for head in self.mask_heads if isinstance(head, MaskHead)]
        return self.finish(maps, batch, boxes, mean_RC, deltas_RK4, heads[-1], mask_heads, rescale=rescale)
