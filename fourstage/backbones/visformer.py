"""Visformer (https://arxiv.org/abs/2104.12533, danczs/Visformer): first convolutions, then attention, on BatchNorm.

B images, C channels, H x W cells; h heads of d channels. All maps are (B, C, H, W) and lie channels-last in memory, so
that attention reads cells without a copy.

Maps have the sizes that the convolutions give: floor at every patch embedding. Position embeddings are as large as the
maps of `img_size`; for other images they are resized bicubically.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourstage import registry
from fourstage.backbones.base import Classifier, Dense, Family
from fourstage.backbones.layers import (
    Level,
    drop_path,
    drop_path_rates,
    init_linear,
    resized_position,
    run_blocks,
    sides,
)

GROUPS = 8  # of the 3x3 convolution inside the first stage's blocks


@dataclass(frozen=True)
class Design:
    """What makes one Visformer differ from another. Sizes by stage."""

    stem: int  # channels of the stem
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    heads: tuple[int, ...]  # 0: convolution instead of attention
    patches: tuple[int, ...] = (4, 2, 2)  # cells of the map before that a patch embedding joins, a side

    def levels(self) -> list[Level]:
        out, stride = [], 2  # of the stem
        for width, patch in zip(self.widths, self.patches, strict=True):
            stride *= patch
            out.append(Level(width, stride))
        return out

    def map_sizes(self, img_size: tuple[int, int]) -> list[tuple[int, int]]:
        """(H, W) of each map for images of `img_size`."""
        height, width = ((side + 1) // 2 for side in img_size)  # the stem rounds up
        out = []
        for patch in self.patches:
            height, width = height // patch, width // patch
            out.append((height, width))
        return out


class Stem(nn.Sequential):
    """Image to half its size: (B, in_chans, H, W) to (B, C, ceil(H / 2), ceil(W / 2)), from here on channels-last."""

    def __init__(self, in_chans: int, width: int) -> None:
        conv = nn.Conv2d(in_chans, width, 7, stride=2, padding=3, bias=False)
        super().__init__(conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True))

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.contiguous(memory_format=torch.channels_last))


class Attention(nn.Module):
    """Every cell looks at every cell. (B, C, H, W) to the same.

    Args:
        exponent: q and k are each multiplied by d ** exponent.
    """

    def __init__(self, dim: int, heads: int, exponent: float) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, dim // heads
        self.scale = self.head_dim ** (2 * exponent)
        self.qkv = nn.Conv2d(dim, 3 * heads * self.head_dim, 1, bias=False)
        self.proj = nn.Conv2d(heads * self.head_dim, dim, 1, bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        height, width = x_BCHW.shape[-2:]
        qkv = self.qkv(x_BCHW).movedim(1, -1).flatten(1, 2).unflatten(-1, (3, self.heads, self.head_dim))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # B, h, cells, d
        out = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        out_BHWC = out.transpose(1, 2).flatten(2).unflatten(1, (height, width))
        return self.proj(out_BHWC.movedim(-1, 1))


class Mlp(nn.Sequential):
    """1x1 convolutions that widen four times and narrow. (B, C, H, W) to the same."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(dim, 4 * dim, 1, bias=False)
        self.act = nn.GELU()
        self.reduce = nn.Conv2d(4 * dim, dim, 1, bias=False)


class SpatialMlp(nn.Sequential):
    """Widen twice, look at the 3 x 3 neighbours in eight groups of channels, narrow. (B, C, H, W) to the same."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(dim, 2 * dim, 1, bias=False)
        self.act1 = nn.GELU()
        self.spatial = nn.Conv2d(2 * dim, 2 * dim, 3, padding=1, groups=GROUPS, bias=False)
        self.act2 = nn.GELU()
        self.reduce = nn.Conv2d(2 * dim, dim, 1, bias=False)


class ConvBlock(nn.Module):
    """A spatial MLP on the normed input, added to what came in. (B, C, H, W) to the same."""

    def __init__(self, dim: int, rate: float) -> None:
        super().__init__()
        self.norm2 = nn.BatchNorm2d(dim)
        self.mlp = SpatialMlp(dim)
        self.drop_path = drop_path(rate)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW + self.drop_path(self.mlp(self.norm2(x_BCHW)))


class AttentionBlock(nn.Module):
    """Attention, then an MLP, each on its own normed input and added to what came in. (B, C, H, W) to the same."""

    def __init__(self, dim: int, heads: int, exponent: float, rate: float) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(dim)
        self.attn = Attention(dim, heads, exponent)
        self.norm2 = nn.BatchNorm2d(dim)
        self.mlp = Mlp(dim)
        self.drop_path = drop_path(rate)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = x_BCHW + self.drop_path(self.attn(self.norm1(x_BCHW)))
        return x_BCHW + self.drop_path(self.mlp(self.norm2(x_BCHW)))


class Stage(nn.Module):
    """A patch embedding, a position embedding, then blocks. (B, C, H, W) to (B, C', H', W')."""

    def __init__(self, embed: nn.Module, width: int, map_size: tuple[int, int], blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.embed = embed
        self.position = nn.Parameter(torch.empty(1, width, *map_size))
        self.blocks = nn.ModuleList(blocks)
        self.recompute = False
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The position embedding: normal with std 0.02."""
        nn.init.trunc_normal_(self.position, std=0.02)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = self.embed(x_BCHW)
        x_BCHW = x_BCHW + resized_position(self.position, *x_BCHW.shape[-2:])
        return run_blocks(self.blocks, x_BCHW, recompute=self.recompute)


def init(module: nn.Module) -> None:
    """Visformer's initialisation.

    | part | value |
    | --- | --- |
    | convolutions | weights normal, variance 2 / fan-out; biases 0 |
    | the head | weights normal, std 0.02; bias 0 |
    | position embeddings | normal, std 0.02 |
    | BatchNorm | gain 1, bias 0 |
    """
    init_linear(module)
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    if isinstance(module, Stage):
        module.reset_parameters()


FAMILY = Family("visformer", init)  # the source decays its position embeddings


def stages(design: Design, img_size: tuple[int, int], drop_path_rate: float, exponent: float) -> list[Stage]:
    """The stages of either form."""
    out = []
    before = design.stem
    sizes, rates = design.map_sizes(img_size), drop_path_rates(drop_path_rate, design.depths)
    for i, (width, patch, heads) in enumerate(zip(design.widths, design.patches, design.heads, strict=True)):
        embed = nn.Sequential(nn.Conv2d(before, width, patch, patch), nn.BatchNorm2d(width))
        blocks = [AttentionBlock(width, heads, exponent, r) if heads else ConvBlock(width, r) for r in rates[i]]
        out.append(Stage(embed, width, sizes[i], blocks))
        before = width
    return out


def classifier(
    design: Design,
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    img_size: int | tuple[int, int] = 224,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    qk_scale_factor: float = -0.25,
) -> Classifier:
    """Visformer as its source trains it, for images of any size.

    Args:
        num_classes: 0 gives pooled features.
        img_size: pixels, a side or (H, W); sizes the position embeddings.
        drop_rate: dropout on the pooled features.
        drop_path_rate: share of branches that the last block drops in training; grows linearly from 0.
        qk_scale_factor: queries and keys are each multiplied by head_dim ** qk_scale_factor. The default is the usual
            head_dim ** -0.5 on their product; -0.5, as the source's later recipes have it, is safer in half precision.
    """
    size = sides(img_size)
    return Classifier(
        FAMILY,
        Stem(in_chans, design.stem),
        stages(design, size, drop_path_rate, qk_scale_factor),
        design.levels(),
        nn.BatchNorm2d(design.widths[-1]),
        num_classes=num_classes,
        in_chans=in_chans,
        img_size=size,
        drop_rate=drop_rate,
    )


def dense(
    design: Design,
    *,
    in_chans: int = 3,
    img_size: int | tuple[int, int] = 224,
    drop_path_rate: float = 0.0,
    qk_scale_factor: float = -0.25,
    out_indices: Sequence[int] | None = None,
) -> Dense:
    """Visformer as a backbone for detection and segmentation: three maps, each with a BatchNorm of its own.

    The source has no dense form of this network. This one is our choice: output norms as the source's SwinVisformer
    detectors have them, the main path without them, and the position embeddings stay (resized), so that a classifier's
    checkpoint means the same here. The arguments are those of `classifier`.
    """
    size = sides(img_size)
    return Dense(
        FAMILY,
        Stem(in_chans, design.stem),
        stages(design, size, drop_path_rate, qk_scale_factor),
        design.levels(),
        nn.BatchNorm2d,
        out_indices=out_indices,
        in_chans=in_chans,
        img_size=size,
    )


def tiny(*, img_size: int = 64, num_classes: int = 10, drop_path_rate: float = 0.0) -> Classifier:
    """The smallest sensible Visformer, for tests; nobody published it."""
    return classifier(TEST_DESIGN, img_size=img_size, num_classes=num_classes, drop_path_rate=drop_path_rate)


def tiny_dense(*, drop_path_rate: float = 0.0, out_indices: Sequence[int] | None = None) -> Dense:
    """The dense form of `tiny`."""
    return dense(TEST_DESIGN, img_size=64, drop_path_rate=drop_path_rate, out_indices=out_indices)


TEST_DESIGN = Design(stem=8, widths=(16, 32, 64), depths=(1, 2, 1), heads=(0, 2, 2))
TINY = Design(stem=16, widths=(96, 192, 384), depths=(7, 4, 4), heads=(0, 3, 3))
SMALL = Design(stem=32, widths=(192, 384, 768), depths=(7, 4, 4), heads=(0, 6, 6))
DIGITS = Design(stem=32, widths=(64, 128, 256), depths=(2, 2, 1), heads=(0, 4, 4), patches=(2, 2, 2))

registry.add("visformer_tiny", classifier=partial(classifier, TINY), dense=partial(dense, TINY))
registry.add("visformer_small", classifier=partial(classifier, SMALL), dense=partial(dense, SMALL))
# Ours, published nowhere: a Visformer for the demo, whose 32-pixel digits are too small for a first patch of 8 pixels.
registry.add(
    "visformer_digits",
    classifier=partial(classifier, DIGITS, img_size=32, num_classes=10),
    dense=partial(dense, DIGITS, img_size=32),
)
