"""Semantic FPN: the maps of a feature pyramid, each brought to the finest one's size and added. B images, C channels.

Source: https://arxiv.org/abs/1901.02446, in the form of MMSegmentation 1.2 (FPN, FPNHead).
"""

from collections.abc import Sequence
from math import log2

import torch.nn.functional as F
from torch import Tensor, nn

from fourstage.backbones.layers import Level
from fourstage.tasks.parts.conv import ConvNormAct
from fourstage.tasks.parts.fpn import FPN
from fourstage.tasks.segmentation.losses import resized
from fourstage.tasks.segmentation.segmentor import Segmentor, classifier


def semantic_fpn(
    backbone: nn.Module,
    num_classes: int,
    *,
    neck_channels: int = 256,
    channels: int = 128,
    dropout: float = 0.1,
) -> Segmentor:
    """A backbone with a feature pyramid and Semantic FPN's decoder.

    Args:
        backbone: a module with `levels`, finest first, that returns its maps.
        num_classes: classes to tell apart.
        neck_channels: width of the feature pyramid.
        channels: width of the decoder.
        dropout: share of the channels that are dropped before the last layer.
    """
    levels: tuple[Level, ...] = tuple(getattr(backbone, "levels"))  # noqa: B009 - nn.Module's own attributes are typed
    neck = FPN(levels, neck_channels, num_outs=len(levels))
    decoder = FPNDecoder(neck.levels, num_classes, channels=channels, dropout=dropout)
    return Segmentor(backbone, decoder, num_classes, neck=neck)


class FPNDecoder(nn.Module):
    """Maps, finest first, to logits on the finest one's cells."""

    def __init__(self, levels: Sequence[Level], num_classes: int, *, channels: int = 128, dropout: float = 0.1) -> None:
        super().__init__()
        finest = levels[0].stride
        self.scales = nn.ModuleList(
            _Scale(level.channels, channels, round(log2(level.stride / finest))) for level in levels
        )
        self.dropout = nn.Dropout2d(dropout)
        self.classify = classifier(channels, num_classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """One (B, C_i, H_i, W_i) per level, finest first, to (B, num_classes, H_0, W_0)."""
        parts = zip(self.scales, maps, strict=True)
        scale, x_BCHW = next(parts)
        total_BCHW = scale(x_BCHW)
        for scale, x_BCHW in parts:
            total_BCHW = total_BCHW + resized(scale(x_BCHW), total_BCHW.shape[2:])
        return self.classify(self.dropout(total_BCHW))


class _Scale(nn.Module):
    """Convolutions that take one map up, each but on the finest map followed by a doubling of its sides."""

    def __init__(self, in_channels: int, channels: int, doublings: int) -> None:
        super().__init__()
        self.doubles = doublings > 0
        widths = [in_channels, *[channels] * (max(1, doublings) - 1)]
        self.convs = nn.ModuleList(
            ConvNormAct(width, channels, 3, norm=nn.BatchNorm2d, act=nn.ReLU(inplace=True)) for width in widths
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        for conv in self.convs:
            x_BCHW = conv(x_BCHW)
            if self.doubles:
                height, width = x_BCHW.shape[2:]
                x_BCHW = F.interpolate(x_BCHW, size=(2 * height, 2 * width), mode="bilinear", align_corners=False)
        return x_BCHW
