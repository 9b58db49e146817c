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

from fourstage.tasks.detection.boxes import box_iou

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
        if isinstance(anchors, Tensor):
            raise ValueError(
                f"a matcher takes a list with the anchors of each level, and one tensor of shape "
                f"{tuple(anchors.shape)} came; give [anchors]"
            )
        anchors_N4 = torch.cat([*anchors])
        return self.rule.by_blocks(overlaps_by_blocks(anchors_N4, boxes_G4), anchors_N4[:, 0])


def overlaps_by_blocks(anchors_N4: Tensor, boxes_G4: Tensor) -> Iterator[Tensor]:
    """Blocks of rows of the (G, N) intersections over union, as many rows at a time as PAIRS allows."""
    at_once = max(1, PAIRS // max(1, len(anchors_N4)))
    for first in range(0, len(boxes_G4), at_once):
        yield box_iou(boxes_G4[first : first + at_once], anchors_N4)


def best_of_each_level(quality_GN: Tensor, per_level: Sequence[int], count: int) -> Tensor:
    """(G, K) columns: for each box the `count` best anchors of each level, or all where a level has fewer.

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
