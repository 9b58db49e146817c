"""What heads over every cell of every map share, such as those of RetinaNet, ATSS and region proposals.

Match anchors inside the image, choose the best candidates of each map, decode them, suppress duplicates. B images,
C classes, A anchors a cell, N anchors of a map or of all maps, P positive anchors, or pairs of an anchor and a class.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf, log
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from fourstage.data.sample import Batch
from fourstage.ops.eager import is_exporting
from fourstage.tasks.detection.anchors import AnchorGrid
from fourstage.tasks.detection.boxes import BoxCoder, as_float32, grouped_nms, have_area
from fourstage.tasks.detection.detector import (
    Detections,
    Detector,
    GroundTruth,
    Mean,
    ground_truths,
    to_original,
    unchanged,
)
from fourstage.tasks.detection.matching import IGNORED, AnchorMatcher
from fourstage.tasks.detection.padding import padded_size
from fourstage.tasks.parts.settings import check_counts

Candidates: TypeAlias = Literal["pairs", "anchors"]


class Pairs(NamedTuple):
    """Chosen pairs of an anchor and a class."""

    scores_P: Tensor
    anchor_P: Tensor  # index
    labels_P: Tensor


@dataclass(frozen=True)
class CandidateLimits:
    """Which pairs of an anchor and a class become detections.

    Raises:
        ValueError: a number below 1, or an unknown kind of candidates.
    """

    score_threshold: float = 0.05  # detections score more
    candidates: Candidates = "pairs"  # which of them suppression reads, see `best_pairs` and `pairs_of_best_anchors`
    per_level: int = 1000  # pairs or anchors of each map
    iou_threshold: float = 0.5  # of suppression
    per_image: int = 100

    def __post_init__(self) -> None:
        check_counts(per_level=self.per_level, per_image=self.per_image)
        if self.candidates not in CHOOSE:
            raise ValueError(f"candidates are the best 'pairs' or the best 'anchors'; got {self.candidates!r}")


def by_anchor(x_BKHW: Tensor, values: int) -> Tensor:
    """(B, H * W * A, values), float32 or better, from channels that hold `values` numbers for each of A anchors."""
    return as_float32(x_BKHW).permute(0, 2, 3, 1).unflatten(3, (-1, values)).flatten(1, 3)


def match_inside(
    matcher: AnchorMatcher, anchors: Sequence[Tensor], usable: Sequence[Tensor], boxes_G4: Tensor
) -> Tensor:
    """(N,) as `matcher` returns it for the usable anchors alone; the others are IGNORED.

    Args:
        anchors: (n, 4) for each map.
        usable: (n,) bool for each map.
    """
    usable_N = torch.cat([*usable])
    if bool(usable_N.all()):
        return matcher(anchors, boxes_G4)
    matched_N = torch.full((len(usable_N),), IGNORED, device=usable_N.device)
    matched_N[usable_N] = matcher([a[u] for a, u in zip(anchors, usable, strict=True)], boxes_G4)
    return matched_N


@dataclass(frozen=True)
class MapTargets:
    """What the anchors of one map learn, in all images: classes and boxes of the objects that they are matched to."""

    used_BA1HW: Tensor  # bool: False where an anchor is ignored
    place: tuple[Tensor, Tensor, Tensor, Tensor]  # of each positive anchor: image, anchor of its cell, row, column
    anchors_P4: Tensor
    boxes_P4: Tensor
    labels_P: Tensor

    def scores_of(self, x_BACHW: Tensor) -> Tensor:
        """Return (P,), the values of the positive anchors for their classes."""
        image, anchor, row, column = self.place
        return x_BACHW[image, anchor, self.labels_P, row, column]

    def values_of(self, x_BAKHW: Tensor) -> Tensor:
        """Return (P, K), all values of the positive anchors."""
        image, anchor, row, column = self.place
        return x_BAKHW[image, anchor, :, row, column]


def targets_of_maps(
    matcher: AnchorMatcher,
    grid: AnchorGrid,
    maps: Sequence[Tensor],
    sizes: Sequence[tuple[int, int]],
    truths: Sequence[GroundTruth],
) -> tuple[list[MapTargets], Tensor]:
    """Match the anchors of every map to the objects of each image.

    Args:
        maps: (B, K, H, W) of the head, whatever their K channels are.
        sizes: (H, W) of each image; anchors whose cells begin beyond its padding are ignored.

    Returns:
        The targets of each map, and the number of positive anchors, where an image without one counts 1.
    """
    cells = [(x.shape[-2], x.shape[-1]) for x in maps]
    anchors = grid.boxes(cells, maps[0].device)
    usable = [grid.within(cells, padded_size(size), maps[0].device) for size in sizes]
    images = zip(usable, truths, strict=True)
    matched_BN = torch.stack([match_inside(matcher, anchors, u, truth.boxes_G4) for u, truth in images])
    count = (matched_BN >= 0).sum(dim=1).clamp(min=1).sum().float()
    offset_B = torch.tensor([0, *(len(t.labels_G) for t in truths)][:-1], device=matched_BN.device).cumsum(0)
    labels_G, boxes_G4 = torch.cat([t.labels_G for t in truths]), torch.cat([t.boxes_G4 for t in truths])
    targets = []
    of_maps = matched_BN.split([len(a) for a in anchors], dim=1)
    for (height, width), anchors_N4, here_BN in zip(cells, anchors, of_maps, strict=True):
        used_BA1HW = (here_BN != IGNORED).unflatten(1, (height, width, -1)).permute(0, 3, 1, 2)[:, :, None]
        b, n = (here_BN >= 0).nonzero(as_tuple=True)
        cell, which = n // grid.per_cell, here_BN[b, n] + offset_B[b]
        place = (b, n % grid.per_cell, cell // width, cell % width)
        targets.append(MapTargets(used_BA1HW, place, anchors_N4[n], boxes_G4[which], labels_G[which]))
    return targets, count


def first_best(scores_BN: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` best scores of each row and where they are, best first, and of equal ones the first first.

    Sigmoid leaves many scores near 1 equal, padding gives all its cells the same score, and which of two equal boxes is
    chosen or suppresses the other changes what follows.
    """
    chosen_BN = scores_BN if is_exporting() else _among_the_best(scores_BN, count)  # graphs have the same rule
    place_BN = chosen_BN.topk(count).indices.sort().values
    scores_BN, order_BN = scores_BN.gather(1, place_BN).sort(descending=True, stable=True)
    return scores_BN, place_BN.gather(1, order_BN)


def _among_the_best(scores_BN: Tensor, count: int) -> Tensor:
    """Return 1 for the `count` best scores of each row, of those equal to the last one the first ones, 0 elsewhere."""
    last_B1 = scores_BN.nan_to_num(nan=inf).topk(count).values[:, -1:]
    better_BN, equal_BN = ~(scores_BN <= last_B1), scores_BN == last_B1
    room_B1 = count - better_BN.sum(dim=1, keepdim=True)
    return (better_BN | (equal_BN & (equal_BN.cumsum(dim=1) <= room_B1))).to(scores_BN.dtype)


def best_pairs(scores_NC: Tensor, threshold: float, count: int, factor_N: Tensor | None = None) -> Pairs:
    """The `count` best pairs of an anchor and a class above `threshold`, as MMDetection has them since 2.19."""
    n, label = (scores_NC > threshold).nonzero(as_tuple=True)
    scores_P, best_P = scores_NC[n, label].sort(descending=True, stable=True)
    best_P = best_P[:count]
    return Pairs(scores_P[:count], n[best_P], label[best_P])


def pairs_of_best_anchors(scores_NC: Tensor, threshold: float, count: int, factor_N: Tensor | None = None) -> Pairs:
    """All pairs above `threshold` of the `count` anchors whose best class scores best, as MMDetection had them.

    Args:
        factor_N: of the scores, by which the anchors are ranked, and nothing else.
    """
    if len(scores_NC) <= count:
        n, label = (scores_NC > threshold).nonzero(as_tuple=True)
        return Pairs(scores_NC[n, label], n, label)
    best_N = scores_NC.amax(dim=1).mul(1 if factor_N is None else factor_N).topk(count).indices
    scores_NC = scores_NC[best_N]
    n, label = (scores_NC > threshold).nonzero(as_tuple=True)
    return Pairs(scores_NC[n, label], best_N[n], label)


Choose: TypeAlias = Callable[[Tensor, float, int, Tensor | None], Pairs]
CHOOSE: dict[str, Choose] = {"pairs": best_pairs, "anchors": pairs_of_best_anchors}


def select_candidates(
    scores: Iterable[Tensor],
    deltas: Sequence[Tensor],
    anchors: Sequence[Tensor],
    *,
    coder: BoxCoder,
    size: tuple[int, int],
    limits: CandidateLimits,
    place: Callable[[Tensor], Tensor],
    factors: Sequence[Tensor] | None = None,
) -> Detections:
    """The detections in one image of `size` (H, W), from the scores and deltas of the anchors of every map.

    Args:
        scores: (n, C) probabilities for each map; an iterator keeps those of one map in memory at a time.
        deltas, anchors: (n, 4) for each map.
        place: moves the boxes of the candidates to where suppression happens, such as into the original image.
        factors: (n,) for each map, by which the scores of chosen candidates are multiplied before suppression.
    """
    choose = CHOOSE[limits.candidates]
    of_maps = zip(scores, factors or [None] * len(anchors), strict=True)
    chosen = [choose(x_NC, limits.score_threshold, limits.per_level, factor_N) for x_NC, factor_N in of_maps]
    scores_P, labels_P = torch.cat([c.scores_P for c in chosen]), torch.cat([c.labels_P for c in chosen])
    deltas_P4, anchors_P4 = (_chosen(of_maps, chosen) for of_maps in (deltas, anchors))
    if factors is not None:
        scores_P = scores_P * _chosen(factors, chosen)
    boxes_P4 = place(coder.decode(anchors_P4, deltas_P4, size))
    if limits.candidates == "pairs":  # MMDetection dropped boxes without area only since it had them
        some_P = have_area(boxes_P4)
        boxes_P4, labels_P, scores_P = boxes_P4[some_P], labels_P[some_P], scores_P[some_P]
    kept = grouped_nms(boxes_P4, scores_P, labels_P, limits.iou_threshold)[: limits.per_image]
    return Detections(boxes_P4[kept], labels_P[kept], scores_P[kept])


def _chosen(of_maps: Sequence[Tensor], chosen: Sequence[Pairs]) -> Tensor:
    """Return the values of the chosen anchors of all maps, from (n, ...) for each map."""
    return torch.cat([x[pairs.anchor_P] for x, pairs in zip(of_maps, chosen, strict=True)])


def init_convs(head: nn.Module) -> None:
    """Weights of convolutions with a bias: normal, std 0.01; their biases: 0."""
    for module in head.modules():
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)


@torch.no_grad()
def shift_scores(classify: nn.Conv2d, logits: Sequence[Tensor], limits: CandidateLimits) -> None:
    """Shift the bias of the last layer such that about `limits.per_level` pairs an image score above the threshold.

    Args:
        logits: what the layer returns for the maps of some images.
    """
    every_N = torch.cat([x_BKHW.float().flatten() for x_BKHW in logits])
    last = every_N.topk(min(limits.per_level * len(logits[0]), len(every_N))).values[-1]
    score = limits.score_threshold
    assert classify.bias is not None
    if 0 < score < 1:
        classify.bias += (log(score / (1 - score)) - last).to(classify.bias.dtype)


class CellHead(nn.Module, ABC):
    """A head that predicts classes and boxes for the anchors of every cell, with towers that all maps share.

    Attributes:
        anchors: those of every map.
        coder: of the boxes.
        num_classes: C.
        classify: the layer that returns the logits of classes.
    """

    anchors: AnchorGrid
    coder: BoxCoder
    num_classes: int
    classify: nn.Conv2d

    @abstractmethod
    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], ...]:
        """Return for each map (B, A * C, H, W) logits, (B, A * 4, H, W) deltas, and what else the losses read."""

    @abstractmethod
    def losses(
        self, outputs: Sequence[Sequence[Tensor]], batch: Batch, truths: Sequence[GroundTruth], mean: Mean
    ) -> dict[str, Tensor]:
        """Return named losses from what `forward` returned."""

    def factors(self, outputs: Sequence[Sequence[Tensor]], i: int) -> list[Tensor] | None:
        """Return (n,) factors of the scores of image i for each map; None: all are 1."""
        return None


class SingleStage(Detector):
    """A neck whose maps a `CellHead` reads. A subclass builds the two.

    Attributes:
        dense_head: the head.
        limits: which candidates become detections.
    """

    dense_head: CellHead
    limits: CandidateLimits

    def losses(self, batch: Batch, seed: int | None = None) -> dict[str, Tensor]:
        """Return the losses of the head. Nothing is drawn."""
        truths = ground_truths(batch, masks=False)
        return self.dense_head.losses(self.dense_head(self.maps(batch)), batch, truths, self.mean_over_ranks)

    @torch.no_grad()
    def spread_scores(self, batch: Batch) -> None:
        """As `Detector.spread_scores`."""
        shift_scores(self.dense_head.classify, self.dense_head(self.maps(batch))[0], self.limits)

    def forward_for_counting(self, images_BCHW: Tensor) -> None:
        """As `Detector.forward_for_counting`."""
        self.dense_head(self.neck(self.backbone(images_BCHW)))

    @torch.no_grad()
    def detect(self, batch: Batch, *, rescale: bool = True) -> list[Detections]:
        """As `Detector.detect`."""
        outputs = self.dense_head(self.maps(batch))
        logits, deltas = outputs[:2]
        anchors = self.dense_head.anchors.boxes([(x.shape[-2], x.shape[-1]) for x in logits], logits[0].device)
        return [
            select_candidates(
                (by_anchor(x_BKHW[i : i + 1], self.num_classes)[0].sigmoid() for x_BKHW in logits),
                [by_anchor(x_BKHW[i : i + 1], 4)[0] for x_BKHW in deltas],
                anchors,
                coder=self.dense_head.coder,
                size=batch.sizes[i],
                limits=self.limits,
                place=partial(to_original, batch=batch, i=i) if rescale else unchanged,
                factors=self.dense_head.factors(outputs, i),
            )
            for i in range(len(batch))
        ]
