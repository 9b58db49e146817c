"""Which true box each anchor or proposal answers for, and which of them train. N anchors, G true boxes."""

import zlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fourstage.tasks.detection.boxes import box_iou

BACKGROUND, IGNORED = -1, -2  # instead of the index of a true box
PAIRS = 2**23  # overlaps that are in memory at a time


@dataclass(frozen=True)
class IoUMatcher:
    """Match by intersection over union.

    Args:
        positive: an anchor with this overlap or more answers for the box that it overlaps most.
        negative: with less, it is background; between the two it is ignored.
        lowest: the best anchors of each box match it from this overlap on, if `rescue`; where several boxes claim an
            anchor, the last of them gets it.
    """

    positive: float
    negative: float
    lowest: float = 0.0
    rescue: bool = True

    def __call__(self, anchors_N4: Tensor, boxes_G4: Tensor) -> Tensor:
        """(N,) int64: index of a true box, BACKGROUND or IGNORED."""
        n, device = len(anchors_N4), anchors_N4.device
        best_N = torch.full((n,), -1.0, device=device, dtype=anchors_N4.dtype)
        which_N = torch.zeros(n, dtype=torch.int64, device=device)
        rescued_N = torch.full((n,), -1, dtype=torch.int64, device=device)
        if n and len(boxes_G4):
            at_once = max(1, PAIRS // n)
            for first in range(0, len(boxes_G4), at_once):
                iou_GN = box_iou(boxes_G4[first : first + at_once], anchors_N4)
                value_N, index_N = iou_GN.max(dim=0)
                better_N = value_N > best_N
                best_N = torch.where(better_N, value_N, best_N)
                which_N = torch.where(better_N, index_N + first, which_N)
                if self.rescue:
                    rescued_N = torch.maximum(rescued_N, self._rescued(iou_GN, first))
        matched_N = torch.full_like(which_N, IGNORED)
        matched_N[best_N < self.negative] = BACKGROUND
        matched_N = torch.where(best_N >= self.positive, which_N, matched_N)
        return torch.where(rescued_N >= 0, rescued_N, matched_N)

    def _rescued(self, iou_GN: Tensor, first: int) -> Tensor:
        """(N,): the last box whose best overlap is at this anchor, counted from `first`; -1 where there is none."""
        best_G1 = iou_GN.max(dim=1, keepdim=True).values
        claims_GN = (iou_GN == best_G1) & (best_G1 >= self.lowest)
        index_G1 = torch.arange(first, first + len(iou_GN), device=iou_GN.device)[:, None]
        return torch.where(claims_GN, index_G1, -1).amax(dim=0)


@dataclass(frozen=True)
class Sampler:
    """Draw at random so many of the matched, of these at most a share of positives."""

    count: int
    positive_share: float

    def __call__(self, matched_N: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Indices of positives and of background, each ascending.

        Args:
            matched_N: what an `IoUMatcher` gave.
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
        seed: of this pass over a batch; None takes it from torch's generator on the CPU, which training sets anew for
            every step.
    """

    def __init__(self, seed: int | None = None) -> None:
        self.seed = int(torch.randint(2**62, (), device="cpu")) if seed is None else seed

    def stream(self, image_id: str, purpose: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, zlib.crc32(image_id.encode()), purpose))
