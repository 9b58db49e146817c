"""RetinaNet, https://arxiv.org/abs/1708.02002. B images, C classes, A anchors a cell, N anchors in all."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from fourstage.backbones.layers import Level
from fourstage.data.sample import Batch
from fourstage.tasks.detection.anchors import AnchorGrid, octave_scales
from fourstage.tasks.detection.boxes import BoxCoder, as_float32
from fourstage.tasks.detection.detector import GroundTruth, Mean
from fourstage.tasks.detection.losses import divide, focal_sum, smooth_l1_sum
from fourstage.tasks.detection.matching import OverlapMatcher, ThresholdMatcher
from fourstage.tasks.detection.single_stage import (
    CandidateLimits,
    Candidates,
    CellHead,
    SingleStage,
    init_convs,
    targets_of_maps,
)
from fourstage.tasks.parts.conv import ConvNormAct
from fourstage.tasks.parts.fpn import FPN
from fourstage.tasks.parts.freeze_unused import freeze_unused
from fourstage.tasks.parts.levels import first_at_stride, levels_of
from fourstage.tasks.parts.settings import check_counts, check_sizes


class RetinaHead(CellHead):
    """Class logits and box deltas for every anchor of every cell, by two towers that all maps share.

    Args:
        levels: of the maps.
        convs: 3x3 convolutions of each tower.
        channels: of the towers.
        base_scale: side of the smallest square anchor, in strides.
        scales_per_octave: number of sizes of anchors, from base_scale to below twice that.
        ratios: height over width of the anchors.
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
        self.coder, self.matcher = BoxCoder(), OverlapMatcher(ThresholdMatcher(0.5, 0.4))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights: normal, std 0.01; biases: 0, and for the classes such that each starts at a score of 0.01."""
        init_convs(self)
        assert self.classify.bias is not None
        nn.init.constant_(self.classify.bias, -math.log(0.99 / 0.01))

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return for each map (B, A * C, H, W) logits and (B, A * 4, H, W) deltas."""
        logits = [self.classify(self.class_tower(x_BCHW)) for x_BCHW in maps]
        deltas = [self.regress(self.box_tower(x_BCHW)) for x_BCHW in maps]
        return logits, deltas

    def losses(
        self, outputs: Sequence[Sequence[Tensor]], batch: Batch, truths: Sequence[GroundTruth], mean: Mean
    ) -> dict[str, Tensor]:
        """Return `loss_cls`, focal, and `loss_bbox`, L1, from what `forward` returned."""
        logits, deltas = outputs
        targets, count = targets_of_maps(self.matcher, self.anchors, logits, batch.sizes, truths)
        count, class_sums, box_sums = mean(count), [], []
        for logits_BKHW, deltas_BKHW, target in zip(logits, deltas, targets, strict=True):
            logits_BACHW = as_float32(logits_BKHW).unflatten(1, (self.anchors.per_cell, self.num_classes))
            deltas_BACHW = as_float32(deltas_BKHW).unflatten(1, (self.anchors.per_cell, 4))
            class_sums.append(focal_sum(logits_BACHW, target.used_BA1HW, target.scores_of(logits_BACHW)))
            wanted_P4 = self.coder.encode(target.anchors_P4, target.boxes_P4)
            box_sums.append(smooth_l1_sum(target.values_of(deltas_BACHW), wanted_P4))
        return {
            "loss_cls": divide(torch.stack(class_sums).sum(), count),
            "loss_bbox": divide(torch.stack(box_sums).sum(), count),
        }


class RetinaNet(SingleStage):
    """Single-stage detector: classes and boxes from every cell of maps at strides 8 to 128.

    Args:
        backbone: with `levels`; its maps from stride 8 on are used.
        channels: width of the neck.
        convs: number of 3x3 convolutions of each tower.
        tower_channels: width of the towers; None: that of the neck.
        num_outs: number of maps of the neck, or more where the backbone has more from stride 8 on.
        base_scale, scales_per_octave, ratios: see `RetinaHead`.
        score_threshold: score that every detection exceeds.
        candidates: what suppression reads of each level: the best (anchor, class) "pairs", as in MMDetection since
            2.19, or all classes of the best "anchors", as before.
        per_level: number of candidates of each level, pairs or anchors.
        iou_threshold: overlap above which non-maximum suppression drops the box that scores less.
        per_image: largest number of detections in an image.

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
        limits = CandidateLimits(score_threshold, candidates, per_level, iou_threshold, per_image)
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
        self.limits = limits
