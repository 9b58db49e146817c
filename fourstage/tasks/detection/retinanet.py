"""RetinaNet, https://arxiv.org/abs/1708.02002. B images, C classes, A anchors a cell, N anchors in all."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from fourstage.backbones.layers import Level
from fourstage.data.sample import Batch
from fourstage.tasks.detection.anchors import AnchorGrid, octave_scales
from fourstage.tasks.detection.boxes import BoxCoder, as_float32, grouped_nms
from fourstage.tasks.detection.detector import (
    Detections,
    Detector,
    GroundTruth,
    Mean,
    ground_truths,
    to_original,
)
from fourstage.tasks.detection.losses import divide, focal_sum, smooth_l1_sum
from fourstage.tasks.detection.matching import IGNORED, IoUMatcher
from fourstage.tasks.detection.padding import padded_size
from fourstage.tasks.detection.rpn import match_inside
from fourstage.tasks.parts.conv import ConvNormAct
from fourstage.tasks.parts.fpn import FPN
from fourstage.tasks.parts.freeze_unused import freeze_unused
from fourstage.tasks.parts.levels import first_at_stride, levels_of
from fourstage.tasks.parts.settings import check_counts, check_sizes

Candidates = Literal["pairs", "anchors"]


class RetinaHead(nn.Module):
    """Class logits and box deltas for every anchor of every cell, by two towers that all maps share.

    Args:
        levels: of the maps.
        convs: 3x3 convolutions of each tower.
        channels: of the towers.
        base_scale: side of the smallest square anchor, in strides.
        scales_per_octave: sizes of anchors from there on to below twice that.
        ratios: of anchors, height over width.
    """

    def __init__(
        self,
        levels: Sequence[Level],
        num_classes: int,
        *,
        convs: int = 4,
        channels: int = 256,
        base_scale: float = 4,
        scales_per_octave: int = 3,
        ratios: Sequence[float] = (0.5, 1.0, 2.0),
    ) -> None:
        super().__init__()
        check_counts(convs=convs, least=0)
        check_counts(channels=channels, scales_per_octave=scales_per_octave)
        check_sizes(base_scale=base_scale)
        strides = [level.stride for level in levels]
        self.anchors = AnchorGrid(strides, octave_scales(base_scale, scales_per_octave), ratios)
        self.num_classes, widths = num_classes, [levels[0].channels, *[channels] * convs]
        self.class_tower, self.box_tower = (
            nn.Sequential(*(ConvNormAct(a, b, 3, act=nn.ReLU()) for a, b in pairwise(widths))) for _ in range(2)
        )
        self.classify = nn.Conv2d(widths[-1], self.anchors.per_cell * num_classes, 3, padding=1)
        self.regress = nn.Conv2d(widths[-1], self.anchors.per_cell * 4, 3, padding=1)
        self.coder, self.matcher = BoxCoder(), IoUMatcher(0.5, 0.4)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights: normal, std 0.01; biases: 0, and for the classes such that every one starts at a score of 0.01."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)
        assert self.classify.bias is not None
        nn.init.constant_(self.classify.bias, -math.log(0.99 / 0.01))

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """For each map (B, A * C, H, W) logits and (B, A * 4, H, W) deltas."""
        logits = [self.classify(self.class_tower(x_BCHW)) for x_BCHW in maps]
        deltas = [self.regress(self.box_tower(x_BCHW)) for x_BCHW in maps]
        return logits, deltas

    def losses(
        self,
        logits: Sequence[Tensor],
        deltas: Sequence[Tensor],
        batch: Batch,
        truths: Sequence[GroundTruth],
        mean: Mean,
    ) -> dict[str, Tensor]:
        """`loss_cls` and `loss_bbox` from what `forward` gave."""
        sizes = [(x.shape[-2], x.shape[-1]) for x in logits]
        anchors = self.anchors.boxes(sizes, logits[0].device)
        matched_BN = self._matched(torch.cat(anchors), sizes, batch, truths)
        count = mean((matched_BN >= 0).sum(dim=1).clamp(min=1).sum().float())
        offset_B = torch.tensor([0, *(len(t.labels_G) for t in truths)][:-1], device=matched_BN.device).cumsum(0)
        labels_G, boxes_G4 = torch.cat([t.labels_G for t in truths]), torch.cat([t.boxes_G4 for t in truths])
        class_sums, box_sums = [], []
        parts = matched_BN.split([len(a) for a in anchors], dim=1)
        for logits_BKHW, deltas_BKHW, anchors_N4, here_BN in zip(logits, deltas, anchors, parts, strict=True):
            height, width = logits_BKHW.shape[-2:]
            logits_BACHW = as_float32(logits_BKHW).unflatten(1, (self.anchors.per_cell, self.num_classes))
            deltas_BACHW = as_float32(deltas_BKHW).unflatten(1, (self.anchors.per_cell, 4))
            used_BA1HW = (here_BN != IGNORED).unflatten(1, (height, width, -1)).permute(0, 3, 1, 2)[:, :, None]
            b, n = (here_BN >= 0).nonzero(as_tuple=True)
            cell, a = n // self.anchors.per_cell, n % self.anchors.per_cell
            y, x = cell // width, cell % width
            which = here_BN[b, n] + offset_B[b]
            positive_P = logits_BACHW[b, a, labels_G[which], y, x]
            class_sums.append(focal_sum(logits_BACHW, used_BA1HW, positive_P))
            wanted_P4 = self.coder.encode(anchors_N4[n], boxes_G4[which])
            box_sums.append(smooth_l1_sum(deltas_BACHW[b, a, :, y, x], wanted_P4))
        return {
            "loss_cls": divide(torch.stack(class_sums).sum(), count),
            "loss_bbox": divide(torch.stack(box_sums).sum(), count),
        }

    def _matched(
        self, anchors_N4: Tensor, sizes: Sequence[tuple[int, int]], batch: Batch, truths: Sequence[GroundTruth]
    ) -> Tensor:
        """(B, N): index of a true box of the image, BACKGROUND or IGNORED."""
        rows = []
        for size, truth in zip(batch.sizes, truths, strict=True):
            usable_N = torch.cat(self.anchors.within(sizes, padded_size(size), anchors_N4.device))
            rows.append(match_inside(self.matcher, anchors_N4, usable_N, truth.boxes_G4))
        return torch.stack(rows)


class RetinaNet(Detector):
    """Classes and boxes from every cell at once, over maps at strides 8 to 128.

    Args:
        backbone: with `levels`; its maps from stride 8 on are used.
        channels: of the neck.
        convs: of each tower.
        tower_channels: of the towers; None: those of the neck.
        num_outs: maps of the neck.
        base_scale, scales_per_octave, ratios: of the anchors, see `RetinaHead`.
        score_threshold: what is found must score more.
        candidates: what enters non-maximum suppression: the best 1,000 (anchor, class) "pairs" of each level, as
            MMDetection does it since 2.19, or all classes of the best 1,000 "anchors" as before.
        per_level: those 1,000.
        iou_threshold: of non-maximum suppression.
        per_image: most detections.

    Raises:
        ValueError: the backbone has no map at stride 8 or coarser, or a setting that there is not.
    """

    method = "retinanet"

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        channels: int = 256,
        convs: int = 4,
        tower_channels: int | None = None,
        num_outs: int = 5,
        base_scale: float = 4,
        scales_per_octave: int = 3,
        ratios: Sequence[float] = (0.5, 1.0, 2.0),
        score_threshold: float = 0.05,
        candidates: Candidates = "pairs",
        per_level: int = 1000,
        iou_threshold: float = 0.5,
        per_image: int = 100,
    ) -> None:
        check_counts(channels=channels, tower_channels=tower_channels, num_outs=num_outs)
        check_counts(per_level=per_level, per_image=per_image)
        levels = levels_of(backbone)
        start = first_at_stride(levels, 8)
        neck = FPN(levels, channels, max(num_outs, len(levels) - start), start_level=start, extra="input")
        super().__init__(backbone, neck, num_classes)
        self.find_unused_parameters = freeze_unused(backbone, range(start, len(levels)))
        self.dense_head = RetinaHead(
            neck.levels,
            num_classes,
            convs=convs,
            channels=tower_channels or channels,
            base_scale=base_scale,
            scales_per_octave=scales_per_octave,
            ratios=ratios,
        )
        if candidates not in ("pairs", "anchors"):
            raise ValueError(f"candidates are the best 'pairs' or the best 'anchors'; got {candidates!r}")
        self.score_threshold, self.candidates, self.per_level = score_threshold, candidates, per_level
        self.iou_threshold, self.per_image = iou_threshold, per_image

    def losses(self, batch: Batch, seed: int | None = None) -> dict[str, Tensor]:
        """`loss_cls`, focal, and `loss_bbox`, L1. Nothing is drawn."""
        truths = ground_truths(batch, masks=False)
        logits, deltas = self.dense_head(self.maps(batch))
        return self.dense_head.losses(logits, deltas, batch, truths, self.mean_over_ranks)

    def forward_for_counting(self, images_BCHW: Tensor) -> None:
        """As `Detector.forward_for_counting`."""
        self.dense_head(self.neck(self.backbone(images_BCHW)))

    @torch.no_grad()
    def detect(self, batch: Batch, *, rescale: bool = True) -> list[Detections]:
        """As `Detector.detect`."""
        logits, deltas = self.dense_head(self.maps(batch))
        anchors = self.dense_head.anchors.boxes([(x.shape[-2], x.shape[-1]) for x in logits], logits[0].device)
        return [
            self._detections([x[i] for x in logits], [x[i] for x in deltas], anchors, batch, i, rescale=rescale)
            for i in range(len(batch))
        ]

    def _detections(
        self,
        logits: Sequence[Tensor],
        deltas: Sequence[Tensor],
        anchors: Sequence[Tensor],
        batch: Batch,
        i: int,
        *,
        rescale: bool,
    ) -> Detections:
        choose = self._best_pairs if self.candidates == "pairs" else self._pairs_of_best_anchors
        chosen = [choose(x, d, a) for x, d, a in zip(logits, deltas, anchors, strict=True)]
        scores_N, labels_N, deltas_N4, anchors_N4 = (torch.cat([level[k] for level in chosen]) for k in range(4))
        boxes_N4 = self.dense_head.coder.decode(anchors_N4, deltas_N4, batch.sizes[i])
        if rescale:
            boxes_N4 = to_original(boxes_N4, batch, i)
        if self.candidates == "pairs":
            some = (boxes_N4[:, 2:] > boxes_N4[:, :2]).all(dim=1)
            boxes_N4, labels_N, scores_N = boxes_N4[some], labels_N[some], scores_N[some]
        kept = grouped_nms(boxes_N4, scores_N, labels_N, self.iou_threshold)[: self.per_image]
        return Detections(boxes_N4[kept], labels_N[kept], scores_N[kept])

    def _best_pairs(self, logits: Tensor, deltas: Tensor, anchors_N4: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Scores, labels, deltas and anchors of the best (anchor, class) pairs of one level of one image."""
        scores_NC, deltas_N4 = self._rows(logits, deltas)
        n, label = (scores_NC > self.score_threshold).nonzero(as_tuple=True)
        scores_P, best_P = scores_NC[n, label].sort(descending=True, stable=True)
        best_P = best_P[: self.per_level]
        return scores_P[: self.per_level], label[best_P], deltas_N4[n[best_P]], anchors_N4[n[best_P]]

    def _pairs_of_best_anchors(
        self, logits: Tensor, deltas: Tensor, anchors_N4: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The same for all classes of the anchors whose best class scores best."""
        scores_NC, deltas_N4 = self._rows(logits, deltas)
        if len(scores_NC) > self.per_level:
            best_N = scores_NC.amax(dim=1).topk(self.per_level).indices
            scores_NC, deltas_N4, anchors_N4 = scores_NC[best_N], deltas_N4[best_N], anchors_N4[best_N]
        n, label = (scores_NC > self.score_threshold).nonzero(as_tuple=True)
        return scores_NC[n, label], label, deltas_N4[n], anchors_N4[n]

    def _rows(self, logits: Tensor, deltas: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C) scores and (N, 4) deltas of one map of one image."""
        rows = [as_float32(x).permute(1, 2, 0) for x in (logits, deltas)]
        return rows[0].reshape(-1, self.num_classes).sigmoid(), rows[1].reshape(-1, 4)
