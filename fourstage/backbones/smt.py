"""SMT (https://arxiv.org/abs/2307.08579, AFeng-x/SMT): scale-aware modulation first, attention last, both in between.

B images, C channels, H x W cells. Stages take and return (B, C, H, W) views of channels-last memory.

The stem is a convolution with stride 2 that rounds up and one of 2 x 2 cells that rounds down; the three convolutions
between stages round up. So the first map has (H + 1) // 4 cells a side, and each further one half as many, rounded up.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import inf

from torch import Tensor, nn

from fourstage import registry
from fourstage.backbones.base import Classifier, Dense, Family
from fourstage.backbones.layer_scale import LayerScale, scaled, takes_scale
from fourstage.backbones.layers import (
    ChannelsLast,
    LayerNorm2d,
    Level,
    drop_path,
    drop_path_rates,
    init_linear,
    run_blocks,
    sides,
)
from fourstage.backbones.mixers.modulation import LocalGlobalAttention, ScaleAwareModulation
from fourstage.ops.depthwise_mlp import residual_depthwise_mlp
from fourstage.ops.shapes import ceil_div

HEADS = (0, 0, 8, 16)  # of attention, by stage
EPS = 1e-6  # of the norms in blocks and after stages; those of the stem and between stages have PyTorch's 1e-5


@dataclass(frozen=True)
class Design:
    """What makes one SMT differ from another. Sizes by stage."""

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    ratios: tuple[int, ...]  # how much MLPs widen
    kernel: int  # cells a side of the stem's first convolution
    init_values: float = 0  # of layer scales, unless another value is asked for; 0: there are none
    img_size: int = 224  # pixels a side, unless another size is asked for

    def levels(self) -> list[Level]:
        return [Level(width, 4 * 2**i) for i, width in enumerate(self.widths)]


class Stem(ChannelsLast):
    """Image to a quarter of its size: (B, in_chans, H, W) to (B, C, (H + 1) // 4, (W + 1) // 4), channels-last."""

    def __init__(self, in_chans: int, width: int, kernel: int) -> None:
        super().__init__(
            [
                nn.Conv2d(in_chans, width, kernel, stride=2, padding=kernel // 2, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
                nn.Conv2d(width, width, 2, stride=2),
                LayerNorm2d(width),
            ]
        )


def embed(before: int, width: int) -> nn.Sequential:
    """Overlapping patches to cells: (B, before, H, W) to (B, width, ceil(H / 2), ceil(W / 2))."""
    return nn.Sequential(nn.Conv2d(before, width, 3, stride=2, padding=1), LayerNorm2d(width))


class Mlp(nn.Module):
    """Widen, add to each cell a look at its 3 x 3 neighbours, GELU, narrow. (B, H, W, C) to the same."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Linear(dim, hidden)
        self.spatial = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.reduce = nn.Linear(hidden, dim)

    @takes_scale
    def forward(self, x_BHWC: Tensor, scale_C: Tensor | None = None) -> Tensor:
        return residual_depthwise_mlp(self.expand, self.spatial, self.reduce, x_BHWC, scale_C)


class Block(nn.Module):
    """A mixer, then an MLP, each on its normed input, scaled, and added to what came in. (B, H, W, C) to the same."""

    def __init__(self, dim: int, mixer: nn.Module, ratio: int, init_values: float, rate: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.attn = mixer
        self.scale1 = LayerScale(dim, init_values) if init_values else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.mlp = Mlp(dim, ratio * dim)
        self.scale2 = LayerScale(dim, init_values) if init_values else nn.Identity()
        self.drop_path = drop_path(rate)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        x_BHWC = x_BHWC + self.drop_path(scaled(self.attn, self.scale1, self.norm1(x_BHWC)))
        return x_BHWC + self.drop_path(scaled(self.mlp, self.scale2, self.norm2(x_BHWC)))


class Stage(nn.Module):
    """Patches (the first stage's are the stem), then blocks, then a norm. (B, C, H, W) to (B, C', H', W')."""

    def __init__(self, embed: nn.Module, blocks: Sequence[Block], width: int) -> None:
        super().__init__()
        self.embed = embed
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.recompute = False

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BHWC = self.embed(x_BCHW).movedim(1, -1)
        return self.norm(run_blocks(self.blocks, x_BHWC, recompute=self.recompute)).movedim(-1, 1)


def cells(side: int, stride: int) -> int:
    """Cells along a side: the stem rounds up, then down; all that follows rounds up."""
    return ceil_div((side + 1) // 4, stride // 4)


def init(module: nn.Module) -> None:
    """SMT's initialisation.

    | module | value |
    | --- | --- |
    | linear layers | weights normal, std 0.02; biases 0 |
    | convolutions | weights normal, variance 2 / fan-out; biases 0 |
    | layer scales | `init_values` |
    | LayerNorm, BatchNorm | gain 1, bias 0 |
    """
    init_linear(module)
    if isinstance(module, nn.Conv2d):
        height, width = module.kernel_size
        fan_out = height * width * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    if isinstance(module, LayerScale):
        module.reset_parameters()


# the source spares parameters that its networks do not have, so nothing; norms are on the main path in both forms
FAMILY = Family("smt", init, cells, classifier_only=(r"head\.",), dense_only=(), squash_from=384)


def mixer(design: Design, stage: int, block: int) -> nn.Module:
    """Modulation in the first two stages, attention in the last, in the third by turns."""
    width = design.widths[stage]
    if stage < 2 or (stage == 2 and block % 2 == 0):
        return ScaleAwareModulation(width)
    return LocalGlobalAttention(width, HEADS[stage])


def stages(design: Design, drop_path_rate: float, init_values: float | None) -> list[Stage]:
    """The stages of either form.

    Raises:
        ValueError: layer scales that begin below 0, or with no number.
    """
    first = design.init_values if init_values is None else init_values
    if not 0 <= first < inf:
        raise ValueError(f"init_values is what layer scales begin with, or 0 for none; got {first}")
    out = []
    rates = drop_path_rates(drop_path_rate, design.depths)
    for i, width in enumerate(design.widths):
        blocks = [Block(width, mixer(design, i, j), design.ratios[i], first, rate) for j, rate in enumerate(rates[i])]
        out.append(Stage(embed(design.widths[i - 1], width) if i else nn.Identity(), blocks, width))
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
    init_values: float | None = None,
) -> Classifier:
    """SMT as its source trains it, for images of any size.

    Args:
        num_classes: 0 gives pooled features.
        img_size: pixels, a side or (H, W); only recorded, the network is the same for all sizes. None: the design's.
        drop_rate: dropout on the pooled features.
        drop_path_rate: share of branches that the last block drops in training; grows linearly from 0.
        global_pool: "avg"; "" with num_classes=0 gives the last map.
        init_values: what the layer scales of both branches begin with; 0: no layer scales; None: as the source's
            configurations have it, 1e-4 in smt_large and none in the others. A checkpoint fits a network with layer
            scales if it has them (`gamma_1`, `gamma_2`), and one without if it does not.
    """
    return Classifier(
        FAMILY,
        Stem(in_chans, design.widths[0], design.kernel),
        stages(design, drop_path_rate, init_values),
        design.levels(),
        nn.Identity(),
        num_classes=num_classes,
        in_chans=in_chans,
        img_size=sides(design.img_size if img_size is None else img_size),
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
    init_values: float | None = None,
) -> Dense:
    """SMT as its source's detectors and segmentors have it: the map after each stage's norm, four in all.

    Every key of a classifier's checkpoint but the head is read, the convolutions of values in attention included, which
    the source's copies lose. Stochastic depth drops whole branches, as in the classifier, where those copies drop
    single numbers. Their large network has no layer scales: `init_values=0` takes its files.

    Args:
        img_size: pixels; only recorded. None: the design's.
        drop_path_rate, init_values: as for the classifier.
        out_indices: which maps come out; None: all four.
    """
    return Dense(
        FAMILY,
        Stem(in_chans, design.widths[0], design.kernel),
        stages(design, drop_path_rate, init_values),
        design.levels(),
        None,
        out_indices=out_indices,
        in_chans=in_chans,
        img_size=sides(design.img_size if img_size is None else img_size),
    )


DESIGNS = {
    "smt_tiny": Design(widths=(64, 128, 256, 512), depths=(2, 2, 8, 1), ratios=(4, 4, 4, 2), kernel=3),
    "smt_small": Design(widths=(64, 128, 256, 512), depths=(3, 4, 18, 2), ratios=(4, 4, 4, 2), kernel=3),
    "smt_base": Design(widths=(64, 128, 256, 512), depths=(4, 6, 28, 2), ratios=(8, 6, 4, 2), kernel=7),
    "smt_large": Design(
        widths=(96, 192, 384, 768), depths=(4, 6, 28, 4), ratios=(8, 6, 4, 2), kernel=7, init_values=1e-4
    ),
}
DESIGNS["smt_large_384"] = replace(DESIGNS["smt_large"], img_size=384)  # the same weights fit both

for _name, _design in DESIGNS.items():
    registry.add(
        _name,
        classifier=partial(classifier, _design),
        dense=partial(dense, _design),
        aliases=() if _name == "smt_large_384" else (f"{_name}_224",),
    )
