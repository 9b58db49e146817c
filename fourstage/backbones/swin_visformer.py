"""SwinVisformer (danczs/Visformer's second version of https://arxiv.org/abs/2104.12533): a Visformer of four stages,
the last two of which attend inside shifted windows, with a bias for each relative position.

B images, C channels, H x W cells. All maps are (B, C, H, W) and are channels-last in memory.

Maps have the sizes that the convolutions give: floor at every patch embedding. At 224 pixels a window is the whole map.
The source's recipes for V2, to which its accuracies belong, and all its detectors have qk_scale_factor=-0.5.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor, nn

from fourstage import registry
from fourstage.backbones.base import Classifier, Dense, Family
from fourstage.backbones.layers import Level, drop_path_rates, sides
from fourstage.backbones.mixers.window import WindowAttention
from fourstage.backbones.visformer import (
    AttentionBlock,
    ConvBlock,
    Mlp,
    SpatialMlp,
    Stage,
    Stem,
    cells,
    init_conv,
    patch_embed,
)
from fourstage.backbones.visformer import init as init_visformer

GROUPS = 8  # of the 3x3 convolution inside the blocks without attention


@dataclass(frozen=True)
class Design:
    """What makes one SwinVisformer differ from another. Sizes by stage."""

    stem: int  # channels of the stem
    width: int  # channels of the first stage; they double with every stage
    depths: tuple[int, ...]
    heads: tuple[int, ...]  # 0: convolution instead of attention
    windows: tuple[int, ...] = (0, 0, 14, 7)  # cells a side; 0 where there is no attention

    def levels(self) -> list[Level]:
        return [Level(self.width * 2**i, 4 * 2**i) for i in range(len(self.depths))]


class WindowBlock(AttentionBlock):
    """An attention block whose attention reads and writes (B, H, W, C) views. (B, C, H, W) to the same."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        attended_BHWC = self.attn(self.norm1(x_BCHW).movedim(1, -1))
        x_BCHW = x_BCHW + self.drop_path(attended_BHWC.movedim(-1, 1))
        return x_BCHW + self.drop_path(self.mlp(self.norm2(x_BCHW)))


def init(module: nn.Module) -> None:
    """SwinVisformer's initialisation.

    | module | value |
    | --- | --- |
    | convolutions, the linear layers of attention | weights normal, variance 2 / fan-out; biases 0 |
    | the head | weights normal, std 0.02; bias 0 |
    | position embeddings, bias tables | normal, std 0.02 |
    | BatchNorm | gain 1, bias 0 |
    """
    init_visformer(module)
    if isinstance(module, WindowAttention):
        module.reset_parameters()
        init_conv(module.qkv)
        init_conv(module.proj)


FAMILY = Family(  # the source decays its position embeddings and tables
    "swin_visformer", init, cells, classifier_only=(*Family.classifier_only, r"stages\.\d+\.position")
)


def stages(
    design: Design, img_size: tuple[int, int], drop_path_rate: float, exponent: float, *, dense: bool
) -> list[Stage]:
    """The stages of either form. `img_size` sizes the classifier's position embeddings and the windows of small maps.

    Whether a block shifts its windows goes by its place among the blocks of all stages.
    """
    out = []
    rates = drop_path_rates(drop_path_rate, design.depths)
    first, before = 0, design.stem  # first: the stage's first block's place among all
    for i, level in enumerate(design.levels()):
        height, width = (cells(side, level.stride) for side in img_size)
        window = design.windows[i] if dense else min(design.windows[i], height, width)
        blocks = [
            block(level.channels, design.heads[i], window, exponent, rate, shifted=(first + j) % 2 == 1, dense=dense)
            for j, rate in enumerate(rates[i])
        ]
        embed = patch_embed(before, level.channels, 2, norm=True)
        out.append(Stage(embed, None if dense else (level.channels, height, width), blocks))
        first, before = first + design.depths[i], level.channels
    return out


def block(dim: int, heads: int, window: int, exponent: float, rate: float, *, shifted: bool, dense: bool) -> nn.Module:
    """One block of a stage; `exponent` as in Visformer: q and k are each multiplied by head_dim ** exponent."""
    if not heads:
        return ConvBlock(nn.BatchNorm2d(dim), SpatialMlp(dim, 2 * dim, GROUPS), rate)
    scale = (dim // heads) ** (2 * exponent)
    attention = WindowAttention(dim, heads, window, shifted=shifted, dense=dense, scale=scale, bias=False)
    return WindowBlock(nn.BatchNorm2d(dim), attention, nn.BatchNorm2d(dim), Mlp(dim), rate)


def classifier(
    design: Design,
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    img_size: int | tuple[int, int] = 224,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    global_pool: str = "avg",
    qk_scale_factor: float = -0.25,
) -> Classifier:
    """SwinVisformer as its source trains it, for images of any size.

    Where windows do not fit a map, padded cells are invisible, so that their content changes nothing.

    Args:
        num_classes: 0 gives pooled features.
        img_size: pixels, a side or (H, W); sizes the position embeddings, and the bias tables where a map's shorter
            side is below the window.
        drop_rate: dropout on the pooled features.
        drop_path_rate: share of branches that the last block drops in training; grows linearly from 0.
        global_pool: "avg"; "" with num_classes=0 gives the last map.
        qk_scale_factor: queries and keys are each multiplied by head_dim ** qk_scale_factor. The default is the usual
            head_dim ** -0.5 on their product; the source's recipes for V2 have -0.5.
    """
    size = sides(img_size)
    return Classifier(
        FAMILY,
        Stem(in_chans, design.stem),
        stages(design, size, drop_path_rate, qk_scale_factor, dense=False),
        design.levels(),
        nn.BatchNorm2d(design.levels()[-1].channels),
        num_classes=num_classes,
        in_chans=in_chans,
        img_size=size,
        drop_rate=drop_rate,
        global_pool=global_pool,
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
    """SwinVisformer as the source's detectors have it: a norm on each map, no position embeddings, constant windows.

    Unlike the classifier it attends to the zeros that fill up the last windows, and shifts in maps of one window too.

    Args:
        img_size: pixels; only recorded, the network is the same for all sizes.
        drop_path_rate: as for the classifier.
        qk_scale_factor: as for the classifier; all configurations of the source's detectors have -0.5.
        out_indices: which maps come out; None: all four.
    """
    size = sides(img_size)
    return Dense(
        FAMILY,
        Stem(in_chans, design.stem),
        stages(design, size, drop_path_rate, qk_scale_factor, dense=True),
        design.levels(),
        nn.BatchNorm2d,
        out_indices=out_indices,
        in_chans=in_chans,
        img_size=size,
    )


SMALL_V2 = Design(stem=32, width=64, depths=(1, 10, 14, 3), heads=(0, 0, 8, 16))

DESIGNS = {
    "swin_visformer_tiny_v2": Design(stem=24, width=48, depths=(1, 4, 6, 3), heads=(0, 0, 6, 12)),
    "swin_visformer_small_v2": SMALL_V2,
    "swin_visformer_medium_v2": Design(stem=32, width=96, depths=(1, 8, 14, 2), heads=(0, 0, 8, 16)),
    "swin_visformer_small": Design(stem=32, width=96, depths=(0, 7, 4, 4), heads=(0, 0, 6, 6)),  # as visformer_small
    # small V2 with its blocks in other stages; weights of these were never published
    "swin_visformer_small_13183": replace(SMALL_V2, depths=(1, 3, 18, 3)),
    "swin_visformer_small_16163": replace(SMALL_V2, depths=(1, 6, 16, 3)),
    "swin_visformer_small_131111": replace(SMALL_V2, depths=(1, 3, 11, 11)),
    "swin_visformer_small_161010": replace(SMALL_V2, depths=(1, 6, 10, 10)),
}

for _name, _design in DESIGNS.items():
    registry.add(_name, classifier=partial(classifier, _design), dense=partial(dense, _design))
