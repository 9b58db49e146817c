"""Which ground-truth box each anchor or proposal is matched to, and which of them train. N anchors, G boxes.

A matcher reads a quality matrix (G, N), in which more is better: overlaps, or costs with a minus sign.
"""

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fourstage.tasks.detection.boxes import box_centers, box_iou, overlaps
from fourstage.tasks.parts.settings import check_counts

LEAST_MARGIN = 0.01  # pixels by which a centre is within a box
BACKGROUND, IGNORED = -1, -2  # instead of the index of a ground-truth box
PAIRS = 2**23  # entries of a quality matrix that are in memory at a time


class AnchorMatcher(Protocol):
    """Match the anchors of one image to its ground-truth boxes, with the levels of the anchors known."""

    def __call__(self, anchors: Sequence[Tensor], boxes_G4: Tensor) -> Tensor:
        """(N,) int64: index of a ground-truth box, BACKGROUND or IGNORED, for the anchors of all levels.

        Args:
            anchors: (n, 4) for each level.
        """
        ...


@dataclass(frozen=True)
class ThresholdMatcher:
    """Match each column of a quality matrix by thresholds.

    Args:
        positive: an anchor with this quality or more is matched to the box for which its quality is highest.
        negative: with less, it is background; between the two it is ignored.
        lowest: if `rescue`, the best anchors of each box are matched to it from this quality on; where an anchor is the
            best of several boxes, it is matched to the last of them.
    """

    positive: float
    negative: float
    lowest: float = 0.0
    rescue: bool = True

    def __call__(self, quality_GN: Tensor) -> Tensor:
        """(N,) int64: index of a box, BACKGROUND or IGNORED."""
        return self.by_blocks([quality_GN], quality_GN.new_empty(quality_GN.shape[1]))

    def by_blocks(self, blocks_GN: Iterable[Tensor], like_N: Tensor) -> Tensor:
        """The same from blocks of rows, so that a large matrix need not be in memory at a time.

        Args:
            like_N: has the length, type and device of a row.
        """
        best_N = torch.full_like(like_N, -inf)
        which_N = torch.zeros_like(like_N, dtype=torch.int64)
        rescued_N = torch.full_like(which_N, -1)
        first = 0
        for quality_GN in blocks_GN:
            if quality_GN.numel():
                value_N, index_N = quality_GN.max(dim=0)
                better_N = value_N > best_N
                best_N = torch.where(better_N, value_N, best_N)
                which_N = torch.where(better_N, index_N + first, which_N)
                if self.rescue:
                    rescued_N = torch.maximum(rescued_N, self._rescued(quality_GN, first))
            first += len(quality_GN)
        matched_N = torch.full_like(which_N, IGNORED)
        matched_N[best_N < self.negative] = BACKGROUND
        matched_N = torch.where(best_N >= self.positive, which_N, matched_N)
        return torch.where(rescued_N >= 0, rescued_N, matched_N)

    def _rescued(self, quality_GN: Tensor, first: int) -> Tensor:
        """(N,): the last box whose best quality is at this anchor, counted from `first`; -1 where there is none."""
        best_G1 = quality_GN.max(dim=1, keepdim=True).values
        is_best_GN = (quality_GN == best_G1) & (best_G1 >= self.lowest)
        index_G1 = torch.arange(first, first + len(quality_GN), device=quality_GN.device)[:, None]
        return torch.where(is_best_GN, index_G1, -1).amax(dim=0)


@dataclass(frozen=True)
class OverlapMatcher:
    """Match anchors of all levels alike, by thresholds on their overlaps with the boxes."""

    rule: ThresholdMatcher

    def __call__(self, anchors: Sequence[Tensor], boxes_G4: Tensor) -> Tensor:
        """As `AnchorMatcher`. Raises ValueError for the anchors of all levels in one tensor."""
        anchors_N4 = _joined(anchors)
        return self.rule.by_blocks(overlaps_by_blocks(anchors_N4, boxes_G4), anchors_N4[:, 0])


@dataclass(frozen=True)
class AdaptiveMatcher:
    """Match each box to those of the nearest anchors that overlap it well, as ATSS does; https://arxiv.org/abs/1912.02424.

    The candidates of a box are the anchors of each level whose centres are nearest to its own. A candidate is matched
    if its centre is within the box and its overlap reaches the mean plus one standard deviation of all candidates'
    overlaps. An anchor that several boxes match goes to the one that it overlaps most, the first of equals. All other
    anchors are background.

    Args:
        candidates: of each level, or all anchors of a level that has fewer.
    """

    candidates: int = 9

    def __post_init__(self) -> None:
        check_counts(candidates=self.candidates)

    def __call__(self, anchors: Sequence[Tensor], boxes_G4: Tensor) -> Tensor:
        """As `AnchorMatcher`. Raises ValueError for the anchors of all levels in one tensor."""
        anchors_N4, per_level = _joined(anchors), [len(level_N4) for level_N4 in anchors]
        at_once = max(1, PAIRS // max(1, len(anchors_N4)))
        matched_N = torch.full_like(anchors_N4[:, 0], BACKGROUND, dtype=torch.int64)
        most_N = torch.full_like(anchors_N4[:, 0], -inf)
        for first in range(0, len(boxes_G4), at_once):
            which_N, overlap_N = self._match(anchors_N4, per_level, boxes_G4[first : first + at_once])
            better_N = overlap_N > most_N
            most_N = torch.where(better_N, overlap_N, most_N)
            matched_N = torch.where(better_N, which_N + first, matched_N)
        return matched_N

    def _match(self, anchors_N4: Tensor, per_level: Sequence[int], boxes_G4: Tensor) -> tuple[Tensor, Tensor]:
        """Return the box that each anchor is matched to, and their overlap, which is -inf where there is none."""
        centers_N2, centers_G2 = box_centers(anchors_N4), box_centers(boxes_G4)
        apart_GN = (centers_G2[:, None] - centers_N2).square_().sum(dim=-1).sqrt_()  # the root decides which are equal
        column_GK = best_of_each_level(apart_GN.neg_(), per_level, self.candidates)
        both_GK, union_GK = overlaps(boxes_G4[:, None], anchors_N4[column_GK])
        overlap_GK = both_GK / union_GK
        enough_G = overlap_GK.mean(dim=1) + overlap_GK.std(dim=1, correction=min(1, overlap_GK.shape[1] - 1))
        center_GK2 = centers_N2[column_GK]
        margin_GK4 = torch.cat([center_GK2 - boxes_G4[:, None, :2], boxes_G4[:, None, 2:] - center_GK2], dim=-1)
        is_matched_GK = (overlap_GK >= enough_G[:, None]) & (margin_GK4.amin(dim=-1) > LEAST_MARGIN)
        g, k = is_matched_GK.nonzero(as_tuple=True)
        n, overlap_P = column_GK[g, k], overlap_GK[g, k]
        most_N = torch.full_like(anchors_N4[:, 0], -inf).scatter_reduce(0, n, overlap_P, "amax")
        is_most_P = overlap_P == most_N[n]
        which_N = torch.full_like(most_N, len(boxes_G4), dtype=torch.int64)
        return which_N.scatter_reduce(0, n[is_most_P], g[is_most_P], "amin"), most_N


def _joined(anchors: Sequence[Tensor]) -> Tensor:
    """Return (N, 4), the anchors of all levels. Raises ValueError for one tensor: levels matter to some matchers."""
    if isinstance(anchors, Tensor):
        raise ValueError(
            f"a matcher takes a list with the anchors of each level; got one tensor of shape "
            f"{tuple(anchors.shape)}; give [anchors]"
        )
    return torch.cat([*anchors])


def overlaps_by_blocks(anchors_N4: Tensor, boxes_G4: Tensor) -> Iterator[Tensor]:
    """Blocks of rows of the (G, N) intersections over union, as many rows at a time as PAIRS allows."""
    at_once = max(1, PAIRS // max(1, len(anchors_N4)))
    for first in range(0, len(boxes_G4), at_once):
        yield box_iou(boxes_G4[first : first + at_once], anchors_N4)


def best_of_each_level(quality_GN: Tensor, per_level: Sequence[int], count: int) -> Tensor:
    """(G, K) columns: for each box the `count` best anchors of each level, or all where a level has fewer.

    Of equal anchors, such as those on both sides of a box's centre, `topk` chooses, as in the published matching.

    Args:
        per_level: how many of the N columns belong to each level, in their order.
    """
    levels = zip(quality_GN.split([*per_level], dim=1), _starts(per_level), strict=True)
    columns = [x_GN.topk(min(count, x_GN.shape[1]), dim=1).indices + start for x_GN, start in levels]
    return torch.cat(columns, dim=1)


def _starts(lengths: Sequence[int]) -> list[int]:
    return [sum(lengths[:i]) for i in range(len(lengths))]


@dataclass(frozen=True)
class Sampler:
    """Draw `count` of the matched anchors at random, of these at most a share of positives."""

    count: int
    positive_share: float

    def __call__(self, matched_N: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Indices of positives and of background, each ascending.

        Args:
            matched_N: what a matcher returned.
        """
        positive_P = (matched_N >= 0).nonzero().squeeze(1)
        positive_P = choose(positive_P, int(self.count * self.positive_share), rng)
        negative_M = (matched_N == BACKGROUND).nonzero().squeeze(1)
        return positive_P, choose(negative_M, self.count - len(positive_P), rng)


def choose(of_N: Tensor, count: int, rng: np.random.Generator) -> Tensor:
    """`count` of the entries, in their order; all of them where there are no more."""
    if len(of_N) <= count:
        return of_N
    places = np.sort(rng.choice(len(of_N), count, replace=False, shuffle=False))
    return of_N[torch.from_numpy(places).to(of_N.device)]


class Draws:
    """Random streams that depend on a seed, an image and a purpose, and on nothing that was drawn before.

    Args:
        seed: of this pass over a batch; None takes it from torch's generator on the CPU, which training seeds at every
            step.
    """

    def __init__(self, seed: int | None = None) -> None:
        self.seed = int(torch.randint(2**62, (), device="cpu")) if seed is None else seed

    def stream(self, image_id: str, purpose: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, zlib.crc32(image_id.encode()), purpose))
