"""A neck that only brings maps to one width, as DETRs have it. B images, C channels, H x W cells."""

from collections.abc import Sequence
from functools import partial
from math import gcd

from torch import Tensor, nn

from fourstage.backbones.layers import Level
from fourstage.tasks.parts.conv import ConvNormAct
from fourstage.tasks.parts.settings import check_counts

GROUPS = 32  # of channels that share a norm; fewer in narrow necks, as one value alone has no variance


class ChannelMapper(nn.Module):
    """One 1x1 convolution and a group norm for each map; maps beyond those come from 3x3 convolutions of stride 2.

    Args:
        levels: of the maps that come in, in descending resolution.
        channels: of every output.
        num_outs: number of outputs. The first one beyond the maps is a convolution of the last map as it came in, each
            further one of the output before it.
        start_level: index of the first map that is used.
        bias: of the convolutions, as detrex and IDEA-Research have them. A norm over groups does not cancel them.

    Attributes:
        levels: of the outputs.

    Raises:
        ValueError: no map is used, or fewer outputs than maps are asked for.
    """

    def __init__(
        self,
        levels: Sequence[Level],
        channels: int = 256,
        num_outs: int = 4,
        *,
        start_level: int = 0,
        bias: bool = False,
    ) -> None:
        super().__init__()
        check_counts(channels=channels, num_outs=num_outs)
        used, self.start_level = list(levels)[start_level:], start_level
        if not used or num_outs < len(used):
            raise ValueError(f"{len(used)} maps cannot become {num_outs} outputs; ask for at least one for each map")
        build = partial(ConvNormAct, norm=partial(nn.GroupNorm, gcd(GROUPS, max(1, channels // 2))), bias=bias)
        self.convs = nn.ModuleList(build(level.channels, channels) for level in used)
        widths = [used[-1].channels, *[channels] * (num_outs - len(used))][: num_outs - len(used)]
        self.extra = nn.ModuleList(build(width, channels, 3, stride=2) for width in widths)
        strides = [*(level.stride for level in used), *(used[-1].stride * 2 ** (i + 1) for i in range(len(widths)))]
        self.levels = tuple(Level(channels, stride) for stride in strides)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """(B, C_i, H_i, W_i) for each of the backbone's levels to (B, channels, H_i, W_i) for each of `levels`."""
        used = maps[self.start_level :]
        outs = [conv(x_BCHW) for conv, x_BCHW in zip(self.convs, used, strict=True)]
        x_BCHW = used[-1]
        for conv in self.extra:
            x_BCHW = conv(x_BCHW)
            outs.append(x_BCHW)
        return outs
