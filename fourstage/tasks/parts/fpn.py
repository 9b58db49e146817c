"""Feature pyramid network, https://arxiv.org/abs/1612.03144. B images, C channels, H x W cells."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from fourstage.backbones.layers import Level
from fourstage.ops.pointwise import convolve
from fourstage.ops.pyramid import conv_of_sum

Extra = Literal["pool", "input", "lateral", "output"]


class FPN(nn.Module):
    """Feature maps of one width, each with what the coarser ones hold added to it.

    1x1 convolutions make the widths equal, the sum of the coarser maps is added to each map by nearest neighbours, and
    3x3 convolutions follow; all with bias, no norm, no activation.

    Args:
        levels: of the maps that come in, in descending resolution.
        out_channels: of every output.
        num_outs: number of outputs; those beyond the maps that are used are each half as large as the one before.
        start_level: index of the first map that is used.
        extra: where the outputs beyond come from. "pool": every second cell of the last output. Otherwise 3x3
            convolutions of stride 2, one after the other, of the last map as it came in "input", after its 1x1
            convolution and additions "lateral", or of its output "output".

    Attributes:
        levels: of the outputs.

    Raises:
        ValueError: no map is used, or fewer outputs than maps are asked for.
    """

    def __init__(
        self,
        levels: Sequence[Level],
        out_channels: int = 256,
        num_outs: int = 5,
        *,
        start_level: int = 0,
        extra: Extra = "pool",
    ) -> None:
        super().__init__()
        used = tuple(levels)[start_level:]
        if not used or num_outs < len(used):
            raise ValueError(
                f"the pyramid reads {len(used)} maps; got num_outs={num_outs}; give at least one map, and num_outs of "
                "at least as many"
            )
        strides = [level.stride for level in used]
        if any(b <= a for a, b in pairwise(strides)):
            raise ValueError(
                f"maps of strides {', '.join(map(str, strides))} are not a pyramid, where each map is coarser than the "
                "one before; choose a backbone whose strides grow, or one of these maps with backbone_args.out_indices"
            )
        self.start_level, self.extra = start_level, extra
        last, more = used[-1], num_outs - len(used)
        self.laterals = nn.ModuleList(nn.Conv2d(level.channels, out_channels, 1) for level in used)
        self.outputs = nn.ModuleList(nn.Conv2d(out_channels, out_channels, 3, padding=1) for _ in used)
        if extra != "pool":
            widths = [last.channels if extra == "input" else out_channels, *[out_channels] * more]
            self.outputs.extend(nn.Conv2d(width, out_channels, 3, stride=2, padding=1) for width in widths[:more])
        strides = [level.stride for level in used] + [last.stride * 2 ** (i + 1) for i in range(more)]
        self.levels = tuple(Level(out_channels, stride) for stride in strides)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights: Xavier's uniform; biases: 0."""
        for conv in (*self.laterals, *self.outputs):
            assert isinstance(conv, nn.Conv2d)
            nn.init.xavier_uniform_(conv.weight)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """One (B, level.channels, H_i, W_i) per entry of the `levels` that come in to one per entry of our own."""
        if len(self.laterals) == 1:
            return self._from(0, maps)[1]
        sum_BDhw, outs = self.coarser(maps)
        x_BCHW = maps[self.start_level]
        return [conv_of_sum(self.laterals[0], self.outputs[0], x_BCHW, sum_BDhw), *outs]

    def coarser(self, maps: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return the sum that the first map's lateral convolution is added to, and all outputs but the first."""
        return self._from(1, maps)

    def _from(self, first: int, maps: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return the top-down sum at the used map number `first`, and all outputs from there on."""
        used, n, outputs = list(maps)[self.start_level :], len(self.laterals), list(self.outputs)
        laterals = list(self.laterals)[first:]
        sums = [convolve(conv, x_BCHW) for conv, x_BCHW in zip(laterals, used[first:], strict=True)]
        for i in range(len(sums) - 1, 0, -1):
            sums[i - 1] = sums[i - 1] + F.interpolate(sums[i], size=sums[i - 1].shape[-2:], mode="nearest")
        outs = [conv(x_BCHW) for conv, x_BCHW in zip(outputs[first:n], sums, strict=True)]
        if self.extra != "pool":
            x_BCHW = {"input": used[-1], "lateral": sums[-1], "output": outs[-1]}[self.extra]
            for conv in outputs[n:]:
                x_BCHW = conv(x_BCHW)
                outs.append(x_BCHW)
        while len(outs) < len(self.levels) - first:
            outs.append(F.max_pool2d(outs[-1], kernel_size=1, stride=2))
        return sums[0], outs
