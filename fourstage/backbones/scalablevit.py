"""ScalableViT (https://arxiv.org/abs/2203.10790, Yangr116/ScalableViT): attention in windows and over the map in turn.

B images, C channels, H x W cells. Stages take and return (B, C, H, W) views of channels-last memory.

Maps have ceil(H / stride) cells a side: the patch embeddings are convolutions of 7 cells with stride 4 and padding 3
and of 3 cells with stride 2 and padding 1, both of which round up. The source counts floor(H / stride) cells beside
them, so that it runs only where the two agree; and only where windows of 7 fit every map, that is on multiples of 224
pixels. All other sizes are ours: there windows are padded with cells that are hidden from all others.
"""

from collections.abc import Sequence
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
    Mlp,
    drop_path,
    drop_path_rates,
    init_linear,
    run_blocks,
    sides,
)
from fourstage.backbones.mixers.scalable import GlobalAttention, InteractiveWindowAttention, ScalableAttention
from fourstage.ops.shapes import ceil_div

PATCHES = (4, 2, 2, 2)  # cells of the map before that a patch embedding joins, a side
REDUCTIONS = (8, 4, 2, 1)  # cells a side that give scalable attention a key
EPS = 1e-6  # of all norms but the one inside scalable attention


@dataclass(frozen=True)
class Design:
    """What makes one ScalableViT differ from another. Sizes by stage."""

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    ratios: tuple[float, ...]  # width of queries and keys in scalable attention, as a multiple of the stage's
    window: int = 7  # cells
    hidden: int = 4096  # features between pooling and head; 0: the head takes the pooled ones

    def levels(self) -> list[Level]:
        return [Level(width, 4 * 2**i) for i, width in enumerate(self.widths)]


class PatchEmbed(ChannelsLast):
    """Overlapping patches to cells: (B, C, H, W) to (B, C', ceil(H / patch), ceil(W / patch)), channels-last."""

    def __init__(self, before: int, width: int, patch: int) -> None:
        conv = nn.Conv2d(before, width, 2 * patch - 1, stride=patch, padding=patch - 1)
        super().__init__([conv, LayerNorm2d(width, eps=EPS)])


class PositionEncoding(nn.Module):
    """Position from a cell's neighbours and the border: a depth-wise 3 x 3 convolution, added to its input.

    The parameters have names that nothing else has, since weight decay leaves both alone.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.empty(dim, 1, 3, 3))
        self.shift = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As the family's convolutions: the kernel normal with variance 2 / fan-out, the shift 0."""
        nn.init.normal_(self.kernel, std=(2 / 9) ** 0.5)
        nn.init.zeros_(self.shift)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW + F.conv2d(x_BCHW, self.kernel, self.shift, padding=1, groups=len(self.shift))


class Block(nn.Module):
    """A mixer, then an MLP, each on its normed input and added to what came in. (B, H, W, C) to the same."""

    def __init__(self, dim: int, mixer: nn.Module, rate: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.attn = mixer
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.mlp = Mlp(dim, 4 * dim)
        self.drop_path = drop_path(rate)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        x_BHWC = x_BHWC + self.drop_path(self.attn(self.norm1(x_BHWC)))
        return x_BHWC + self.drop_path(self.mlp(self.norm2(x_BHWC)))


class FirstBlock(Block):
    """The first block of a stage, which ends with the stage's position encoding."""

    def __init__(self, dim: int, mixer: nn.Module, rate: float) -> None:
        super().__init__(dim, mixer, rate)
        self.peg = PositionEncoding(dim)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        return self.peg(super().forward(x_BHWC).movedim(-1, 1)).movedim(1, -1)


class Stage(nn.Module):
    """Patches (the first stage's are the stem), then blocks. (B, C, H, W) to (B, C', H', W')."""

    def __init__(self, embed: nn.Module, blocks: Sequence[Block]) -> None:
        super().__init__()
        self.embed = embed
        self.blocks = nn.ModuleList(blocks)
        self.recompute = False

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BHWC = self.embed(x_BCHW).movedim(1, -1)
        return run_blocks(self.blocks, x_BHWC, recompute=self.recompute).movedim(-1, 1)


def init(module: nn.Module) -> None:
    """ScalableViT's initialisation.

    | module | value |
    | --- | --- |
    | linear layers | weights normal, std 0.02; biases 0 |
    | convolutions, position encodings included | weights normal, variance 2 / fan-out; biases 0 |
    | LayerNorm | gain 1, bias 0 |
    """
    init_linear(module)
    if isinstance(module, nn.Conv2d):
        height, width = module.kernel_size
        fan_out = height * width * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    if isinstance(module, PositionEncoding):
        module.reset_parameters()


FAMILY = Family("scalablevit", init, ceil_div, no_decay=("kernel", "shift"))


def mixer(design: Design, stage: int, block: int) -> nn.Module:
    """Even blocks look into windows, odd ones over the whole map."""
    width, heads, ratio = design.widths[stage], design.heads[stage], design.ratios[stage]
    if block % 2 == 0:
        return InteractiveWindowAttention(width, heads, design.window)
    if REDUCTIONS[stage] == 1:
        return GlobalAttention(width, heads, ratio)
    return ScalableAttention(width, heads, ratio, REDUCTIONS[stage])


def stages(design: Design, drop_path_rate: float) -> list[Stage]:
    """The stages of either form."""
    out = []
    rates = drop_path_rates(drop_path_rate, design.depths)
    for i, width in enumerate(design.widths):
        embed = PatchEmbed(design.widths[i - 1], width, PATCHES[i]) if i else nn.Identity()
        blocks = (FirstBlock, *[Block] * (design.depths[i] - 1))
        out.append(Stage(embed, [block(width, mixer(design, i, j), rates[i][j]) for j, block in enumerate(blocks)]))
    return out


def classifier(
    design: Design,
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    img_size: int | tuple[int, int] = 224,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    global_pool: str = "avg",
) -> Classifier:
    """ScalableViT as its source trains it, for images of any size.

    Args:
        num_classes: 0 gives the features that the head would take.
        img_size: pixels, a side or (H, W); only recorded, the network is the same for all sizes.
        drop_rate: dropout on the pooled features.
        drop_path_rate: share of branches that the last block drops in training; grows linearly from 0.
        global_pool: "avg"; "" with num_classes=0 gives the last map.
    """
    last, hidden = design.widths[-1], design.hidden
    widen = nn.Sequential(nn.Linear(last, hidden), nn.LayerNorm(hidden, eps=EPS), nn.GELU()) if hidden else None
    return Classifier(
        FAMILY,
        PatchEmbed(in_chans, design.widths[0], PATCHES[0]),
        stages(design, drop_path_rate),
        design.levels(),
        LayerNorm2d(last, eps=EPS),
        num_classes=num_classes,
        in_chans=in_chans,
        img_size=sides(img_size),
        drop_rate=drop_rate,
        global_pool=global_pool,
        pre_logits=widen,
        head_hidden_size=hidden or None,
    )


def dense(
    design: Design,
    *,
    in_chans: int = 3,
    img_size: int | tuple[int, int] = 224,
    drop_path_rate: float = 0.0,
    out_indices: Sequence[int] | None = None,
) -> Dense:
    """ScalableViT as a backbone for detection and segmentation: four maps, each with a norm of its own.

    The paper has such networks, the source never released their code. This one is our choice: the classifier's main
    path as it is, so that its checkpoint means the same here, and a new norm on each map. The classifier's own last
    norm is left out.

    Args:
        img_size: pixels; only recorded.
        drop_path_rate: as for the classifier.
        out_indices: which maps come out; None: all four.
    """
    return Dense(
        FAMILY,
        PatchEmbed(in_chans, design.widths[0], PATCHES[0]),
        stages(design, drop_path_rate),
        design.levels(),
        partial(LayerNorm2d, eps=EPS),
        out_indices=out_indices,
        in_chans=in_chans,
        img_size=sides(img_size),
    )


SMALL = Design(widths=(64, 128, 256, 512), depths=(2, 2, 20, 2), heads=(2, 4, 8, 16), ratios=(1.25, 1.25, 1.25, 1))

DESIGNS = {
    "scalable_vit_small": SMALL,
    "scalable_vit_small_0": replace(SMALL, ratios=(1.25, 1.25, 1.25, 1.25), hidden=0),
    "scalable_vit_base": Design(
        widths=(96, 192, 384, 768), depths=(2, 2, 14, 6), heads=(3, 6, 12, 24), ratios=(2, 1.25, 1.25, 1)
    ),
    "scalable_vit_large": Design(
        widths=(128, 256, 512, 1024), depths=(2, 6, 12, 4), heads=(4, 8, 16, 32), ratios=(0.25, 0.5, 1, 1)
    ),
}

for _name, _design in DESIGNS.items():
    registry.add(_name, classifier=partial(classifier, _design), dense=partial(dense, _design))
