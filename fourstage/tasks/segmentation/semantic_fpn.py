"""Semantic FPN: the maps of a feature pyramid, each brought to the finest one's size and added. B images, C channels.

Source: https://arxiv.org/abs/1901.02446, in the form of MMSegmentation 1.2 (FPN, FPNHead).
"""

from collections.abc import Sequence
from math import log2

import torch.nn.functional as F
from torch import Tensor, nn

from fourstage.backbones.layers import Level
from fourstage.ops.eager import plain_convs, unwatched
from fourstage.tasks.parts.conv import ConvNormAct
from fourstage.tasks.parts.fpn import FPN, doubles
from fourstage.tasks.parts.levels import levels_of
from fourstage.tasks.parts.settings import check_counts
from fourstage.tasks.segmentation.finest import conv_of_finest, is_shorter
from fourstage.tasks.segmentation.losses import resized
from fourstage.tasks.segmentation.segmentor import Segmentor, chosen, classifier


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
        backbone: a module with `levels`, finest first, that returns its maps.
        num_classes: classes to tell apart.
        neck_channels: width of the feature pyramid.
        channels: width of the decoder.
        dropout: share of the channels that are dropped before the last layer.
        prior: about the share of pixels of each class, where the last layers begin; see `classifier`.
        maps: numbers of the backbone's maps that are read, finest first; None: all.
        num_outs: maps of the pyramid; those beyond the ones that are read are pooled from the coarsest. None: no more.
        align_corners: how the decoder's maps and logits are resized; as published, corners are not aligned.

    Raises:
        ValueError: maps that the backbone has not, counts below 1.
    """
    check_counts(neck_channels=neck_channels, channels=channels, num_outs=num_outs)
    levels = levels_of(backbone)
    reads = chosen(levels, maps)
    neck = FPN([levels[i] for i in reads], neck_channels, num_outs=len(reads) if num_outs is None else num_outs)
    decoder = FPNDecoder(
        neck.levels, num_classes, channels=channels, dropout=dropout, prior=prior, align_corners=align_corners
    )
    return SemanticFPN(
        backbone, decoder, num_classes, neck=neck, align_corners=align_corners, reads=reads, method="semantic_fpn"
    )


class SemanticFPN(Segmentor):
    """On a CPU, the last convolution of the neck and the decoder's first are one where that has fewer products."""

    def _decoded(self, maps: Sequence[Tensor]) -> Tensor:
        used, neck, decoder = [maps[i] for i in self.reads], self.neck, self.decoder
        if type(neck) is not FPN or type(decoder) is not FPNDecoder or not doubles(used):
            return super()._decoded(maps)
        first = decoder.first
        as_built = neck.joinable() and plain_convs(first.conv) and unwatched(neck, decoder, decoder.scales[0], first)
        if not as_built or not is_shorter(neck, first.conv, used[0]):
            return super()._decoded(maps)
        coarser_BDhw, outs = neck.but_finest(used)
        x_BCHW = conv_of_finest(neck, first.conv, used[0], coarser_BDhw)
        return decoder.summed(first.act(first.norm(x_BCHW)), outs)


class FPNDecoder(nn.Module):
    """Maps, finest first, to logits on the finest one's cells."""

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
        finest, self.align_corners = levels[0].stride, align_corners
        self.scales = nn.ModuleList(
            _Scale(level.channels, channels, level.stride / finest, align_corners) for level in levels
        )
        self.dropout = nn.Dropout2d(dropout)
        self.classify = classifier(channels, num_classes, prior)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """One (B, C_i, H_i, W_i) per level, finest first, to (B, num_classes, H_0, W_0)."""
        finest_BCHW, *coarser = maps
        return self.summed(self.scales[0](finest_BCHW), coarser)

    @property
    def first(self) -> ConvNormAct:
        """What the finest map goes through, alone."""
        scale = self.scales[0]
        assert isinstance(scale, _Scale)
        (only,) = scale.convs
        assert isinstance(only, ConvNormAct)
        return only

    def summed(self, total_BCHW: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """Logits, from the finest map as its convolution left it and the coarser ones as they came."""
        for scale, x_BCHW in zip(list(self.scales)[1:], maps, strict=True):
            total_BCHW = total_BCHW + resized(scale(x_BCHW), total_BCHW.shape[2:], self.align_corners)
        return self.classify(self.dropout(total_BCHW))


class _Scale(nn.Module):
    """Convolutions that take one map up, each but on the finest map followed by a doubling of its sides."""

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
