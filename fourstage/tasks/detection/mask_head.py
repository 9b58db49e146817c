"""A mask for each region and class. R regions, P positives, C classes, M x M cells of a mask."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourstage.ops.conv_of_class import conv_of_class
from fourstage.tasks.detection.box_head import Samples
from fourstage.tasks.detection.boxes import as_float32
from fourstage.tasks.detection.detector import GroundTruth
from fourstage.tasks.detection.masks import crop_masks
from fourstage.tasks.parts.conv import ConvNormAct


class MaskHead(nn.Module):
    """Convolutions, one of them to twice the size, and a logit for each class and cell.

    Args:
        in_channels: of the regions.
        convs: 3x3 convolutions of `channels`, each with ReLU.
    """

    def __init__(self, in_channels: int, num_classes: int, *, convs: int = 4, channels: int = 256) -> None:
        super().__init__()
        widths = [in_channels, *[channels] * convs]
        self.convs = nn.Sequential(*(ConvNormAct(a, b, 3, act=nn.ReLU()) for a, b in pairwise(widths)))
        self.upsample = nn.ConvTranspose2d(widths[-1], channels, 2, stride=2)
        self.logits = nn.Conv2d(channels, num_classes, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The last two layers: Kaiming's normal from the outputs' side; biases: 0."""
        for layer in (self.upsample, self.logits):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, x_RCMM: Tensor) -> Tensor:
        """Return the (R, C, 2M, 2M) logits of every class, float32 or better."""
        return as_float32(self.logits(self._features(x_RCMM)))

    def of_class(self, x_RCMM: Tensor, labels_R: Tensor) -> Tensor:
        """Return (R, 2M, 2M) logits of one class for each region; no others are computed. Float32 or better."""
        return as_float32(conv_of_class(self.logits, self._features(x_RCMM), labels_R))

    def _features(self, x_RCMM: Tensor) -> Tensor:
        return F.relu(self.upsample(self.convs(x_RCMM)))

    def loss(self, x_PCMM: Tensor, samples: Sequence[Samples], truths: Sequence[GroundTruth]) -> Tensor:
        """Return the binary cross-entropy of the masks of the ground-truth classes, a mean over cells; 0 without.

        Regions of an object without a mask are left out.
        """
        if any(t.masked_G is not None for t in truths):
            kept = [_masked(s, t) for s, t in zip(samples, truths, strict=True)]
            x_PCMM = x_PCMM[torch.cat(kept)]
            samples = [_with_positives(s, keep_P) for s, keep_P in zip(samples, kept, strict=True)]
        labels_P = torch.cat([s.labels_R[: len(s.matched_P)] for s in samples])
        chosen_PMM = self.of_class(x_PCMM, labels_P)
        if len(chosen_PMM) == 0:
            return chosen_PMM.sum()
        wanted = []
        for s, t in zip(samples, truths, strict=True):
            if len(s.matched_P):
                assert t.masks_GHW is not None
                wanted.append(crop_masks(t.masks_GHW, s.positives, s.matched_P, chosen_PMM.shape[-1]))
        return F.binary_cross_entropy_with_logits(chosen_PMM, torch.cat(wanted).to(chosen_PMM))


def _masked(samples: Samples, truth: GroundTruth) -> Tensor:
    """(P,) bool: whether the object of each positive region has a mask."""
    if truth.masked_G is None:
        return torch.ones_like(samples.matched_P, dtype=torch.bool)
    return truth.masked_G[samples.matched_P]


def _with_positives(samples: Samples, keep_P: Tensor) -> Samples:
    """Return some of the positive regions, and no others."""
    labels_P = samples.labels_R[: len(samples.matched_P)]
    return Samples(
        boxes_R4=samples.positives[keep_P],
        matched_P=samples.matched_P[keep_P],
        is_ground_truth_P=samples.is_ground_truth_P[keep_P],
        labels_R=labels_P[keep_P],
    )
