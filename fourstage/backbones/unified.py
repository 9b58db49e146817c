"""One architecture for many token mixers (the STM study, https://arxiv.org/abs/2211.05781, OpenGVLab/STM-Evaluation).

Networks of one size differ in the mixer and in what belongs to it. docs/mixers.md says how to put in another one.

The study also has two networks as their authors drew them, in the same frame of blocks: official_swin_tiny
(https://arxiv.org/abs/2103.14030) and official_pvt_v2_b0 (PVTv2, https://arxiv.org/abs/2106.13797). They differ from
the originals in their layer scales and in the epsilon of most norms. No weights of them were published.

B images, C channels, H x W cells. Stages take and return (B, C, H, W) views of channels-last memory.

Maps have ceil(H / stride) cells a side, as the source's 3x3 convolutions of stride 2 give them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import inf

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourstage import registry
from fourstage.backbones.base import Classifier, Dense, Family
from fourstage.backbones.layer_scale import LayerScale, scaled, takes_scale
from fourstage.backbones.layers import (
    ChannelsLast,
    LayerNorm2d,
    Level,
    Mlp,
    drop_path,
    drop_path_rates,
    run_blocks,
    sides,
)
from fourstage.backbones.mixers.build import POSITIONED, Mixer, Place, build_mixer
from fourstage.backbones.mixers.halo import HaloMixer
from fourstage.backbones.mixers.window import WindowAttention
from fourstage.backbones.swin import PatchEmbed, PatchMerge
from fourstage.ops.depthwise_mlp import depthwise_mlp
from fourstage.ops.matmul import linear
from fourstage.ops.shapes import ceil_div, known_true

HEAD_RATIO = 1.5  # channels of the unified head for each of the last map


class Norm(LayerNorm2d):
    """The norm of everything but blocks."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, eps=1e-6)


class Stem(ChannelsLast):
    """Image to a quarter of its size: (B, in_chans, H, W) to (B, C, ceil(H / 4), ceil(W / 4)), then channels-last."""

    def __init__(self, in_chans: int, width: int) -> None:
        super().__init__(
            [
                nn.Conv2d(in_chans, width // 2, 3, stride=2, padding=1),
                Norm(width // 2),
                nn.GELU(),
                nn.Conv2d(width // 2, width, 3, stride=2, padding=1),
                Norm(width),
            ]
        )


class Down(nn.Sequential):
    """(B, C, H, W) to (B, C', ceil(H / 2), ceil(W / 2))."""

    def __init__(self, before: int, width: int) -> None:
        conv = nn.Conv2d(before, width, 3, stride=2, padding=1, bias=False)
        super().__init__(conv, Norm(width))


class OverlapEmbed(ChannelsLast):
    """PVTv2's stem and down-sampling: overlapping patches. (B, C, H, W) to (B, C', ceil(H / s), ceil(W / s))."""

    def __init__(self, before: int, width: int, *, patch: int, stride: int) -> None:
        conv = nn.Conv2d(before, width, patch, stride=stride, padding=patch // 2)
        super().__init__([conv, Norm(width)])


class SwinStem(PatchEmbed):
    """Swin's patch embedding with the epsilon of this source."""

    def __init__(self, in_chans: int, width: int) -> None:
        super().__init__(in_chans, width)
        self[1] = Norm(width)


class SwinDown(nn.Module):
    """Swin's merge of four neighbours: (B, C, H, W) to (B, 2C, ceil(H / 2), ceil(W / 2))."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        assert width == 2 * before, "a merge doubles the channels"
        self.merge = PatchMerge(before)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.merge(x_BCHW.movedim(1, -1)).movedim(-1, 1)


class Head(nn.Module):
    """What the last map passes before it is pooled: (B, C, H, W) to (B, 1.5 C, H, W)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        width = int(HEAD_RATIO * dim)
        self.expand = nn.Linear(dim, width, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return F.gelu(self.norm(linear(self.expand, x_BCHW.movedim(1, -1)).movedim(-1, 1)))


@dataclass(frozen=True)
class Shell:
    """What surrounds the blocks."""

    stem: Callable[[int, int], nn.Module] = Stem  # channels of the image, of the first map
    down: Callable[[int, int], nn.Module] = Down  # channels before and after
    stage_norm: Callable[[int], nn.Module] = Norm  # after each stage of the classifier
    final: Callable[[int], nn.Module] = Head
    head_ratio: float = HEAD_RATIO  # channels that `final` gives for each that it takes


UNIFIED = Shell()
SWIN = Shell(SwinStem, SwinDown, stage_norm=nn.Identity, final=Norm, head_ratio=1)
PVT_V2 = Shell(
    stem=partial(OverlapEmbed, patch=7, stride=4),
    down=partial(OverlapEmbed, patch=3, stride=2),
    final=nn.Identity,
    head_ratio=1,
)


class DecayedScale(LayerScale):
    """A layer scale that weight decay reaches: four axes, as this source stores some of its own."""

    def __init__(self, dim: int, value: float) -> None:
        super().__init__(dim, value)
        self.scale = nn.Parameter(torch.empty(1, 1, 1, dim))
        self.reset_parameters()


class DepthwiseMlp(nn.Module):
    """PVTv2's MLP: between widening and GELU each channel looks at its 3 x 3 neighbours. (B, H, W, C) to the same."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Linear(dim, hidden)
        self.spatial = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.reduce = nn.Linear(hidden, dim)

    @takes_scale
    def forward(self, x_BHWC: Tensor, scale_C: Tensor | None = None) -> Tensor:
        return depthwise_mlp(self.expand, self.spatial, self.reduce, x_BHWC, scale_C)


@dataclass(frozen=True)
class Design:
    """What makes one unified network differ from another. Sizes by stage."""

    mixer: str
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    eps: float  # of the norms inside blocks
    mlp_ratios: tuple[int, ...] = (4, 4, 4, 4)
    mlp: Callable[[int, int], nn.Module] = Mlp
    scale: Callable[[int, float], nn.Module] = LayerScale
    shell: Shell = UNIFIED

    def levels(self) -> list[Level]:
        return [Level(width, 4 * 2**i) for i, width in enumerate(self.widths)]

    def of_widths(self, widths: Sequence[int] | None) -> "Design":
        """Return the design with other widths; None: as it is. Raises ValueError where they do not fit the heads."""
        if widths is None:
            return self
        fit = len(widths) == len(self.heads) and all(
            isinstance(width, int) and width > 0 and width % heads == 0
            for width, heads in zip(widths, self.heads, strict=True)
        )
        if not fit:
            raise ValueError(f"widths must be four multiples of the heads, {list(self.heads)}; got {list(widths)}")
        return replace(self, widths=tuple(widths))


class Block(nn.Module):
    """The mixer, then an MLP, each on its normed input, scaled and added to what came in. (B, H, W, C) to the same."""

    def __init__(self, design: Design, mixer: nn.Module, place: Place, init_values: float, rate: float) -> None:
        super().__init__()
        dim = place.dim
        self.norm1 = nn.LayerNorm(dim, eps=design.eps)
        self.mixer = mixer
        self.scale1 = design.scale(dim, init_values) if init_values else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=design.eps)
        self.mlp = design.mlp(dim, design.mlp_ratios[place.stage] * dim)
        self.scale2 = design.scale(dim, init_values) if init_values else nn.Identity()
        self.drop_path = drop_path(rate)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        x_BHWC = x_BHWC + self.mixed(x_BHWC)
        return x_BHWC + self.drop_path(scaled(self.mlp, self.scale2, self.norm2(x_BHWC)))

    def mixed(self, x_BHWC: Tensor) -> Tensor:
        """The mixer's branch."""
        return self.drop_path(scaled(self.mixer, self.scale1, self.norm1(x_BHWC)))


class PositionedBlock(Block):
    """A block that first adds a position embedding: U-PVT's first one of a stage.

    In the classifier it stays on the main path; in the dense form only the mixer reads it, as in the source's
    detectors. For maps of another size than the embedding's it is resized bilinearly, corners to corners.
    """

    def __init__(self, design: Design, mixer: nn.Module, place: Place, init_values: float, rate: float) -> None:
        super().__init__(design, mixer, place, init_values, rate)
        self.dense = place.dense
        self.position = nn.Parameter(torch.empty(1, place.dim, *place.map_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The position embedding: normal with std 0.02."""
        nn.init.trunc_normal_(self.position, std=0.02)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        if not self.dense:
            return super().forward(x_BHWC + self.position_at(x_BHWC))
        x_BHWC = x_BHWC + self.mixed(x_BHWC + self.position_at(x_BHWC))
        return x_BHWC + self.drop_path(scaled(self.mlp, self.scale2, self.norm2(x_BHWC)))

    def position_at(self, x_BHWC: Tensor) -> Tensor:
        """(1, H, W, C) for a map of this size."""
        height, width = x_BHWC.shape[1:3]
        position = self.position
        if not (known_true(height == position.shape[2]) and known_true(width == position.shape[3])):
            position = F.interpolate(position, size=(height, width), mode="bilinear", align_corners=True)
        return position.movedim(1, -1)


class Stage(nn.Module):
    """Down-sampling (but not in the first stage), blocks, then a norm. (B, C, H, W) to (B, C', H', W')."""

    def __init__(self, embed: nn.Module, blocks: Sequence[Block], norm: nn.Module) -> None:
        super().__init__()
        self.embed = embed
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm
        self.recompute = False

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BHWC = run_blocks(self.blocks, self.embed(x_BCHW).movedim(1, -1), recompute=self.recompute)
        return self.norm(x_BHWC.movedim(-1, 1))


def init(module: nn.Module) -> None:
    """The initialisation of the unified architecture, the same for all that mixers are made of.

    | module | value |
    | --- | --- |
    | linear layers and convolutions | weights normal, std 0.02; biases 0 |
    | layer scales | `init_values` |
    | position embeddings of U-PVT, bias tables of U-Swin | normal, std 0.02 |
    | tables of U-HaloNet | normal, std 1 / sqrt(channels of a head) |
    | LayerNorm, BatchNorm | gain 1, bias 0 |
    | other parameters of a mixer of your own | as it builds them |
    """
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, LayerScale | PositionedBlock | WindowAttention | HaloMixer):
        module.reset_parameters()


FAMILY = Family(
    "unified",
    init,
    ceil_div,
    no_decay=("table",),
    classifier_only=(r"stages\.\d+\.norm\.", r"final\.", r"head\."),
    squash_from=384,
)


def stages(
    design: Design,
    img_size: tuple[int, int],
    drop_path_rate: float,
    mixer: Mixer | None,
    init_values: float,
    *,
    dense: bool,
) -> list[Stage]:
    """The stages of either form. `img_size` sizes position embeddings, and windows in the classifier's small maps.

    Raises:
        ValueError: layer scales that begin below 0, or with no number.
    """
    if not 0 <= init_values < inf:
        raise ValueError(f"init_values is what layer scales begin with, or 0 for none; got {init_values}")
    mixer = design.mixer if mixer is None else mixer
    out = []
    rates = drop_path_rates(drop_path_rate, design.depths)
    for i, level in enumerate(design.levels()):
        map_size = ceil_div(img_size[0], level.stride), ceil_div(img_size[1], level.stride)
        blocks = []
        for j, rate in enumerate(rates[i]):
            place = Place(level.channels, design.heads[i], i, j, map_size, dense)
            block = PositionedBlock if j == 0 and mixer in POSITIONED else Block
            blocks.append(block(design, build_mixer(mixer, place), place, init_values, rate))
        embed = design.shell.down(design.widths[i - 1], level.channels) if i else nn.Identity()
        out.append(Stage(embed, blocks, nn.Identity() if dense else design.shell.stage_norm(level.channels)))
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
    mixer: Mixer | None = None,
    widths: Sequence[int] | None = None,
    init_values: float = 1e-6,
) -> Classifier:
    """A unified network as the STM study trains it, for images of any size.

    Where windows or blocks do not fit a map, padded cells are invisible, so that their content changes nothing.

    Args:
        num_classes: 0 gives pooled features.
        img_size: pixels, a side or (H, W). Sizes U-PVT's position embeddings, and U-Swin's windows in maps that are
            smaller than these.
        drop_rate: dropout on the pooled features.
        drop_path_rate: share of branches that the last block drops in training; grows linearly from 0.
        global_pool: "avg"; "" with num_classes=0 gives the last map.
        mixer: another token mixer for all blocks, by name or as a class; see docs/mixers.md.
        widths: channels of the four maps instead of the design's, each a multiple of the heads of its stage.
        init_values: what the scales of both branches begin with; 0: no scales.
    """
    size, design = sides(img_size), design.of_widths(widths)
    return Classifier(
        FAMILY,
        design.shell.stem(in_chans, design.widths[0]),
        stages(design, size, drop_path_rate, mixer, init_values, dense=False),
        design.levels(),
        design.shell.final(design.widths[-1]),
        num_classes=num_classes,
        in_chans=in_chans,
        img_size=size,
        drop_rate=drop_rate,
        global_pool=global_pool,
        num_features=int(design.shell.head_ratio * design.widths[-1]),
    )


def dense(
    design: Design,
    *,
    in_chans: int = 3,
    img_size: int | tuple[int, int] = 224,
    drop_path_rate: float = 0.0,
    out_indices: Sequence[int] | None = None,
    mixer: Mixer | None = None,
    widths: Sequence[int] | None = None,
    init_values: float = 1e-6,
) -> Dense:
    """A unified network as the source's detectors have it: norms on the maps that come out, none on the main path.

    Differences inside blocks: U-Swin and U-HaloNet attend to the zeros that fill up the last windows, U-Swin shifts in
    maps of one window too, and only the mixer reads U-PVT's position embedding. The arguments are those of
    `classifier`; `img_size` sizes U-PVT's position embeddings.

    Args:
        out_indices: which maps come out; None: all four.
    """
    size, design = sides(img_size), design.of_widths(widths)
    return Dense(
        FAMILY,
        design.shell.stem(in_chans, design.widths[0]),
        stages(design, size, drop_path_rate, mixer, init_values, dense=True),
        design.levels(),
        Norm,
        out_indices=out_indices,
        in_chans=in_chans,
        img_size=size,
    )


def _doubling(width: int) -> tuple[int, ...]:
    return tuple(width * 2**i for i in range(4))


def _convnext(width: int, depths: tuple[int, ...]) -> Design:
    return Design("convnext", _doubling(width), depths, _doubling(width // 32), eps=1e-6, scale=DecayedScale)


def _dcn_v3(width: int, depths: tuple[int, ...]) -> Design:
    return Design("dcn_v3", _doubling(width), depths, _doubling(width // 16), eps=1e-5)


def _halo(width: int, depths: tuple[int, ...]) -> Design:
    return Design("halo", _doubling(width), depths, _doubling(width // 32), eps=1e-5, scale=DecayedScale)


def _swin(width: int, depths: tuple[int, ...]) -> Design:
    return Design("swin", _doubling(width), depths, _doubling(width // 32), eps=1e-6)


PVT_MICRO = Design("pvt", (32, 64, 160, 256), (2, 2, 3, 2), heads=(1, 2, 5, 8), eps=1e-5, mlp_ratios=(8, 8, 4, 4))
PVT_TINY = replace(PVT_MICRO, widths=(64, 128, 320, 512), depths=(3, 4, 9, 3))
PVT_SMALL = replace(PVT_TINY, depths=(3, 4, 21, 3))
PVT_BASE = replace(PVT_TINY, depths=(3, 8, 45, 3), mlp_ratios=(4, 4, 4, 4))
PVT_V2_MICRO = replace(PVT_MICRO, mixer="pvt_v2", mlp=DepthwiseMlp)

DESIGNS = {
    "unified_convnext_micro": _convnext(32, (3, 3, 8, 3)),
    "unified_convnext_tiny": _convnext(96, (2, 2, 9, 2)),
    "unified_convnext_small": _convnext(96, (2, 2, 24, 2)),
    "unified_convnext_base": _convnext(128, (2, 2, 24, 2)),
    "unified_dcn_v3_micro": _dcn_v3(32, (2, 2, 9, 2)),
    "unified_dcn_v3_tiny": _dcn_v3(64, (4, 4, 18, 4)),
    "unified_dcn_v3_small": _dcn_v3(80, (4, 4, 21, 4)),
    "unified_dcn_v3_base": _dcn_v3(112, (4, 4, 21, 4)),
    "unified_dcn_v3_large": _dcn_v3(160, (5, 5, 22, 5)),
    "unified_halo_micro": _halo(32, (2, 2, 9, 2)),
    "unified_halo_tiny": _halo(96, (2, 2, 6, 2)),
    "unified_halo_small": _halo(96, (2, 2, 18, 2)),
    "unified_halo_base": _halo(128, (2, 2, 18, 2)),
    "unified_pvt_micro": PVT_MICRO,
    "unified_pvt_tiny": PVT_TINY,
    "unified_pvt_small": PVT_SMALL,
    "unified_pvt_base": PVT_BASE,
    "unified_pvt_v2_micro": PVT_V2_MICRO,
    "unified_pvt_v2_tiny": replace(PVT_V2_MICRO, widths=PVT_TINY.widths, depths=(3, 3, 9, 3)),
    "unified_pvt_v2_small": replace(PVT_V2_MICRO, widths=PVT_TINY.widths, depths=(3, 3, 21, 3)),
    "unified_pvt_v2_base": replace(
        PVT_V2_MICRO, widths=PVT_TINY.widths, depths=(3, 6, 45, 3), mlp_ratios=PVT_BASE.mlp_ratios
    ),
    "unified_swin_micro": _swin(32, (2, 2, 9, 2)),
    "unified_swin_tiny": _swin(96, (2, 2, 6, 2)),
    "unified_swin_small": _swin(96, (2, 2, 18, 2)),
    "unified_swin_base": _swin(128, (2, 2, 18, 2)),
    # Ours, published nowhere: a network for small data, to compare mixers on. `mixer=` puts in another one.
    "unified_pico": Design("convnext", _doubling(32), (1, 1, 2, 1), heads=(1, 2, 4, 8), eps=1e-6),
    "official_swin_tiny": replace(_swin(96, (2, 2, 6, 2)), shell=SWIN),
    "official_pvt_v2_b0": replace(PVT_V2_MICRO, depths=(2, 2, 2, 2), shell=PVT_V2),
}
NAMES_IN_CHECKPOINTS = {"unified_halo": "unified_halonet", "unified_dcn_v3": "unified_internimage"}

for _name, _design in DESIGNS.items():
    _begin, _, _size = _name.rpartition("_")
    registry.add(
        _name,
        classifier=partial(classifier, _design),
        dense=partial(dense, _design),
        aliases=(f"{NAMES_IN_CHECKPOINTS[_begin]}_{_size}",) if _begin in NAMES_IN_CHECKPOINTS else (),
    )
