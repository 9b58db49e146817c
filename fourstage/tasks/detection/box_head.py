"""The box head of two-stage detectors: class and exact box of a region. R regions, C classes, P positives.

Inside this file the background is one more class, the last one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourstage.tasks.detection.boxes import BoxCoder, as_float32, grouped_nms
from fourstage.tasks.detection.detector import Detections, GroundTruth, Mean, count_tensor
from fourstage.tasks.detection.losses import divide, giou_sum, smooth_l1_sum
from fourstage.tasks.detection.matching import AnchorMatcher, Sampler
from fourstage.tasks.detection.rois import to_rois
from fourstage.tasks.parts.conv import ConvNormAct
from fourstage.tasks.parts.settings import check_counts

SPREAD = 3.0  # standard deviation of logits for which some regions score high for some class


@dataclass(frozen=True)
class Samples:
    """The training regions of one image, positives first."""

    boxes_R4: Tensor
    matched_P: Tensor  # the ground-truth box that each positive is matched to
    is_ground_truth_P: Tensor  # bool: the positive is a ground-truth box that was added to the proposals
    labels_R: Tensor  # int64; C is background

    @property
    def positives(self) -> Tensor:
        """(P, 4) their boxes."""
        return self.boxes_R4[: len(self.matched_P)]


def sample_regions(
    proposals_N4: Tensor,
    truth: GroundTruth,
    matcher: AnchorMatcher,
    sampler: Sampler,
    rng: np.random.Generator,
    background: int,
) -> Samples:
    """Choose among the proposals and the ground-truth boxes, which are added to them."""
    count = len(truth.boxes_G4)
    own_G = torch.arange(count, device=proposals_N4.device)
    matched_N = torch.cat([own_G, matcher([proposals_N4], truth.boxes_G4)])
    boxes_N4 = torch.cat([truth.boxes_G4, proposals_N4])
    positive_P, negative_M = sampler(matched_N, rng)
    matched_P = matched_N[positive_P]
    labels_R = torch.cat([truth.labels_G[matched_P], torch.full_like(negative_M, background)])
    return Samples(boxes_N4[torch.cat([positive_P, negative_M])], matched_P, positive_P < count, labels_R)


@dataclass(frozen=True)
class BoxLoss:
    """The loss of the boxes of positives."""

    form: Literal["l1", "smooth_l1", "giou"] = "l1"  # giou compares the boxes themselves, the others their deltas
    weight: float = 1.0
    beta: float = 1.0  # of smooth_l1


L1 = BoxLoss()


class BoxHead(nn.Module):
    """Class logits and box deltas of regions, by convolutions and linear layers that both share.

    Args:
        in_channels: of the regions.
        size: cells a side of the regions.
        convs: 3x3 convolutions of `conv_channels`, each with `norm` and ReLU.
        fcs: linear layers of `channels`, each with ReLU.
        class_agnostic: one box a region instead of one for each class.
        stds: of the deltas.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        size: int = 7,
        convs: int = 0,
        conv_channels: int = 256,
        norm: Callable[[int], nn.Module] | None = None,
        fcs: int = 2,
        channels: int = 1024,
        class_agnostic: bool = False,
        stds: tuple[float, float, float, float] = (0.1, 0.1, 0.2, 0.2),
        loss: BoxLoss = L1,
    ) -> None:
        super().__init__()
        self.num_classes, self.coder, self.loss = num_classes, BoxCoder(stds), loss
        widths = [in_channels, *[conv_channels] * convs]
        self.convs = nn.Sequential(*(ConvNormAct(a, b, 3, norm=norm, act=nn.ReLU()) for a, b in pairwise(widths)))
        widths = [widths[-1] * size**2, *[channels] * fcs]
        self.fcs = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.classify = nn.Linear(widths[-1], num_classes + 1)
        self.regress = nn.Linear(widths[-1], 4 if class_agnostic else 4 * num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Shared linear layers: Xavier's uniform; classes: normal, std 0.01; boxes: 0.001; biases: 0."""
        for linear in self.fcs:
            assert isinstance(linear, nn.Linear)
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        for linear, std in ((self.classify, 0.01), (self.regress, 0.001)):
            nn.init.normal_(linear.weight, std=std)
            nn.init.zeros_(linear.bias)

    def forward(self, x_RCMM: Tensor) -> tuple[Tensor, Tensor]:
        """Return (R, C + 1) logits and (R, C or 1, 4) deltas, float32 or better."""
        x_RC = self.convs(x_RCMM).flatten(1)
        for linear in self.fcs:
            x_RC = F.relu(linear(x_RC))
        return as_float32(self.classify(x_RC)), as_float32(self.regress(x_RC)).unflatten(1, (-1, 4))

    def losses(
        self,
        logits_RC: Tensor,
        deltas_RK4: Tensor,
        samples: Sequence[Samples],
        truths: Sequence[GroundTruth],
        mean: Mean,
    ) -> dict[str, Tensor]:
        """Return `loss_cls`, cross-entropy, and `loss_bbox`, both divided by the number of regions."""
        labels_R = torch.cat([s.labels_R for s in samples])
        count = mean(count_tensor(max(len(labels_R), 1), logits_RC))
        class_sum = F.cross_entropy(logits_RC, labels_R, reduction="sum")
        positive_P = (labels_R < self.num_classes).nonzero().squeeze(1)
        if len(positive_P) == 0:
            return {"loss_cls": divide(class_sum, count), "loss_bbox": deltas_RK4[positive_P].sum()}
        deltas_P4 = _of_class(deltas_RK4[positive_P], labels_R[positive_P])
        anchors_P4 = torch.cat([s.positives for s in samples])
        wanted_P4 = torch.cat([t.boxes_G4[s.matched_P] for s, t in zip(samples, truths, strict=True)])
        if self.loss.form == "giou":
            box_sum = giou_sum(self.coder.decode(anchors_P4, deltas_P4), wanted_P4)
        else:
            beta = self.loss.beta if self.loss.form == "smooth_l1" else 0.0
            box_sum = smooth_l1_sum(deltas_P4, self.coder.encode(anchors_P4, wanted_P4), beta)
        return {"loss_cls": divide(class_sum, count), "loss_bbox": divide(box_sum, count) * self.loss.weight}

    def refine(self, boxes_R4: Tensor, deltas_RK4: Tensor, labels_R: Tensor, size: tuple[int, int] | Tensor) -> Tensor:
        """Return (R, 4) boxes moved by the deltas of their class, clipped to `size` (H, W)."""
        return self.coder.decode(boxes_R4, _of_class(deltas_RK4, labels_R), size)

    @torch.no_grad()
    def spread_scores(self, regions_RCMM: Tensor) -> None:
        """Change the class layer such that the logits of each class are around 0 over these regions, SPREAD wide."""
        logits_RC, _ = self(regions_RCMM)
        if not len(logits_RC):
            return
        mean_C = logits_RC.mean(dim=0)
        factor = SPREAD / (logits_RC - mean_C).square().mean().sqrt().clamp(min=1e-12)
        self.classify.weight *= factor
        self.classify.bias.copy_((self.classify.bias - mean_C) * factor)


def _of_class(deltas_RK4: Tensor, labels_R: Tensor) -> Tensor:
    """Return (R, 4) deltas: those of one class each, or those that all classes share."""
    if deltas_RK4.shape[1] == 1:
        return deltas_RK4[:, 0]
    return deltas_RK4.gather(1, labels_R[:, None, None].expand(-1, 1, 4))[:, 0]


@dataclass(frozen=True)
class DetectionLimits:
    """Which pairs of a region and a class become detections.

    Args:
        score_threshold: score that every detection exceeds.
        iou_threshold: overlap above which non-maximum suppression drops the box that scores less.
        per_image: largest number of detections in an image.
        mask_threshold: probability from which on a pixel belongs to the object.
    """

    score_threshold: float = 0.05
    iou_threshold: float = 0.5
    per_image: int = 100
    mask_threshold: float = 0.5

    def __post_init__(self) -> None:
        check_counts(per_image=self.per_image)


DEFAULT_LIMITS = DetectionLimits()


def select(
    boxes_R4: Tensor,
    logits_RC: Tensor,
    deltas_RK4: Tensor,
    coder: BoxCoder,
    size: tuple[int, int],
    how: DetectionLimits,
    place: Callable[[Tensor], Tensor],
) -> Detections:
    """Return the detections in one image of `size` (H, W).

    Args:
        place: moves the boxes of the candidates to where suppression happens, such as into the original image.
    """
    scores_RC = logits_RC.softmax(dim=1)[:, :-1]
    r, label = (scores_RC > how.score_threshold).nonzero(as_tuple=True)
    deltas_N4 = deltas_RK4[r, label if deltas_RK4.shape[1] > 1 else 0]
    boxes_N4 = place(coder.decode(boxes_R4[r], deltas_N4, size))
    scores_N = scores_RC[r, label]
    kept = grouped_nms(boxes_N4, scores_N, label, how.iou_threshold)[: how.per_image]
    return Detections(boxes_N4[kept], label[kept], scores_N[kept])


def regions_of(samples: Sequence[Samples]) -> Tensor:
    """Return the (R, 5) regions of all images."""
    return to_rois([s.boxes_R4 for s in samples])
