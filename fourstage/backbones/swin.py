"""Swin (https://arxiv.org/abs/2103.14030): shifted windows; the classifier of microsoft/Swin-Transformer and the dense
network of OpenMMLab's mim-example.

B images, C channels, H x W cells. Stages take and return (B, C, H, W) views of channels-last memory.

Maps have ceil(H / stride) cells a side: zeros complete the last patch and the last group of four that a merge joins.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from fourstage import registry
from fourstage.backbones.base import Classifier, Dense, Family
from fourstage.backbones.layers import (
    ChannelsLast,
    LayerNorm2d,
    Level,
    Mlp,
    drop_path,
    drop_path_rates,
    init_linear,
    resized_position,
    run_blocks,
    sides,
)
from fourstage.backbones.mixers.window import WindowAttention
from fourstage.ops.matmul import linear
from fourstage.ops.shapes import ceil_div, pad_to

PATCH = 4  # pixels


@dataclass(frozen=True)
class Design:
    """What makes one Swin differ from another. Sizes by stage."""

    width: int  # channels of the first stage; they double with every stage
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    window: int = 7  # cells a side, unless `window_size` says otherwise
    img_size: int = 224  # pixels a side, unless another size is asked for

    def levels(self) -> list[Level]:
        return [Level(self.width * 2**i, PATCH * 2**i) for i in range(len(self.depths))]


class PatchEmbed(ChannelsLast):
    """Image to cells of 4 x 4 pixels: (B, in_chans, H, W) to (B, C, ceil(H / 4), ceil(W / 4))."""

    def __init__(self, in_chans: int, width: int) -> None:
        super().__init__([nn.Conv2d(in_chans, width, PATCH, PATCH), LayerNorm2d(width)])

    def forward(self, x_BCHW: Tensor) -> Tensor:
        height, width = (ceil_div(side, PATCH) * PATCH for side in x_BCHW.shape[-2:])
        return super().forward(pad_to(x_BCHW.movedim(1, -1), height, width).movedim(-1, 1))


class Position(nn.Module):
    """A position embedding, added to the map of the first stage and resized to it: (B, H, W, C) to the same."""

    def __init__(self, width: int, map_size: tuple[int, int]) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.empty(1, width, *map_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal with std 0.02."""
        nn.init.trunc_normal_(self.position, std=0.02)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        return x_BHWC + resized_position(self.position, *x_BHWC.shape[1:3]).movedim(1, -1)


class PatchMerge(nn.Module):
    """Four neighbours become one cell of twice the channels: (B, H, W, C) to (B, ceil(H / 2), ceil(W / 2), 2C)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduce = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        rows, columns = (ceil_div(side, 2) for side in x_BHWC.shape[1:3])
        x_BHWC = pad_to(x_BHWC, 2 * rows, 2 * columns)
        pairs = x_BHWC.unflatten(2, (columns, 2)).unflatten(1, (rows, 2))  # B, rows, 2, columns, 2, C
        # the neighbours' order in the checkpoints: down first, then across
        return linear(self.reduce, self.norm(pairs.permute(0, 1, 3, 4, 2, 5).flatten(3)))


class Block(nn.Module):
    """Window attention, then an MLP, each on its normed input and added to what came in. (B, H, W, C) to the same."""

    def __init__(self, dim: int, attention: WindowAttention, rate: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = attention
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)
        self.drop_path = drop_path(rate)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        x_BHWC = x_BHWC + self.drop_path(self.attn(self.norm1(x_BHWC)))
        return x_BHWC + self.drop_path(self.mlp(self.norm2(x_BHWC)))


class Stage(nn.Module):
    """Merge (the first stage adds positions, or nothing), then blocks. (B, C, H, W) to (B, C', H', W')."""

    def __init__(self, embed: nn.Module, blocks: Sequence[Block]) -> None:
        super().__init__()
        self.embed = embed
        self.blocks = nn.ModuleList(blocks)
        self.recompute = False

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BHWC = self.embed(x_BCHW.movedim(1, -1))
        return run_blocks(self.blocks, x_BHWC, recompute=self.recompute).movedim(-1, 1)


def init(module: nn.Module) -> None:
    """Swin's initialisation.

    | module | value |
    | --- | --- |
    | linear layers | weights normal, std 0.02; biases 0 |
    | bias tables, the position embedding | normal, std 0.02 |
    | LayerNorm | gain 1, bias 0 |
    | the patch convolution | as PyTorch has it |
    """
    init_linear(module)
    if isinstance(module, WindowAttention | Position):
        module.reset_parameters()


FAMILY = Family("swin", init, ceil_div, no_decay=("table", "position"), squash_from=384)


def stages(
    design: Design, img_size: tuple[int, int], window_size: int | None, drop_path_rate: float, *, ape: bool, dense: bool
) -> list[Stage]:
    """The stages of either form. `img_size` sizes the windows of the classifier's small maps, and position embeddings.

    Raises:
        ValueError: a window of no cells.
    """
    largest = design.window if window_size is None else window_size
    if largest < 1:
        raise ValueError(f"window_size is the side of a window in cells, at least 1; got {largest}")
    out = []
    rates = drop_path_rates(drop_path_rate, design.depths)
    for i, level in enumerate(design.levels()):
        height, width = (ceil_div(side, level.stride) for side in img_size)
        window = largest if dense else min(largest, height, width)
        if i:
            embed: nn.Module = PatchMerge(level.channels // 2)
        else:
            embed = Position(level.channels, (height, width)) if ape else nn.Identity()
        blocks = [
            Block(
                level.channels,
                WindowAttention(level.channels, design.heads[i], window, shifted=j % 2 == 1, dense=dense),
                rate,
            )
            for j, rate in enumerate(rates[i])
        ]
        out.append(Stage(embed, blocks))
    return out


def classifier(
    design: Design,
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    img_size: int | tuple[int, int] | None = None,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    global_pool: str = "avg",
    window_size: int | None = None,
    ape: bool = False,
) -> Classifier:
    """Swin as microsoft/Swin-Transformer trains it, for images of any size.

    Where windows do not fit a map, padded cells are invisible, so that their content changes nothing.

    Args:
        num_classes: 0 gives pooled features.
        img_size: pixels, a side or (H, W). Where a map's shorter side is below the window, this sizes the bias tables;
            it sizes the position embedding, which is resized bicubically for other images. None: the design's.
        drop_rate: dropout on the pooled features.
        drop_path_rate: share of branches that the last block drops in training; grows linearly from 0.
        global_pool: "avg"; "" with num_classes=0 gives the last map.
        window_size: cells a side of the windows; None: as the network's name says.
        ape: add an absolute position embedding to the first map.
    """
    size = sides(design.img_size if img_size is None else img_size)
    return Classifier(
        FAMILY,
        PatchEmbed(in_chans, design.width),
        stages(design, size, window_size, drop_path_rate, ape=ape, dense=False),
        design.levels(),
        LayerNorm2d(design.levels()[-1].channels),
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
    img_size: int | tuple[int, int] | None = None,
    drop_path_rate: float = 0.0,
    out_indices: Sequence[int] | None = None,
    window_size: int | None = None,
    ape: bool = False,
) -> Dense:
    """Swin as OpenMMLab's detectors and segmentors have it: a norm on each map, windows that never shrink.

    Unlike the classifier it attends to the zeros that fill up the last windows, and shifts in maps of one window too.

    Args:
        img_size: pixels; sizes the position embedding, which is resized bicubically for other images; nothing else.
            None: the design's.
        drop_path_rate, window_size, ape: as for the classifier.
        out_indices: which maps come out; None: all four.
    """
    size = sides(design.img_size if img_size is None else img_size)
    return Dense(
        FAMILY,
        PatchEmbed(in_chans, design.width),
        stages(design, size, window_size, drop_path_rate, ape=ape, dense=True),
        design.levels(),
        LayerNorm2d,
        out_indices=out_indices,
        in_chans=in_chans,
        img_size=size,
    )


DESIGNS = {
    "swin_tiny": Design(width=96, depths=(2, 2, 6, 2), heads=(3, 6, 12, 24)),
    "swin_small": Design(width=96, depths=(2, 2, 18, 2), heads=(3, 6, 12, 24)),
    "swin_base": Design(width=128, depths=(2, 2, 18, 2), heads=(4, 8, 16, 32)),
    "swin_large": Design(width=192, depths=(2, 2, 18, 2), heads=(6, 12, 24, 48)),
}
ALIASES = {name: (f"{name}_patch4_window7_224",) for name in DESIGNS}
DESIGNS |= {
    f"{name}_patch4_window12_384": replace(DESIGNS[name], window=12, img_size=384)
    for name in ("swin_base", "swin_large")
}

for _name, _design in DESIGNS.items():
    registry.add(
        _name,
        classifier=partial(classifier, _design),
        dense=partial(dense, _design),
        aliases=ALIASES.get(_name, ()),
    )
