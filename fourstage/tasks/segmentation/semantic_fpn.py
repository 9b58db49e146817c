"""Semantic FPN: the maps of a feature pyramid, each resized to the first one's size and added. B images, C channels.

Source: https://arxiv.org/abs/1901.02446, in the form of MMSegmentation 1.2 (FPN, FPNHead).
"""

from collections.abc import Sequence
from math import log2

import torch.nn.functional as F
from torch import Tensor, nn

from fourstage.backbones.layers import Level
from fourstage.ops.eager import may_bypass
from fourstage.ops.pointwise import convolve
from fourstage.ops.pyramid import convs_of_sum
from fourstage.ops.resize import resize
from fourstage.tasks.parts.conv import ConvNormAct
from fourstage.tasks.parts.fpn import FPN
from fourstage.tasks.parts.levels import levels_of
from fourstage.tasks.parts.settings import check_counts
from fourstage.tasks.segmentation.segmentor import Segmentor, classifier, map_numbers


def semantic_fpn(
    backbone: nn.Module,
    num_classes: int,
    *,
    neck_channels: int = 256,
    channels: int = 128,
    dropout: float = 0.1,
    prior: Sequence[float] | None = None,
    maps: Sequence[int] | None = None,
    num_outs: int | None = None,
    align_corners: bool = False,
) -> Segmentor:
    """A backbone with a feature pyramid and Semantic FPN's decoder.

    Args:
        backbone: a module with `levels`, in descending resolution, that returns one feature map for each.
        num_classes: number of classes.
        neck_channels: width of the feature pyramid.
        channels: width of the decoder.
        dropout: share of the channels that are dropped before the last layer.
        prior: see `classifier`.
        maps: numbers, from 0, of the backbone's maps that are read, ascending; None: all.
        num_outs: number of maps of the pyramid; those beyond the ones that are read are pooled from the last. None: as
            many as are read.
        align_corners: whether the corners of maps and logits stay in place when they are resized; as published, no.

    Raises:
        ValueError: maps that the backbone lacks, counts below 1.
    """
    check_counts(neck_channels=neck_channels, channels=channels, num_outs=num_outs)
    levels = levels_of(backbone)
    reads = map_numbers(levels, maps)
    neck = FPN([levels[i] for i in reads], neck_channels, num_outs=len(reads) if num_outs is None else num_outs)
    decoder = FPNDecoder(
        neck.levels, num_classes, channels=channels, dropout=dropout, prior=prior, align_corners=align_corners
    )
    return SemanticFPN(
        backbone, decoder, num_classes, neck=neck, align_corners=align_corners, reads=reads, method="semantic_fpn"
    )


class SemanticFPN(Segmentor):
    """Computes the neck's last convolution and the decoder's first as one operation; see `ops/pyramid.py`."""

    def _decode(self, maps: Sequence[Tensor]) -> Tensor:
        used, neck, decoder = [maps[i] for i in self.reads], self.neck, self.decoder
        if type(neck) is not FPN or type(decoder) is not FPNDecoder or len(used) == 1:
            return super()._decode(maps)
        scale, layer = decoder.first()
        if type(layer) is not ConvNormAct or not may_bypass(neck, decoder, scale, layer):
            return super()._decode(maps)
        sum_BDhw, outs = neck.coarser(used)
        x_BCHW = convs_of_sum(neck.laterals[0], neck.outputs[0], layer.conv, used[0], sum_BDhw)
        return decoder.classified(layer.act(layer.norm(x_BCHW)), outs)


class FPNDecoder(nn.Module):
    """Feature maps in descending resolution to logits on the cells of the first."""

    def __init__(
        self,
        levels: Sequence[Level],
        num_classes: int,
        *,
        channels: int = 128,
        dropout: float = 0.1,
        prior: Sequence[float] | None = None,
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.scales = nn.ModuleList(
            _Scale(level.channels, channels, level.stride / levels[0].stride, align_corners) for level in levels
        )
        self.dropout = nn.Dropout2d(dropout)
        self.classify = classifier(channels, num_classes, prior)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """One (B, C_i, H_i, W_i) per level to (B, num_classes, H_0, W_0)."""
        first_BCHW, *coarser = maps
        return self.classified(self.scales[0](first_BCHW), coarser)

    def first(self) -> tuple[nn.Module, nn.Module]:
        """Return the scale of the first map and its only layer, or twice the scale where somebody changed it."""
        scale = self.scales[0]
        return scale, scale.convs[0] if type(scale) is _Scale and len(scale.convs) == 1 else scale

    def classified(self, total_BCHW: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """Return logits.

        Args:
            total_BCHW: the first map after its scale.
            maps: the coarser ones as they came in.
        """
        for scale, x_BCHW in zip(list(self.scales)[1:], maps, strict=True):
            total_BCHW = total_BCHW + resize(scale(x_BCHW), total_BCHW.shape[2:], self.align_corners)
        return convolve(self.classify, self.dropout(total_BCHW))


class _Scale(nn.Module):
    """Convolutions of one map. All but those of the first map are each followed by a doubling of its sides."""

    def __init__(self, in_channels: int, channels: int, coarser: float, align_corners: bool) -> None:
        super().__init__()
        self.doubles, self.align_corners = coarser != 1, align_corners
        widths = [in_channels, *[channels] * (max(1, int(log2(coarser))) - 1)]
        self.convs = nn.ModuleList(
            ConvNormAct(width, channels, 3, norm=nn.BatchNorm2d, act=nn.ReLU(inplace=True)) for width in widths
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        for conv in self.convs:
            x_BCHW = conv(x_BCHW)
            if self.doubles:
                height, width = x_BCHW.shape[2:]
                x_BCHW = F.interpolate(
                    x_BCHW, size=(2 * height, 2 * width), mode="bilinear", align_corners=self.align_corners
                )
        return x_BCHW
