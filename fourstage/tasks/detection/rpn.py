"""Region proposals: boxes that may hold an object of any class. B images, A anchors a cell, N anchors in all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourstage.backbones.layers import Level
from fourstage.data.sample import Batch
from fourstage.ops.pointwise import convolve
from fourstage.tasks.detection.anchors import AnchorGrid, within_image
from fourstage.tasks.detection.boxes import BoxCoder, grouped_nms, have_area
from fourstage.tasks.detection.detector import GroundTruth, Mean, count_tensor
from fourstage.tasks.detection.losses import divide, smooth_l1_sum
from fourstage.tasks.detection.matching import Draws, OverlapMatcher, Sampler, ThresholdMatcher
from fourstage.tasks.detection.padding import padded_size
from fourstage.tasks.detection.single_stage import by_anchor, first_best, init_convs, match_inside
from fourstage.tasks.parts.conv import ConvNormAct
from fourstage.tasks.parts.settings import check_counts, settings_from


@dataclass(frozen=True)
class ProposalLimits:
    """How many proposals are kept.

    Args:
        per_level: number of boxes of each map, the best ones, that non-maximum suppression reads.
        per_image: largest number of proposals in an image.
        iou_threshold: overlap above which non-maximum suppression drops the box that scores less.
    """

    per_level: int
    per_image: int
    iou_threshold: float = 0.7

    def __post_init__(self) -> None:
        check_counts(per_level=self.per_level, per_image=self.per_image)


IN_TRAINING, AT_TEST = ProposalLimits(2000, 1000), ProposalLimits(1000, 1000)


class RPNHead(nn.Module):
    """Objectness and box deltas for every anchor of every cell, on maps of one width.

    Args:
        levels: of the maps.
        channels: width of the convolutions; None: that of the maps.
        convs: number of 3x3 convolutions before the two predictions.
        scales: sides of the square anchors, in strides.
        ratios: height over width of the anchors.
        beta: difference up to which the smooth L1 loss is quadratic; 0: L1.
        whole_anchors: whether only anchors that are entirely within their image train.
        count: largest number of anchors of an image that train.
        training_proposals: how many proposals there are in training.
        proposals: how many proposals there are in predictions.

    Raises:
        ValueError: a number out of its range.
    """

    def __init__(
        self,
        levels: Sequence[Level],
        *,
        channels: int | None = None,
        convs: int = 1,
        scales: Sequence[float] = (8.0,),
        ratios: Sequence[float] = (0.5, 1.0, 2.0),
        beta: float = 0.0,
        whole_anchors: bool = False,
        count: int = 256,
        training_proposals: ProposalLimits | Mapping[str, Any] = IN_TRAINING,
        proposals: ProposalLimits | Mapping[str, Any] = AT_TEST,
    ) -> None:
        super().__init__()
        check_counts(channels=channels, count=count)
        check_counts(convs=convs, least=0)
        if beta < 0:
            raise ValueError(f"beta is a difference of at least 0; got {beta}")
        widths = [levels[0].channels, *[channels or levels[0].channels] * convs]
        self.anchors = AnchorGrid([level.stride for level in levels], scales, ratios)
        self.convs = nn.Sequential(*(ConvNormAct(a, b, 3, act=nn.ReLU()) for a, b in pairwise(widths)))
        self.objectness = nn.Conv2d(widths[-1], self.anchors.per_cell, 1)
        self.deltas = nn.Conv2d(widths[-1], 4 * self.anchors.per_cell, 1)
        self.coder, self.matcher, self.sampler = (
            BoxCoder(),
            OverlapMatcher(ThresholdMatcher(0.7, 0.3, 0.3)),
            Sampler(count, 0.5),
        )
        self.beta, self.whole_anchors = beta, whole_anchors
        self.training_proposals = settings_from(ProposalLimits, "training_proposals", training_proposals)
        self.proposals = settings_from(ProposalLimits, "proposals", proposals)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights: normal, std 0.01; biases: 0."""
        init_convs(self)

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return for each map (B, A, H, W) logits and (B, 4A, H, W) deltas."""
        logits, deltas = [], []
        for x_BCHW in maps:
            shared_BCHW = self.convs(x_BCHW)
            logits.append(convolve(self.objectness, shared_BCHW))
            deltas.append(convolve(self.deltas, shared_BCHW))
        return logits, deltas

    def losses(
        self,
        logits: Sequence[Tensor],
        deltas: Sequence[Tensor],
        batch: Batch,
        truths: Sequence[GroundTruth],
        draws: Draws,
        mean: Mean,
    ) -> dict[str, Tensor]:
        """Return `loss_rpn_cls` and `loss_rpn_bbox` from what `forward` returned."""
        sizes = [(x.shape[-2], x.shape[-1]) for x in logits]
        anchors = self.anchors.boxes(sizes, logits[0].device)
        anchors_N4 = torch.cat(anchors)
        logits_BN = torch.cat([by_anchor(x, 1) for x in logits], dim=1).squeeze(2)
        deltas_BN4 = torch.cat([by_anchor(x, 4) for x in deltas], dim=1)
        class_sum, box_sum, count = logits_BN.new_zeros(()), deltas_BN4.new_zeros(()), 0
        for i, truth in enumerate(truths):
            usable = self.anchors.within(sizes, padded_size(batch.sizes[i]), anchors_N4.device)
            if self.whole_anchors:
                usable = [u & within_image(a, batch.sizes[i]) for u, a in zip(usable, anchors, strict=True)]
            matched_N = match_inside(self.matcher, anchors, usable, truth.boxes_G4)
            positive_P, negative_M = self.sampler(matched_N, draws.stream(batch.ids[i], 0))
            wanted_P4 = self.coder.encode(anchors_N4[positive_P], truth.boxes_G4[matched_N[positive_P]])
            class_sum = class_sum + F.softplus(-logits_BN[i, positive_P]).sum()
            class_sum = class_sum + F.softplus(logits_BN[i, negative_M]).sum()
            box_sum = box_sum + smooth_l1_sum(deltas_BN4[i, positive_P], wanted_P4, self.beta)
            count += max(len(positive_P), 1) + max(len(negative_M), 1)
        total = mean(count_tensor(count, logits_BN))
        return {"loss_rpn_cls": divide(class_sum, total), "loss_rpn_bbox": divide(box_sum, total)}

    @torch.no_grad()
    def propose(
        self, logits: Sequence[Tensor], deltas: Sequence[Tensor], batch: Batch, how: ProposalLimits
    ) -> list[tuple[Tensor, Tensor]]:
        """Return boxes (n, 4) in pixels of the network's image and their scores (n,) for each image, best first."""
        sizes = [(x.shape[-2], x.shape[-1]) for x in logits]
        anchors = self.anchors.boxes(sizes, logits[0].device)
        limit_B12 = torch.tensor(batch.sizes, device=logits[0].device)[:, None]
        boxes, scores = [], []
        for logits_BAHW, deltas_BAHW, anchors_N4 in zip(logits, deltas, anchors, strict=True):
            scores_BN, deltas_BN4 = by_anchor(logits_BAHW, 1).squeeze(2).sigmoid(), by_anchor(deltas_BAHW, 4)
            anchors_BN4 = anchors_N4.expand(len(scores_BN), -1, -1)
            if scores_BN.shape[1] > how.per_level:
                scores_BN, best_BN = first_best(scores_BN, how.per_level)
                best_BN4 = best_BN[:, :, None].expand(-1, -1, 4)
                deltas_BN4, anchors_BN4 = deltas_BN4.gather(1, best_BN4), anchors_BN4.gather(1, best_BN4)
            boxes.append(self.coder.decode(anchors_BN4, deltas_BN4, limit_B12))
            scores.append(scores_BN)
        ends = torch.tensor([0, *(x.shape[1] for x in scores)]).cumsum(0).tolist()
        boxes_BN4, scores_BN = torch.cat(boxes, dim=1), torch.cat(scores, dim=1)
        level_N = torch.cat([torch.full((b - a,), i) for i, (a, b) in enumerate(pairwise(ends))]).to(scores_BN.device)
        return [self._kept(boxes_BN4[i], scores_BN[i], level_N, how) for i in range(len(scores_BN))]

    @staticmethod
    def _kept(boxes_N4: Tensor, scores_N: Tensor, level_N: Tensor, how: ProposalLimits) -> tuple[Tensor, Tensor]:
        some_N = have_area(boxes_N4)
        boxes_N4, scores_N = boxes_N4[some_N], scores_N[some_N]
        kept = grouped_nms(boxes_N4, scores_N, level_N[some_N], how.iou_threshold)[: how.per_image]
        return boxes_N4[kept], scores_N[kept]
