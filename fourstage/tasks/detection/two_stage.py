"""What Mask R-CNN and Cascade Mask R-CNN share. R regions, C classes, N detections."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fourstage.data.sample import Batch
from fourstage.tasks.detection.box_head import BoxHead, BoxLoss, DetectionLimits, Samples, sample_regions, select
from fourstage.tasks.detection.detector import Detections, Detector, GroundTruth, scale_of, to_original, unchanged
from fourstage.tasks.detection.mask_head import MaskHead
from fourstage.tasks.detection.masks import SmallMasks
from fourstage.tasks.detection.matching import AnchorMatcher, Draws, Sampler
from fourstage.tasks.detection.rois import RoIPool, to_rois
from fourstage.tasks.detection.rpn import RPNHead
from fourstage.tasks.parts.fpn import FPN
from fourstage.tasks.parts.levels import levels_of
from fourstage.tasks.parts.settings import check_counts, check_given, check_sizes, settings_from

BOX_REGION, MASK_REGION = 7, 14  # cells a side of a region for a box head and for a mask head
BOXES, MASKS = 1000, 100  # regions of an image for each box head and each mask head, in published costs

Heads = Literal["2fc", "4conv1fc"]
BoxLossName = Literal["l1", "smooth_l1", "giou"]
LOSSES: dict[str, BoxLoss] = {"l1": BoxLoss(), "smooth_l1": BoxLoss("smooth_l1"), "giou": BoxLoss("giou", 10.0)}


@dataclass(frozen=True)
class RegionHeads:
    """Settings of the box heads and the mask heads, of Mask R-CNN and Cascade Mask R-CNN alike.

    Raises:
        ValueError: an unknown form or loss, or a number that is no count.
    """

    heads: Heads  # a box head has two linear layers, or four convolutions with norm and a linear layer
    norm: Callable[[int], nn.Module]  # of the convolutions of box heads
    class_agnostic: bool  # one box for all classes instead of a box for each
    box_loss: str
    conv_channels: int
    fc_channels: int
    mask_channels: int
    mask_convs: int

    def __post_init__(self) -> None:
        if self.heads not in ("2fc", "4conv1fc"):
            raise ValueError(f"heads are '2fc' or '4conv1fc'; got {self.heads!r}")
        if self.box_loss not in LOSSES:
            raise ValueError(f"box_loss is one of {', '.join(LOSSES)}; got {self.box_loss!r}")
        check_counts(conv_channels=self.conv_channels, fc_channels=self.fc_channels, mask_channels=self.mask_channels)
        check_counts(mask_convs=self.mask_convs, least=0)

    def box_head(self, in_channels: int, num_classes: int, stds: tuple[float, float, float, float]) -> BoxHead:
        """Build a box head. `stds` are those of its deltas."""
        has_convs = self.heads == "4conv1fc"
        return BoxHead(
            in_channels,
            num_classes,
            size=BOX_REGION,
            convs=4 if has_convs else 0,
            conv_channels=self.conv_channels,
            norm=self.norm if has_convs else None,
            fcs=1 if has_convs else 2,
            channels=self.fc_channels,
            class_agnostic=self.class_agnostic,
            stds=stds,
            loss=LOSSES[self.box_loss],
        )

    def mask_head(self, in_channels: int, num_classes: int) -> MaskHead:
        """Build a mask head."""
        return MaskHead(in_channels, num_classes, convs=self.mask_convs, channels=self.mask_channels)


class TwoStage(Detector):
    """Backbone, pyramid, proposals, and regions for heads.

    Args:
        backbone: with `levels`, all of which are used; one more map for proposals is half as large as the last one.
        channels: width of the neck.
        num_outs: number of maps of the neck; None: one more than the backbone's. Proposals come from all of them.
        rpn: settings of the proposals, see `RPNHead`.
        finest_scale: side in pixels; boxes of less than twice this side are read from the first map.
        regions: number of regions of an image that train the heads.
        selecting: which pairs of a region and a class become detections.

    Raises:
        ValueError: a setting that there is not.
    """

    neck: FPN
    rpn_defaults: ClassVar[Mapping[str, Any]] = {}  # where they differ from those of `RPNHead`

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        channels: int,
        num_outs: int | None,
        rpn: Mapping[str, Any],
        finest_scale: float,
        regions: int,
        selecting: DetectionLimits | Mapping[str, Any],
    ) -> None:
        check_counts(channels=channels, num_outs=num_outs, regions=regions)
        check_sizes(finest_scale=finest_scale)
        levels = levels_of(backbone)
        super().__init__(backbone, FPN(levels, channels, num_outs or len(levels) + 1), num_classes)
        check_given(RPNHead, "rpn", rpn, but=("levels",))
        self.rpn = RPNHead(self.neck.levels, **{**self.rpn_defaults, **rpn})
        used = self.neck.levels[: len(levels)]
        self.box_pool, self.mask_pool = (
            RoIPool(used, size, finest_scale=finest_scale) for size in (BOX_REGION, MASK_REGION)
        )
        self.sampler, self.limits = Sampler(regions, 0.25), settings_from(DetectionLimits, "selecting", selecting)

    @torch.no_grad()
    def spread_scores(self, batch: Batch) -> None:
        """As `Detector.spread_scores`, on the best proposals."""
        maps = self.maps(batch)
        logits, deltas = self.rpn(maps)
        proposals = [boxes for boxes, _ in self.rpn.propose(logits, deltas, batch, self.rpn.proposals)]
        regions_RCMM = self.box_pool(maps, to_rois(proposals))
        for head in self.modules():
            if isinstance(head, BoxHead):
                head.spread_scores(regions_RCMM)

    def forward_for_counting(self, images_BCHW: Tensor) -> None:
        """As `Detector.forward_for_counting`: 1,000 regions for each box head, 100 for each mask head."""
        maps = self.neck(self.backbone(images_BCHW))
        self.rpn(maps)
        first_BCHW = maps[0]
        for head in self.modules():
            if isinstance(head, BoxHead):
                head(first_BCHW.new_empty(BOXES, first_BCHW.shape[1], BOX_REGION, BOX_REGION))
            elif isinstance(head, MaskHead):
                head(first_BCHW.new_empty(MASKS, first_BCHW.shape[1], MASK_REGION, MASK_REGION))

    def sample(
        self,
        proposals: Sequence[Tensor],
        truths: Sequence[GroundTruth],
        batch: Batch,
        matcher: AnchorMatcher,
        draws: Draws,
        purpose: int,
    ) -> list[Samples]:
        """Return the training regions of each image."""
        return [
            sample_regions(boxes_N4, truth, matcher, self.sampler, draws.stream(id, purpose), self.num_classes)
            for boxes_N4, truth, id in zip(proposals, truths, batch.ids, strict=True)
        ]

    def mask_loss(
        self, head: MaskHead, maps: Sequence[Tensor], samples: Sequence[Samples], truths: Sequence[GroundTruth]
    ) -> Tensor:
        """Return the mask loss, of the positives alone."""
        regions = self.mask_pool(maps, to_rois([s.positives for s in samples]))
        return head.loss(regions, samples, truths)

    def finish(
        self,
        maps: Sequence[Tensor],
        batch: Batch,
        proposals: Sequence[Tensor],
        logits_RC: Tensor,
        deltas_RK4: Tensor,
        box_head: BoxHead,
        mask_heads: Sequence[MaskHead],
        *,
        rescale: bool,
    ) -> list[Detections]:
        """Return the detections from the outputs of the last box head for the proposals of all images.

        Boxes alone go back to the original image before non-maximum suppression; those with masks after it.
        """
        counts = [len(boxes) for boxes in proposals]
        detections = []
        images = zip(proposals, logits_RC.split(counts), deltas_RK4.split(counts), strict=True)
        for i, (boxes_R4, logits, deltas) in enumerate(images):
            place = partial(to_original, batch=batch, i=i) if rescale and not mask_heads else unchanged
            detections.append(select(boxes_R4, logits, deltas, box_head.coder, batch.sizes[i], self.limits, place))
        if not mask_heads:
            return detections
        return self._with_masks(maps, batch, detections, mask_heads, rescale=rescale)

    def _with_masks(
        self,
        maps: Sequence[Tensor],
        batch: Batch,
        detections: Sequence[Detections],
        heads: Sequence[MaskHead],
        *,
        rescale: bool,
    ) -> list[Detections]:
        regions = self.mask_pool(maps, to_rois([d.boxes_N4 for d in detections]))
        labels_N = torch.cat([d.labels_N for d in detections])
        masks_NMM = torch.stack([head.of_class(regions, labels_N).sigmoid() for head in heads]).mean(dim=0)
        out = []
        for i, (d, small_NMM) in enumerate(zip(detections, masks_NMM.split([len(d) for d in detections]), strict=True)):
            scale = scale_of(batch, i) if rescale else (1.0, 1.0)
            size = batch.original_sizes[i] if rescale else batch.sizes[i]
            boxes_N4 = d.boxes_N4 / d.boxes_N4.new_tensor(scale * 2)
            masks = SmallMasks(small_NMM, boxes_N4, size, self.limits.mask_threshold)
            out.append(Detections(boxes_N4, d.labels_N, d.scores_N, masks))
        return out
