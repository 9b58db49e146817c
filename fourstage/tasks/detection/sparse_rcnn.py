"""Sparse R-CNN, https://arxiv.org/abs/2011.12450. B images, Q proposals, C classes, D channels, R = B x Q regions.

Learned proposals are refined by heads one after the other. Each head lets the proposals compare themselves, then reads
the region of each with filters that the proposal itself chooses. There is no suppression.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourstage.data.sample import Batch
from fourstage.plurals import plural
from fourstage.tasks.detection.boxes import BoxCoder, as_float32, corner_form, generalized_iou
from fourstage.tasks.detection.detector import Detections, Detector, GroundTruth, ground_truths
from fourstage.tasks.detection.dino_layers import FeedForward, SelfAttention
from fourstage.tasks.detection.losses import giou_sum
from fourstage.tasks.detection.query_losses import UNIT, class_loss, focal_cost
from fourstage.tasks.detection.rois import RoIPool, to_rois_of_batch
from fourstage.tasks.detection.set_criterion import MatchedPairs, Queries, SetCriterion
from fourstage.tasks.detection.set_prediction import best_of_queries
from fourstage.tasks.parts.fpn import FPN
from fourstage.tasks.parts.levels import levels_of
from fourstage.tasks.parts.settings import check_counts

SIZE, SAMPLES = 7, 2  # cells a side of a region, and points a side in each
STDS = (0.5, 0.5, 1.0, 1.0)  # of the deltas of boxes
CLASS_LAYERS, BOX_LAYERS = 1, 3  # before the predictions
CLASS_WEIGHT, BOX_WEIGHT, GIOU_WEIGHT = 2.0, 5.0, 2.0  # of costs and losses alike


class DynamicConv(nn.Module):
    """Two 1x1 convolutions of each region whose weights follow from its query, then a linear layer over the region.

    Args:
        channels: D, of queries and regions.
        hidden: channels between the two convolutions.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.filters = nn.Linear(channels, 2 * channels * hidden)
        self.norm_in, self.norm_out = nn.LayerNorm(hidden), nn.LayerNorm(channels)
        self.flat, self.flat_norm = nn.Linear(channels * SIZE**2, channels), nn.LayerNorm(channels)

    def forward(self, query_RD: Tensor, region_RDMM: Tensor) -> Tensor:
        """Return (R, D)."""
        first_RDK, second_RKD = self.filters(query_RD).chunk(2, dim=1)
        x_RLD = region_RDMM.flatten(2).transpose(1, 2)
        x_RLK = F.relu(self.norm_in(x_RLD @ first_RDK.unflatten(1, (-1, self.hidden))))
        x_RLD = F.relu(self.norm_out(x_RLK @ second_RKD.unflatten(1, (self.hidden, -1))))
        return F.relu(self.flat_norm(self.flat(x_RLD.flatten(1))))


class Refined(NamedTuple):
    """What a head returns."""

    logits_BQC: Tensor
    deltas_BQ4: Tensor
    queries_BQD: Tensor  # for the next head


class DynamicHead(nn.Module):
    """Class logits, box deltas and new queries from queries and their regions.

    Args:
        channels: D.
        num_classes: C.
        heads: number of heads of the attention among queries.
        hidden: width between the two linear layers of the feed-forward block.
        filter_channels: width between the two convolutions whose weights come from a query.
    """

    def __init__(self, channels: int, num_classes: int, *, heads: int, hidden: int, filter_channels: int) -> None:
        super().__init__()
        self.self_attn, self.self_norm = SelfAttention(channels, heads), nn.LayerNorm(channels)
        self.interact, self.interact_norm = DynamicConv(channels, filter_channels), nn.LayerNorm(channels)
        self.ffn = FeedForward(channels, hidden)
        self.class_layers, self.box_layers = _layers(channels, CLASS_LAYERS), _layers(channels, BOX_LAYERS)
        self.classify, self.regress = nn.Linear(channels, num_classes), nn.Linear(channels, 4)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Matrices: Xavier's uniform; biases of the classes such that each starts at a score of 0.01."""
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
        nn.init.constant_(self.classify.bias, -math.log(0.99 / 0.01))

    def forward(self, queries_BQD: Tensor, region_RDMM: Tensor) -> Refined:
        """Return the outputs for the regions of all queries, in their order."""
        no_place = queries_BQD.new_zeros(())
        queries_BQD = self.self_norm(queries_BQD + self.self_attn(queries_BQD, no_place, None))
        read_BQD = self.interact(queries_BQD.flatten(0, 1), region_RDMM).view_as(queries_BQD)
        queries_BQD = self.ffn(self.interact_norm(queries_BQD + read_BQD))
        logits_BQC = self.classify(self.class_layers(queries_BQD))
        return Refined(logits_BQC, self.regress(self.box_layers(queries_BQD)), queries_BQD)


def _layers(channels: int, count: int) -> nn.Sequential:
    return nn.Sequential(
        *(
            m
            for _ in range(count)
            for m in (nn.Linear(channels, channels, bias=False), nn.LayerNorm(channels), nn.ReLU())
        )
    )


class SparseRCNN(Detector):
    """A fixed number of learned proposals, refined stage by stage and matched one to one with the objects.

    The heads compute in float32 in mixed precision too: in half precision, their training ends in NaN.

    Args:
        backbone: with `levels`, all of which are used.
        proposals: number Q of proposals of an image; an image may not have more objects.
        stages: number of heads, one after the other.
        channels: width of the neck and of the queries, a multiple of heads.
        heads, hidden, filter_channels: see `DynamicHead`.
        per_image: largest number of detections in an image; None: that of the proposals.

    Raises:
        ValueError: a setting that there is not.
    """

    method = "sparse_rcnn"
    counts_over_ranks = True
    neck: FPN

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        proposals: int = 300,
        stages: int = 6,
        channels: int = 256,
        heads: int = 8,
        hidden: int = 2048,
        filter_channels: int = 64,
        per_image: int | None = None,
    ) -> None:
        check_counts(proposals=proposals, stages=stages, channels=channels, heads=heads, per_image=per_image)
        check_counts(hidden=hidden, filter_channels=filter_channels)
        if channels % heads:
            raise ValueError(f"channels={channels} must split evenly over heads={heads}")
        levels = levels_of(backbone)
        super().__init__(backbone, FPN(levels, channels, len(levels)), num_classes)
        self.proposal_boxes, self.proposal_features = nn.Embedding(proposals, 4), nn.Embedding(proposals, channels)
        self.box_heads = nn.ModuleList(
            DynamicHead(channels, num_classes, heads=heads, hidden=hidden, filter_channels=filter_channels)
            for _ in range(stages)
        )
        self.box_pool, self.coder = RoIPool(self.neck.levels, SIZE, SAMPLES), BoxCoder(STDS)
        self.per_image = per_image or proposals
        losses = {"loss_cls": class_loss, "loss_bbox": box_loss, "loss_iou": giou_loss}
        weights = {"loss_cls": CLASS_WEIGHT, "loss_bbox": BOX_WEIGHT, "loss_iou": GIOU_WEIGHT}
        self.criterion = SetCriterion(set_cost, losses, weights)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Every proposal starts as the whole image."""
        with torch.no_grad():
            self.proposal_boxes.weight.copy_(self.proposal_boxes.weight.new_tensor([0.5, 0.5, 1.0, 1.0]))

    def refine(self, batch: Batch) -> list[Queries]:
        """Return what each head predicts; boxes are corners in pixels, not clipped to the image."""
        maps = self.maps(batch)
        with torch.autocast(maps[0].device.type, enabled=False):
            maps = [x_BDHW.to(self.proposal_features.weight.dtype) for x_BDHW in maps]
            queries_BQD = self.proposal_features.weight.expand(len(batch), -1, -1)
            return self.refine_maps(maps, queries_BQD, _sizes(batch, maps[0].device))

    def refine_maps(self, maps: Sequence[Tensor], queries_BQD: Tensor, size_B14: Tensor) -> list[Queries]:
        """Return what each head predicts from the maps of the neck.

        Args:
            queries_BQD: those of the proposals, for each image.
            size_B14: width, height, width, height of each image in pixels.
        """
        boxes_BQ4 = corner_form(as_float32(self.proposal_boxes.weight)) * size_B14
        out = []
        for head in self.box_heads:
            refined: Refined = head(queries_BQD, self.box_pool(maps, to_rois_of_batch(boxes_BQ4)))
            queries_BQD = refined.queries_BQD
            boxes_BQ4 = self.coder.decode(boxes_BQ4, as_float32(refined.deltas_BQ4))
            out.append(Queries(as_float32(refined.logits_BQC), boxes_BQ4))
            boxes_BQ4 = boxes_BQ4.detach()
        return out

    def losses(self, batch: Batch, seed: int | None = None) -> dict[str, Tensor]:
        """Return for each stage `s0.loss_cls`, focal, `s0.loss_bbox`, L1, and `s0.loss_iou` ... Nothing is drawn."""
        truths = self._shares(ground_truths(batch, masks=False), batch)
        size_B14 = _sizes(batch, batch.images_BCHW.device)
        layers = [Queries(x.logits_BQC, x.boxes_BQ4 / size_B14) for x in self.refine(batch)]
        pairs = self.criterion.match(layers, truths)
        count = self.mean_over_ranks(layers[0].logits_BQC.new_tensor(float(len(pairs[0]))))
        count = torch.where(count > 0, count, 1.0)  # as published: a mean below 1 of several processes stays
        return self.criterion.weighed([f"s{i}." for i in range(len(layers))], layers, pairs, count)

    def _shares(self, truths: Sequence[GroundTruth], batch: Batch) -> list[GroundTruth]:
        """Return the truths with boxes as shares of their images. Raise ValueError for more objects than proposals."""
        most = self.proposal_boxes.num_embeddings
        out = []
        for id, (height, width), truth in zip(batch.ids, batch.sizes, truths, strict=True):
            if len(truth.labels_G) > most:
                raise ValueError(
                    f"{id} has {len(truth.labels_G)} objects, and this detector {plural(most, 'proposal')}, each for "
                    f"one object; set method_args.proposals={len(truth.labels_G)} or more"
                )
            size_4 = truth.boxes_G4.new_tensor([width, height, width, height])
            out.append(GroundTruth(truth.boxes_G4 / size_4, truth.labels_G, None))
        return out

    def forward_for_counting(self, images_BCHW: Tensor) -> None:
        """As `Detector.forward_for_counting`."""
        maps, queries_BQD = self.neck(self.backbone(images_BCHW)), self.proposal_features.weight[None]
        region_RDMM = maps[0].new_empty(*queries_BQD.shape[1:], SIZE, SIZE)
        for head in self.box_heads:
            head(queries_BQD, region_RDMM)

    @torch.no_grad()
    def detect(self, batch: Batch, *, rescale: bool = True) -> list[Detections]:
        """As `Detector.detect`. Boxes may end outside of the image, as they were published."""
        last = self.refine(batch)[-1]
        scores_BQC = last.logits_BQC.sigmoid()
        return best_of_queries(scores_BQC, last.boxes_BQ4, batch, per_image=self.per_image, rescale=rescale)


def _sizes(batch: Batch, device: torch.device) -> Tensor:
    """Return (B, 1, 4): width, height, width, height of each image in pixels."""
    return torch.tensor([[width, height, width, height] for height, width in batch.sizes], device=device)[:, None]


def set_cost(logits_QC: Tensor, boxes_Q4: Tensor, truth: GroundTruth) -> Tensor:
    """Return the (Q, G) cost of matching queries to objects; boxes are corners as shares of the image."""
    distance_QG = (boxes_Q4[:, None] - truth.boxes_G4[None]).abs().sum(dim=-1)
    giou_QG = generalized_iou(boxes_Q4[:, None] * UNIT, truth.boxes_G4[None] * UNIT)
    return focal_cost(logits_QC, truth.labels_G) * CLASS_WEIGHT + distance_QG * BOX_WEIGHT - giou_QG * GIOU_WEIGHT


def box_loss(queries: Queries, pairs: MatchedPairs) -> Tensor:
    """Return absolute differences of corners, summed."""
    return F.l1_loss(queries.boxes_BQ4[pairs.image_M, pairs.query_M], pairs.boxes_M4, reduction="sum")


def giou_loss(queries: Queries, pairs: MatchedPairs) -> Tensor:
    """Return 1 - generalised IoU, summed."""
    return giou_sum(queries.boxes_BQ4[pairs.image_M, pairs.query_M] * UNIT, pairs.boxes_M4 * UNIT)
