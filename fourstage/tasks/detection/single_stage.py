"""What heads over every cell of every map share, such as RetinaNet's and that of region proposals.

Match anchors inside the image, choose the best candidates of each map, decode them, suppress duplicates. B images,
C classes, A anchors a cell, N anchors of a map or of all maps, P pairs of an anchor and a class.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import log
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from fourstage.tasks.detection.boxes import BoxCoder, as_float32, grouped_nms, have_area
from fourstage.tasks.detection.detector import Detections
from fourstage.tasks.detection.matching import IGNORED, AnchorMatcher
from fourstage.tasks.parts.settings import check_counts

Candidates: TypeAlias = Literal["pairs", "anchors"]


class Pairs(NamedTuple):
    """Chosen pairs of an anchor and a class."""

    scores_P: Tensor
    anchor_P: Tensor  # index
    labels_P: Tensor


@dataclass(frozen=True)
class CandidateLimits:
    """Which pairs of an anchor and a class become detections."""

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
    return as_float32(x_BKHW).permute(0, 2, 3, 1).reshape(len(x_BKHW), -1, values)


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


def first_best(scores_BN: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` best scores of each row and where they are, best first, and of equal ones the first first.

    Sigmoid leaves many scores near 1 equal, and which of two equal boxes suppresses the other changes what follows.
    """
    place_BN = scores_BN.topk(count).indices.sort().values
    scores_BN, order_BN = scores_BN.gather(1, place_BN).sort(descending=True, stable=True)
    return scores_BN, place_BN.gather(1, order_BN)


def best_pairs(scores_NC: Tensor, threshold: float, count: int) -> Pairs:
    """The `count` best pairs of an anchor and a class above `threshold`, as MMDetection has them since 2.19."""
    n, label = (scores_NC > threshold).nonzero(as_tuple=True)
    scores_P, best_P = scores_NC[n, label].sort(descending=True, stable=True)
    best_P = best_P[:count]
    return Pairs(scores_P[:count], n[best_P], label[best_P])


def pairs_of_best_anchors(scores_NC: Tensor, threshold: float, count: int) -> Pairs:
    """All pairs above `threshold` of the `count` anchors whose best class scores best, as MMDetection had them."""
    if len(scores_NC) <= count:
        n, label = (scores_NC > threshold).nonzero(as_tuple=True)
        return Pairs(scores_NC[n, label], n, label)
    best_N = scores_NC.amax(dim=1).topk(count).indices
    scores_NC = scores_NC[best_N]
    n, label = (scores_NC > threshold).nonzero(as_tuple=True)
    return Pairs(scores_NC[n, label], best_N[n], label)


CHOOSE: dict[str, Callable[[Tensor, float, int], Pairs]] = {"pairs": best_pairs, "anchors": pairs_of_best_anchors}


def select_candidates(
    scores: Iterable[Tensor],
    deltas: Sequence[Tensor],
    anchors: Sequence[Tensor],
    *,
    coder: BoxCoder,
    size: tuple[int, int],
    limits: CandidateLimits,
    place: Callable[[Tensor], Tensor],
) -> Detections:
    """The detections in one image of `size` (H, W), from the scores and deltas of the anchors of every map.

    Args:
        scores: (n, C) probabilities for each map; an iterator keeps those of one map in memory at a time.
        deltas, anchors: (n, 4) for each map.
        place: moves the boxes of the candidates to where suppression happens, such as into the original image.
    """
    choose = CHOOSE[limits.candidates]
    chosen = [choose(x_NC, limits.score_threshold, limits.per_level) for x_NC in scores]
    scores_P, labels_P = torch.cat([c.scores_P for c in chosen]), torch.cat([c.labels_P for c in chosen])
    deltas_P4, anchors_P4 = (
        torch.cat([x_N4[c.anchor_P] for x_N4, c in zip(of_maps, chosen, strict=True)]) for of_maps in (deltas, anchors)
    )
    boxes_P4 = place(coder.decode(anchors_P4, deltas_P4, size))
    if limits.candidates == "pairs":  # MMDetection dropped boxes without area only since it had them
        some_P = have_area(boxes_P4)
        boxes_P4, labels_P, scores_P = boxes_P4[some_P], labels_P[some_P], scores_P[some_P]
    kept = grouped_nms(boxes_P4, scores_P, labels_P, limits.iou_threshold)[: limits.per_image]
    return Detections(boxes_P4[kept], labels_P[kept], scores_P[kept])


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
