"""Contrastive denoising, https://arxiv.org/abs/2203.03605: objects with noise among the queries of a training step.

In each group every object appears twice: with a little noise, to be found again, and with more, to be rejected.

B images, G objects of all images, R repetitions, twice as many as groups, M the most objects of an image, D = R * M
queries, C channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fourstage.tasks.detection.boxes import center_form
from fourstage.tasks.detection.detector import GroundTruth
from fourstage.tasks.detection.matching import Draws, choose
from fourstage.tasks.detection.set_criterion import MatchedPairs
from fourstage.tasks.detection.sine import inverse_sigmoid

LABEL, SIGN, SIZE, CHOICE, NEW = 101, 102, 103, 104, 105  # purposes of draws
EPS = 1e-3  # of the logits of boxes with noise


@dataclass(frozen=True)
class Noise:
    """Random numbers for each repetition of each object."""

    label_RG: Tensor  # from 0 to 1
    new_label_RG: Tensor  # int64, taken where `label_RG` is below the rate of wrong labels
    sign_RG4: Tensor  # -1 or 1
    size_RG4: Tensor  # from 0 to 1


@dataclass(frozen=True)
class Denoising:
    """Queries with noise and the objects that they should find."""

    labels_BD: Tensor  # int64; -1 where an image has fewer objects than others
    boxes_BD4: Tensor  # centre, width and height from 0 to 1; 0.5 where an image has fewer objects than others
    pairs: MatchedPairs  # of the queries with little noise
    groups: int

    @property
    def count(self) -> int:
        return self.labels_BD.shape[1]


def cap_objects(truths: Sequence[GroundTruth], ids: Sequence[str], most: int, draws: Draws) -> list[GroundTruth]:
    """Return the objects from which denoising learns: of an image with more than `most`, as many at random."""
    return [_some_of(truth, most, draws.stream(id, CHOICE)) for truth, id in zip(truths, ids, strict=True)]


def _some_of(truth: GroundTruth, most: int, rng: np.random.Generator) -> GroundTruth:
    if len(truth.labels_G) <= most:
        return truth
    kept = choose(torch.arange(len(truth.labels_G), device=truth.labels_G.device), most, rng)
    return GroundTruth(truth.boxes_G4[kept], truth.labels_G[kept], None)


def draw_noise(
    truths: Sequence[GroundTruth], ids: Sequence[str], repetitions: int, classes: int, draws: Draws
) -> Noise:
    """Draw noise for each image by its id, so that it does not depend on the others in the batch."""
    drawn: list[list[np.ndarray]] = [[], [], [], []]
    for truth, id in zip(truths, ids, strict=True):
        shape = (repetitions, len(truth.labels_G))
        drawn[0].append(draws.stream(id, LABEL).random(shape, dtype=np.float32))
        drawn[1].append(draws.stream(id, NEW).integers(classes, size=shape))
        drawn[2].append(draws.stream(id, SIGN).integers(2, size=(*shape, 4)).astype(np.float32) * 2 - 1)
        drawn[3].append(draws.stream(id, SIZE).random((*shape, 4), dtype=np.float32))
    device = truths[0].boxes_G4.device
    return Noise(*(torch.from_numpy(np.concatenate(rows, axis=1)).to(device) for rows in drawn))


def add_noise(truths: Sequence[GroundTruth], noise: Noise, *, label_rate: float, box_scale: float) -> Denoising:
    """Return the queries of all images.

    Args:
        truths: boxes as shares of the image.
        noise: in repetitions that are large and small in turn: an even one gets the noise, an odd one more.
        label_rate: share of the labels that are replaced by any.
        box_scale: largest shift of a corner, in halves of a side; an odd repetition gets between once and twice that.
    """
    counts = [len(truth.labels_G) for truth in truths]
    most, repetitions = max(counts), len(noise.label_RG)
    labels_G, boxes_G4 = torch.cat([t.labels_G for t in truths]), torch.cat([t.boxes_G4 for t in truths])
    labels_RG = torch.where(noise.label_RG < label_rate, noise.new_label_RG, labels_G)
    odd_R11 = (torch.arange(repetitions, device=labels_G.device) % 2)[:, None, None]
    side_G4 = (boxes_G4[:, 2:] - boxes_G4[:, :2]).repeat(1, 2)
    corners_RG4 = boxes_G4 + (noise.size_RG4 + odd_R11) * noise.sign_RG4 * side_G4 * (box_scale / 2)
    centers_RG4 = center_form(corners_RG4.clamp(0, 1))
    image_G = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).to(labels_G.device)
    rank_G = torch.cat([torch.arange(count) for count in counts]).to(labels_G.device)
    place_RG = torch.arange(repetitions, device=labels_G.device)[:, None] * most + rank_G
    image_RG = image_G.expand_as(place_RG)
    labels_BD = labels_G.new_full((len(truths), repetitions * most), -1)
    boxes_BD4 = boxes_G4.new_full((len(truths), repetitions * most, 4), 0.5)
    labels_BD[image_RG, place_RG] = labels_RG
    boxes_BD4[image_RG, place_RG] = inverse_sigmoid(centers_RG4, EPS).sigmoid()
    even = slice(0, None, 2)
    repeated = len(range(repetitions)[even])
    pairs = MatchedPairs(
        image_RG[even].flatten(), place_RG[even].flatten(), labels_G.repeat(repeated), boxes_G4.repeat(repeated, 1)
    )
    return Denoising(labels_BD, boxes_BD4, pairs, repetitions // 2)


def may_see(denoising: Denoising, queries: int) -> Tensor:
    """Return (D + Q, D + Q) bool: whether the query of a row may see that of a column.

    Queries with noise come first. They see those of their own group and all others; these do not see any with noise.
    """
    group_D = torch.arange(denoising.count, device=denoising.labels_BD.device) // (denoising.count // denoising.groups)
    group_T = torch.cat([group_D, group_D.new_full((queries,), -1)])
    return (group_T[:, None] == group_T) | (group_T == -1)
