"""ATSS, https://arxiv.org/abs/1912.02424. B images, C classes, N anchors, P positive anchors, H x W cells."""

import math
from collections.abc import Sequence
from itertools import pairwise, starmap

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourstage.backbones.layers import Level
from fourstage.data.sample import Batch
from fourstage.tasks.detection.anchors import AnchorGrid
from fourstage.tasks.detection.boxes import BoxCoder, as_float32, box_centers, generalized_iou
from fourstage.tasks.detection.detector import GroundTruth, Mean
from fourstage.tasks.detection.dyhead import DyHead
from fourstage.tasks.detection.losses import divide, focal_sum
from fourstage.tasks.detection.matching import AdaptiveMatcher
from fourstage.tasks.detection.single_stage import (
    CandidateLimits,
    Candidates,
    CellHead,
    SingleStage,
    by_anchor,
    init_convs,
    targets_of_maps,
)
from fourstage.tasks.parts.conv import ConvNormAct
from fourstage.tasks.parts.fpn import FPN
from fourstage.tasks.parts.freeze_unused import freeze_unused
from fourstage.tasks.parts.levels import first_at_stride, levels_of
from fourstage.tasks.parts.settings import check_counts, check_groups, check_sizes

GROUPS = 32  # of the towers' norms
STDS = (0.1, 0.1, 0.2, 0.2)  # of the deltas of boxes
BOX_WEIGHT = 2.0  # of the loss of boxes


class ATSSHead(CellHead):
    """Class logits, box deltas and centreness for one square anchor a cell, by two towers that all maps share.

    Args:
        levels: of the maps.
        convs: 3x3 convolutions of each tower, with norm and ReLU.
        channels: of the towers, a multiple of 32 from 64 on.
        kernel: side of the last convolutions' kernels, an odd number of cells.
        base_scale: side of the square anchors, in strides.
        anchor_offset: distance of an anchor's centre from the upper left corner of its cell, in strides.
        candidates: see `AdaptiveMatcher`.

    Raises:
        ValueError: a number out of its range, or an even `kernel`.
    """

    def __init__(
        self,
        levels: Sequence[Level],
        num_classes: int,
        *,
        convs: int = 4,
        channels: int = 256,
        kernel: int = 3,
        base_scale: float = 8,
        anchor_offset: float = 0.0,
        candidates: int = 9,
    ) -> None:
        super().__init__()
        check_counts(convs=convs, least=0)
        check_counts(channels=channels, kernel=kernel)
        check_sizes(base_scale=base_scale)
        if kernel % 2 == 0:
            raise ValueError(f"kernel is an odd number of cells; got {kernel}")
        if convs:
            check_groups("a tower of ATSS", channels, GROUPS)
        strides = [level.stride for level in levels]
        self.anchors = AnchorGrid(strides, (base_scale,), (1.0,), offset=anchor_offset)
        self.num_classes, widths = num_classes, [levels[0].channels, *[channels] * convs]
        self.class_tower, self.box_tower = (nn.Sequential(*starmap(_layer, pairwise(widths))) for _ in range(2))
        self.classify, self.regress, self.centerness = (
            nn.Conv2d(widths[-1], values, kernel, padding=kernel // 2) for values in (num_classes, 4, 1)
        )
        self.scales = nn.ParameterList(nn.Parameter(torch.ones(())) for _ in levels)
        self.coder, self.matcher = BoxCoder(STDS), AdaptiveMatcher(candidates)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights: normal, std 0.01; biases: 0, and for the classes such that each starts at a score of 0.01."""
        for conv in self.modules():
            if isinstance(conv, nn.Conv2d):
                nn.init.normal_(conv.weight, std=0.01)
        init_convs(self)
        assert self.classify.bias is not None
        nn.init.constant_(self.classify.bias, -math.log(0.99 / 0.01))

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Return for each map (B, C, H, W) logits, (B, 4, H, W) deltas and (B, 1, H, W) logits of centreness."""
        logits = [self.classify(self.class_tower(x_BCHW)) for x_BCHW in maps]
        boxes = [self.box_tower(x_BCHW) for x_BCHW in maps]
        deltas = [self.regress(x_BCHW) * scale for x_BCHW, scale in zip(boxes, self.scales, strict=True)]
        return logits, deltas, [self.centerness(x_BCHW) for x_BCHW in boxes]

    def losses(
        self, outputs: Sequence[Sequence[Tensor]], batch: Batch, truths: Sequence[GroundTruth], mean: Mean
    ) -> dict[str, Tensor]:
        """Return `loss_cls`, focal, `loss_bbox`, generalised IoU weighed by centreness, and `loss_centerness`."""
        targets, count = targets_of_maps(self.matcher, self.anchors, outputs[0], batch.sizes, truths)
        count, class_sums, box_sums, center_sums, weights = mean(count), [], [], [], []
        for *maps, target in zip(*outputs, targets, strict=True):
            logits_B1CHW, deltas_B14HW, centers_B11HW = (as_float32(x_BKHW)[:, None] for x_BKHW in maps)
            wanted_P = centerness_of(target.anchors_P4, target.boxes_P4)
            boxes_P4 = self.coder.decode(target.anchors_P4, target.values_of(deltas_B14HW))
            centers_P = target.values_of(centers_B11HW)[:, 0]
            class_sums.append(focal_sum(logits_B1CHW, target.used_BA1HW, target.scores_of(logits_B1CHW)))
            box_sums.append(((1 - generalized_iou(boxes_P4, target.boxes_P4)) * wanted_P).sum())
            center_sums.append(F.binary_cross_entropy_with_logits(centers_P, wanted_P, reduction="sum"))
            weights.append(wanted_P.sum())
        weight = mean(torch.stack(weights).sum()).clamp(min=1)
        return {
            "loss_cls": divide(torch.stack(class_sums).sum(), count),
            "loss_bbox": torch.stack(box_sums).sum() / weight * BOX_WEIGHT,
            "loss_centerness": divide(torch.stack(center_sums).sum(), count),
        }

    def factors(self, outputs: Sequence[Sequence[Tensor]], i: int) -> list[Tensor]:
        """As `CellHead.factors`: centreness, from 0 to 1."""
        return [by_anchor(x_B1HW[i : i + 1], 1)[0, :, 0].sigmoid() for x_B1HW in outputs[2]]


def _layer(in_channels: int, channels: int) -> nn.Module:
    return ConvNormAct(in_channels, channels, 3, norm=_norm, act=nn.ReLU())


def _norm(channels: int) -> nn.Module:
    return nn.GroupNorm(GROUPS, channels)


def centerness_of(anchors_P4: Tensor, boxes_P4: Tensor) -> Tensor:
    """Return (P,), from 0 to 1: how near the middle of its box an anchor's centre is, which is within the box."""
    center_P2 = box_centers(anchors_P4)
    before_P2, after_P2 = center_P2 - boxes_P4[:, :2], boxes_P4[:, 2:] - center_P2
    return (torch.minimum(before_P2, after_P2) / torch.maximum(before_P2, after_P2)).prod(dim=1).sqrt()


class ATSS(SingleStage):
    """Single-stage detector whose anchors are matched by the statistics of their overlaps with each object.

    Args:
        backbone: with `levels`; its maps from stride 8 on are used.
        channels: width of the neck; with dyhead a multiple of 16 from 32 on.
        convs: number of 3x3 convolutions of each tower; None: 4, and 0 after a dyhead.
        tower_channels: width of the towers, a multiple of 32 from 64 on; None: that of the neck.
        num_outs: see `RetinaNet`.
        dyhead: number of blocks of DyHead after the pyramid; 0: none.
        zero_offsets: see `DyHead`.
        kernel, base_scale, anchor_offset: see `ATSSHead`.
        candidates_per_level: number of anchors of each map, the nearest to an object, among which its anchors are
            chosen.
        score_threshold, candidates, per_level, iou_threshold, per_image: see `RetinaNet`.

    Raises:
        ValueError: the backbone has no map at stride 8 or coarser, or a setting that there is not.
    """

    method = "atss"
    counts_over_ranks = True

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        channels: int = 256,
        convs: int | None = None,
        tower_channels: int | None = None,
        num_outs: int = 5,
        dyhead: int = 0,
        zero_offsets: bool = True,
        kernel: int = 3,
        base_scale: float = 8,
        anchor_offset: float = 0.0,
        candidates_per_level: int = 9,
        score_threshold: float = 0.05,
        candidates: Candidates = "pairs",
        per_level: int = 1000,
        iou_threshold: float = 0.6,
        per_image: int = 100,
    ) -> None:
        check_counts(channels=channels, tower_channels=tower_channels, num_outs=num_outs)
        check_counts(convs=convs, dyhead=dyhead, least=0)
        limits = CandidateLimits(score_threshold, candidates, per_level, iou_threshold, per_image)
        levels = levels_of(backbone)
        start = first_at_stride(levels, 8)
        pyramid = FPN(levels, channels, max(num_outs, len(levels) - start), start_level=start, extra="output")
        neck = nn.Sequential(pyramid, DyHead(channels, dyhead, zero_offsets=zero_offsets)) if dyhead else pyramid
        super().__init__(backbone, neck, num_classes)
        self.find_unused_parameters = freeze_unused(backbone, range(start, len(levels)))
        self.dense_head = ATSSHead(
            pyramid.levels,
            num_classes,
            convs=(0 if dyhead else 4) if convs is None else convs,
            channels=tower_channels or channels,
            kernel=kernel,
            base_scale=base_scale,
            anchor_offset=anchor_offset,
            candidates=candidates_per_level,
        )
        self.limits = limits
