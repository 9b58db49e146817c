"""UPerNet: a pyramid of poolings on the last feature map, merged top-down with the others. B images, C channels.

Source: https://arxiv.org/abs/1807.10221, in the form of MMSegmentation 1.2 (UPerHead, FCNHead).
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from fourstage.backbones.layers import Level
from fourstage.ops.pointwise import convolve
from fourstage.ops.pooling import average_cells
from fourstage.ops.resize import resize
from fourstage.tasks.parts.conv import ConvNormAct, MergingConv
from fourstage.tasks.parts.levels import levels_of
from fourstage.tasks.parts.settings import check_counts
from fourstage.tasks.segmentation.segmentor import Segmentor, classifier, map_numbers

AUXILIARY_STRIDE = 16


def upernet(
    backbone: nn.Module,
    num_classes: int,
    *,
    channels: int = 512,
    pool_scales: Sequence[int] = (1, 2, 3, 6),
    dropout: float = 0.1,
    prior: Sequence[float] | None = None,
    auxiliary_channels: int = 256,
    auxiliary_convs: int = 1,
    auxiliary_weight: float = 0.4,
    auxiliary_map: int | None = None,
    auxiliary_concat: bool = False,
    maps: Sequence[int] | None = None,
    align_corners: bool = False,
) -> Segmentor:
    """A backbone with UPerNet's decoder and, for training alone, an auxiliary one.

    Args:
        backbone: a module with `levels`, in descending resolution, that returns one feature map for each.
        num_classes: number of classes.
        channels: width of the decoder.
        pool_scales: sides of the pooled maps, in cells.
        dropout: share of the channels that are dropped before the last layer.
        prior: see `classifier`.
        auxiliary_channels: width of the auxiliary decoder.
        auxiliary_convs: number of 3x3 convolutions of the auxiliary decoder.
        auxiliary_weight: factor on the auxiliary decoder's loss; 0: no auxiliary decoder.
        auxiliary_map: number, from 0, of the backbone's map that the auxiliary decoder reads; None: the one at stride
            16.
        auxiliary_concat: whether the auxiliary decoder's last layer reads that map too, beside the output of the
            convolutions.
        maps: numbers, from 0, of the backbone's maps that the decoder reads, ascending; None: all.
        align_corners: whether the corners of maps and logits stay in place when they are resized; as published, no.

    Raises:
        ValueError: the backbone has no map at stride 16 for the auxiliary decoder, or lacks one that is named; a
            width, depth or scale below its least value.
    """
    levels = levels_of(backbone)
    reads = map_numbers(levels, maps)
    decoder = UPerDecoder(
        [levels[i].channels for i in reads],
        num_classes,
        channels=channels,
        pool_scales=pool_scales,
        dropout=dropout,
        prior=prior,
        align_corners=align_corners,
    )
    auxiliary = None
    if auxiliary_weight:
        auxiliary = FCNDecoder(
            auxiliary_level(levels, auxiliary_map),
            levels,
            num_classes,
            channels=auxiliary_channels,
            convs=auxiliary_convs,
            dropout=dropout,
            prior=prior,
            concat=auxiliary_concat,
        )
    return Segmentor(
        backbone,
        decoder,
        num_classes,
        auxiliary=auxiliary,
        auxiliary_weight=auxiliary_weight,
        align_corners=align_corners,
        reads=reads,
        method="upernet",
    )


def auxiliary_level(levels: Sequence[Level], number: int | None = None) -> int:
    """Return the number of the map that the auxiliary decoder reads: this one, or the one at stride 16.

    Raises:
        ValueError: the backbone lacks that map.
    """
    if number is not None:
        return map_numbers(levels, [number])[0]
    for i, level in enumerate(levels):
        if level.stride == AUXILIARY_STRIDE:
            return i
    strides = ", ".join(str(level.stride) for level in levels)
    raise ValueError(
        f"UPerNet's auxiliary decoder reads the map at stride {AUXILIARY_STRIDE}, and the backbone's strides are "
        f"{strides}; use all its maps, name another one by auxiliary_map, or set auxiliary_weight=0"
    )


class UPerDecoder(nn.Module):
    """Feature maps in descending resolution to logits on the cells of the first.

    Raises:
        ValueError: fewer than two maps, or a number below 1.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        *,
        channels: int = 512,
        pool_scales: Sequence[int] = (1, 2, 3, 6),
        dropout: float = 0.1,
        prior: Sequence[float] | None = None,
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        check_counts(channels=channels, **{f"pool_scales[{i}]": scale for i, scale in enumerate(pool_scales)})
        if len(in_channels) < 2:
            raise ValueError(f"UPerNet merges at least two maps; the backbone gives {len(in_channels)}")
        *finer, coarsest = in_channels
        self.pool_scales, self.align_corners = tuple(pool_scales), align_corners
        self.pooled = nn.ModuleList(_conv(coarsest, channels, 1) for _ in pool_scales)
        self.bottleneck = _merging(coarsest + len(self.pool_scales) * channels, channels, align_corners)
        self.laterals = nn.ModuleList(_conv(width, channels, 1) for width in finer)
        self.outputs = nn.ModuleList(_conv(channels, channels, 3) for _ in finer)
        self.fuse = _merging(len(in_channels) * channels, channels, align_corners)
        self.dropout = nn.Dropout2d(dropout)
        self.classify = classifier(channels, num_classes, prior)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """One (B, C_i, H_i, W_i) per level to (B, num_classes, H_0, W_0)."""
        merged = [lateral(x) for lateral, x in zip(self.laterals, maps[:-1], strict=True)]
        merged.append(self._pyramid(maps[-1]))
        for i in range(len(merged) - 1, 0, -1):
            merged[i - 1] = merged[i - 1] + self._to(merged[i - 1], merged[i])
        merged[:-1] = [conv(x) for conv, x in zip(self.outputs, merged[:-1], strict=True)]
        return convolve(self.classify, self.dropout(self.fuse(merged)))

    def _pyramid(self, x_BCHW: Tensor) -> Tensor:
        self._check_statistics(x_BCHW)
        pools = zip(self.pool_scales, self.pooled, strict=True)
        pooled = [conv(average_cells(x_BCHW, scale)) for scale, conv in pools]
        return self.bottleneck([x_BCHW, *pooled])

    def _to(self, like_BCHW: Tensor, x_BCHW: Tensor) -> Tensor:
        return resize(x_BCHW, like_BCHW.shape[2:], self.align_corners)

    def _check_statistics(self, x_BCHW: Tensor) -> None:
        """Raise ValueError where a norm would have to take its statistics from a single cell of a single image."""
        alone = any(type(module) is nn.BatchNorm2d and module.training for module in self.pooled.modules())
        if alone and 1 in self.pool_scales and len(x_BCHW) == 1:  # last: a graph for all batches may not ask
            raise ValueError(
                "UPerNet pools each image to one cell, and batch norm cannot compute statistics from one value; "
                "train with two images or more at a time, or with sync_batchnorm=true over several processes"
            )


class FCNDecoder(nn.Module):
    """Convolutions on one of the maps. It helps the backbone to learn and is not used in predictions."""

    def __init__(
        self,
        level: int,
        levels: Sequence[Level],
        num_classes: int,
        *,
        channels: int = 256,
        convs: int = 1,
        dropout: float = 0.1,
        prior: Sequence[float] | None = None,
        concat: bool = False,
    ) -> None:
        super().__init__()
        check_counts(auxiliary_channels=channels)
        check_counts(auxiliary_convs=convs, least=0)
        self.level = level
        widths = [levels[level].channels, *[channels] * convs]
        self.convs = nn.ModuleList(_conv(a, b, 3) for a, b in pairwise(widths))
        self.merge = _conv(widths[0] + widths[-1], channels, 3) if concat else None
        self.dropout = nn.Dropout2d(dropout)
        self.classify = classifier(channels if concat else widths[-1], num_classes, prior)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """The backbone's maps to (B, num_classes, H_i, W_i) on the cells of the map that it reads."""
        x_BCHW = map_BCHW = maps[self.level]
        for conv in self.convs:
            x_BCHW = conv(x_BCHW)
        if self.merge is not None:
            x_BCHW = self.merge(torch.cat([map_BCHW, x_BCHW], dim=1))
        return convolve(self.classify, self.dropout(x_BCHW))


def _conv(in_channels: int, out_channels: int, kernel_size: int) -> ConvNormAct:
    return ConvNormAct(in_channels, out_channels, kernel_size, norm=nn.BatchNorm2d, act=nn.ReLU(inplace=True))


def _merging(in_channels: int, out_channels: int, align_corners: bool) -> MergingConv:
    act = nn.ReLU(inplace=True)
    return MergingConv(in_channels, out_channels, norm=nn.BatchNorm2d, act=act, align_corners=align_corners)
