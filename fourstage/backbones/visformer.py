"""Visformer (https://arxiv.org/abs/2104.12533, danczs/Visformer): first convolutions, then attention, on BatchNorm.

B images, C channels, H x W cells; h heads of d channels. All maps are (B, C, H, W) and are channels-last in memory, so
that attention reads cells without a copy.

Maps have the sizes that the convolutions give: floor at every patch embedding. Position embeddings are as large as the
maps of `img_size`; for other images they are resized bicubically.

Beside Visformer itself, the steps that lead from a plain transformer to a convolutional network are here:

| name | what it is |
| --- | --- |
| visformer_net1 | a transformer on patches of 16 x 16 pixels, with LayerNorm; one map, at stride 16 |
| visformer_net2 | + the convolutional stem and three patch embeddings; all 12 blocks in the second stage |
| visformer_net3 | + four blocks in each stage; heads of the first stage are half as wide |
| visformer_net4 | BatchNorm instead of LayerNorm |
| visformer_net5 | + 3x3 convolutions inside all MLPs |
| visformer_net6 | no position embeddings |
| visformer_net7 | no attention; 6, 7 and 7 blocks |

In the source net1, net2 and net3 can be built but not run: their LayerNorm takes maps of one cell only. Here it norms
the channels of each cell, as the paper means it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourstage import registry
from fourstage.backbones.base import Classifier, Dense, Family
from fourstage.backbones.layers import (
    ChannelsLast,
    LayerNorm2d,
    Level,
    drop_path,
    drop_path_rates,
    init_linear,
    resized_position,
    run_blocks,
    sides,
)
from fourstage.ops.conv_gelu import convolve_gelu, convolved_mlp
from fourstage.ops.pointwise import convolve


@dataclass(frozen=True)
class Design:
    """What makes one Visformer differ from another. Sizes by stage."""

    stem: int  # channels of the stem; 0: none, the first patch embedding reads the image
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    heads: tuple[int, ...]  # 0: no attention
    head_ratio: tuple[float, ...] = (0.5, 1, 1)  # width of a head, as a share of what is there for each
    spatial: tuple[bool, ...] = (True, False, False)  # whether MLPs look at the neighbours
    groups: int = 8  # of the convolution that does
    patches: tuple[int, ...] = (4, 2, 2)  # cells of the map before that a patch embedding joins, a side
    norm: Callable[[int], nn.Module] = nn.BatchNorm2d  # of blocks and maps; stem and patch embeddings have BatchNorm
    embed_norm: bool = True  # whether patch embeddings have a norm
    position: bool = True  # whether there are position embeddings
    img_size: int = 224  # pixels a side, unless another size is asked for
    num_classes: int = 1000  # unless another number is asked for

    @property
    def family(self) -> Family:
        return FAMILY if self.stem else PATCH_FAMILY

    def levels(self) -> list[Level]:
        out, stride = [], 2 if self.stem else 1
        for width, patch in zip(self.widths, self.patches, strict=True):
            stride *= patch
            out.append(Level(width, stride))
        return out

    def map_sizes(self, img_size: tuple[int, int]) -> list[tuple[int, int]]:
        """(H, W) of each map for images of `img_size`."""
        height, width = img_size
        cells = self.family.cells
        return [(cells(height, level.stride), cells(width, level.stride)) for level in self.levels()]


class Stem(ChannelsLast):
    """Image to half its size: (B, in_chans, H, W) to (B, C, ceil(H / 2), ceil(W / 2)), from here on channels-last."""

    def __init__(self, in_chans: int, width: int) -> None:
        conv = nn.Conv2d(in_chans, width, 7, stride=2, padding=3, bias=False)
        super().__init__([conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)])


def patch_embed(before: int, width: int, patch: int, *, norm: bool) -> nn.Sequential:
    """Squares of `patch` cells a side become one cell: (B, before, H, W) to (B, width, H // patch, W // patch)."""
    conv = nn.Conv2d(before, width, patch, patch)
    return nn.Sequential(conv, nn.BatchNorm2d(width)) if norm else nn.Sequential(conv)


class Attention(nn.Module):
    """Every cell attends to every cell. (B, C, H, W) to the same.

    Args:
        head_dim: d.
        exponent: q and k are each multiplied by d ** exponent.
    """

    def __init__(self, dim: int, heads: int, head_dim: int, exponent: float) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.scale = head_dim ** (2 * exponent)
        self.qkv = nn.Conv2d(dim, 3 * heads * head_dim, 1, bias=False)
        self.proj = nn.Conv2d(heads * head_dim, dim, 1, bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        height, width = x_BCHW.shape[-2:]
        qkv = convolve(self.qkv, x_BCHW).movedim(1, -1).flatten(1, 2)
        q, k, v = qkv.unflatten(-1, (3, self.heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)  # B, h, cells, d
        out = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        out_BHWC = out.transpose(1, 2).flatten(2).unflatten(1, (height, width))
        return convolve(self.proj, out_BHWC.movedim(-1, 1))


class Mlp(nn.Module):
    """1x1 convolutions that widen four times and narrow. (B, C, H, W) to the same."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(dim, 4 * dim, 1, bias=False)
        self.act = nn.GELU()
        self.reduce = nn.Conv2d(4 * dim, dim, 1, bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return convolved_mlp(self.expand, self.act, self.reduce, x_BCHW)


class SpatialMlp(nn.Module):
    """Widen or narrow, look at the 3 x 3 neighbours in groups of channels, go back. (B, C, H, W) to the same."""

    def __init__(self, dim: int, hidden: int, groups: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(dim, hidden, 1, bias=False)
        self.act1 = nn.GELU()
        self.spatial = nn.Conv2d(hidden, hidden, 3, padding=1, groups=groups, bias=False)
        self.act2 = nn.GELU()
        self.reduce = nn.Conv2d(hidden, dim, 1, bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = convolve_gelu(self.expand, self.act1, x_BCHW)
        return convolved_mlp(self.spatial, self.act2, self.reduce, x_BCHW)


class ConvBlock(nn.Module):
    """An MLP on the normed input, added to what came in. (B, C, H, W) to the same."""

    def __init__(self, norm: nn.Module, mlp: nn.Module, rate: float) -> None:
        super().__init__()
        self.norm2 = norm
        self.mlp = mlp
        self.drop_path = drop_path(rate)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW + self.drop_path(self.mlp(self.norm2(x_BCHW)))


class AttentionBlock(nn.Module):
    """Attention, then an MLP, each on its own normed input and added to what came in. (B, C, H, W) to the same."""

    def __init__(self, norm1: nn.Module, attention: nn.Module, norm2: nn.Module, mlp: nn.Module, rate: float) -> None:
        super().__init__()
        self.norm1 = norm1
        self.attn = attention
        self.norm2 = norm2
        self.mlp = mlp
        self.drop_path = drop_path(rate)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = x_BCHW + self.drop_path(self.attn(self.norm1(x_BCHW)))
        return x_BCHW + self.drop_path(self.mlp(self.norm2(x_BCHW)))


class Stage(nn.Module):
    """A patch embedding, a position embedding, then blocks. (B, C, H, W) to (B, C', H', W').

    Args:
        position_CHW: shape of the position embedding; None: there is none.
    """

    def __init__(
        self, embed: nn.Module, position_CHW: tuple[int, int, int] | None, blocks: Sequence[nn.Module]
    ) -> None:
        super().__init__()
        self.embed = embed
        self.position = nn.Parameter(torch.empty(1, *position_CHW)) if position_CHW else None
        self.blocks = nn.ModuleList(blocks)
        self.recompute = False
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The position embedding: normal with std 0.02."""
        if self.position is not None:
            nn.init.trunc_normal_(self.position, std=0.02)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = self.embed(x_BCHW)
        if self.position is not None:
            x_BCHW = x_BCHW + resized_position(self.position, *x_BCHW.shape[-2:])
        return run_blocks(self.blocks, x_BCHW, recompute=self.recompute)


def cells(side: int, stride: int) -> int:
    """Cells along a side: the stem rounds up, all patch embeddings round down."""
    return (side + 1) // 2 // (stride // 2)


def init(module: nn.Module) -> None:
    """Visformer's initialisation.

    | module | value |
    | --- | --- |
    | convolutions | weights normal, variance 2 / fan-out; biases 0 |
    | the head | weights normal, std 0.02; bias 0 |
    | position embeddings | normal, std 0.02 |
    | BatchNorm, LayerNorm | gain 1, bias 0 |
    """
    init_linear(module)
    if isinstance(module, nn.Conv2d):
        init_conv(module)
    if isinstance(module, Stage):
        module.reset_parameters()


def init_conv(module: nn.Conv2d | nn.Linear) -> None:
    """Initialise a convolution, or a linear layer in place of one of 1 x 1: variance 2 / fan-out, bias 0."""
    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def whole_patches(side: int, stride: int) -> int:
    """Cells along a side without a stem: what does not fill a patch is left out."""
    return side // stride


FAMILY = Family("visformer", init, cells)  # the source decays its position embeddings
PATCH_FAMILY = Family("visformer_net1", init, whole_patches)


def block(design: Design, stage: int, exponent: float, rate: float) -> nn.Module:
    """One block of a stage."""
    dim, heads, norm = design.widths[stage], design.heads[stage], design.norm
    if not heads:
        return ConvBlock(norm(dim), mlp(design, stage), rate)
    attention = Attention(dim, heads, round(dim // heads * design.head_ratio[stage]), exponent)
    return AttentionBlock(norm(dim), attention, norm(dim), mlp(design, stage), rate)


def mlp(design: Design, stage: int) -> nn.Module:
    """The MLP of a block. Where a convolution reads all channels at once, it is narrow, so that the cost stays."""
    dim = design.widths[stage]
    if not design.spatial[stage]:
        return Mlp(dim)
    return SpatialMlp(dim, 2 * dim if design.groups > 1 else dim * 5 // 6, design.groups)


def stages(
    design: Design, in_chans: int, img_size: tuple[int, int], drop_path_rate: float, exponent: float
) -> list[Stage]:
    """The stages of either form."""
    out = []
    before = design.stem or in_chans
    sizes, rates = design.map_sizes(img_size), drop_path_rates(drop_path_rate, design.depths)
    for i, (width, patch) in enumerate(zip(design.widths, design.patches, strict=True)):
        embed = patch_embed(before, width, patch, norm=design.embed_norm)
        blocks = [block(design, i, exponent, rate) for rate in rates[i]]
        out.append(Stage(embed, (width, *sizes[i]) if design.position else None, blocks))
        before = width
    return out


def classifier(
    design: Design,
    *,
    num_classes: int | None = None,
    in_chans: int = 3,
    img_size: int | tuple[int, int] | None = None,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    global_pool: str = "avg",
    qk_scale_factor: float = -0.25,
) -> Classifier:
    """Visformer as its source trains it, for images of any size.

    Args:
        num_classes: 0 gives pooled features; None: the design's number.
        img_size: pixels, a side or (H, W); sizes the position embeddings. None: the design's.
        drop_rate: dropout on the pooled features.
        drop_path_rate: share of branches that the last block drops in training; grows linearly from 0.
        global_pool: "avg"; "" with num_classes=0 gives the last map.
        qk_scale_factor: queries and keys are each multiplied by head_dim ** qk_scale_factor. The default is the usual
            head_dim ** -0.5 on their product; -0.5, as the source's later recipes have it, is safer in half precision.
    """
    size = sides(design.img_size if img_size is None else img_size)
    return Classifier(
        design.family,
        Stem(in_chans, design.stem) if design.stem else ChannelsLast(),
        stages(design, in_chans, size, drop_path_rate, qk_scale_factor),
        design.levels(),
        design.norm(design.widths[-1]),
        num_classes=design.num_classes if num_classes is None else num_classes,
        in_chans=in_chans,
        img_size=size,
        drop_rate=drop_rate,
        global_pool=global_pool,
    )


def dense(
    design: Design,
    *,
    in_chans: int = 3,
    img_size: int | tuple[int, int] | None = None,
    drop_path_rate: float = 0.0,
    qk_scale_factor: float = -0.25,
    out_indices: Sequence[int] | None = None,
) -> Dense:
    """Visformer as a backbone for detection and segmentation: three maps, each with a norm of its own.

    The source has no dense form of this network. This one is our choice: output norms as the source's SwinVisformer
    detectors have them, the main path without them, and the position embeddings stay (resized), so that a classifier's
    checkpoint means the same here. The arguments are those of `classifier`.
    """
    size = sides(design.img_size if img_size is None else img_size)
    return Dense(
        design.family,
        Stem(in_chans, design.stem) if design.stem else ChannelsLast(),
        stages(design, in_chans, size, drop_path_rate, qk_scale_factor),
        design.levels(),
        design.norm,
        out_indices=out_indices,
        in_chans=in_chans,
        img_size=size,
    )


NET3 = Design(
    stem=32,
    widths=(192, 384, 768),
    depths=(4, 4, 4),
    heads=(6, 6, 6),
    spatial=(False, False, False),
    norm=LayerNorm2d,
    embed_norm=False,
)
NET4 = replace(NET3, norm=nn.BatchNorm2d)
NET5 = replace(NET4, spatial=(True, True, True), groups=1)
NET6 = replace(NET5, position=False)

DESIGNS = {
    "visformer_tiny": Design(stem=16, widths=(96, 192, 384), depths=(7, 4, 4), heads=(0, 3, 3)),
    "visformer_small": Design(stem=32, widths=(192, 384, 768), depths=(7, 4, 4), heads=(0, 6, 6)),
    "visformer_net1": replace(
        NET3, stem=0, widths=(384,), depths=(12,), heads=(6,), head_ratio=(1,), spatial=(False,), patches=(16,)
    ),
    "visformer_net2": replace(NET3, depths=(0, 12, 0)),
    "visformer_net3": NET3,
    "visformer_net4": NET4,
    "visformer_net5": NET5,
    "visformer_net6": NET6,
    "visformer_net7": replace(NET6, depths=(6, 7, 7), heads=(0, 0, 0)),
    # Ours, published nowhere: for the demo, whose 32-pixel digits are too small for a first patch of 8 pixels.
    # Convolutions give it positions: a table for digits that fill their image would mean nothing in a scene.
    "visformer_digits": Design(
        stem=32,
        widths=(64, 128, 256),
        depths=(2, 2, 2),
        heads=(0, 0, 4),
        spatial=(True, True, True),
        patches=(2, 2, 2),
        position=False,
        img_size=32,
        num_classes=10,
    ),
}

for _name, _design in DESIGNS.items():
    registry.add(_name, classifier=partial(classifier, _design), dense=partial(dense, _design))
