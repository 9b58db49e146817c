"""Feature pyramid network, https://arxiv.org/abs/1612.03144. B images, C channels, H x W cells."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourstage.backbones.layers import Level
from fourstage.ops.eager import plain_convs
from fourstage.ops.shapes import known_true
from fourstage.tasks.parts.resized_conv import conv_of_doubled

Extra = Literal["pool", "input", "lateral", "output"]


class FPN(nn.Module):
    """Maps of one width from maps of several, each told what the coarser ones saw.

    1x1 convolutions make the widths equal, nearest neighbours carry every map down to the next finer one, and 3x3
    convolutions follow; all with bias, no norm, no activation.

    Args:
        levels: of the maps that come in, finest first.
        out_channels: of every map that goes out.
        num_outs: so many maps; those beyond the ones that come in are each half as large as the one before.
        start_level: index of the first map that is used.
        extra: what the maps beyond are made of. "pool": every second cell of the last map. Otherwise by 3x3
            convolutions of stride 2, one after the other, from the last map as it came "input", after its 1x1
            convolution "lateral", or as it goes out "output".

    Attributes:
        levels: of the maps that go out.

    Raises:
        ValueError: no map is left, or fewer go out than come in.
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
            raise ValueError(f"{len(used)} maps come in and {num_outs} go out; give num_outs of at least that, from 1")
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
        """One (B, level.channels, H_i, W_i) per entry of the `levels` that came in to one per entry of our own."""
        used = list(maps)[self.start_level :]
        if doubles(used) and self.joinable() and self._is_shorter(used[0].shape[1]):
            merged, outs = self.but_finest(maps)
            return [self._finest(used[0], merged), *outs]
        return self._from(used, 0)[1]

    def but_finest(self, maps: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """All that goes out but the finest map, and before them what the finest map would have added when doubled."""
        return self._from(list(maps)[self.start_level :], 1)

    def _from(self, used: Sequence[Tensor], first: int) -> tuple[Tensor, list[Tensor]]:
        """The map at `first` with what coarser ones saw, and all that goes out from there on."""
        n, outputs = len(used), list(self.outputs)
        laterals = [conv(x_BCHW) for conv, x_BCHW in zip(list(self.laterals)[first:], used[first:], strict=True)]
        for i in range(len(laterals) - 1, 0, -1):
            size = laterals[i - 1].shape[-2:]
            laterals[i - 1] = laterals[i - 1] + F.interpolate(laterals[i], size=size, mode="nearest")
        outs = [conv(x_BCHW) for conv, x_BCHW in zip(outputs[first:n], laterals, strict=True)]
        if self.extra != "pool":
            x_BCHW = {"input": used[-1], "lateral": laterals[-1], "output": outs[-1]}[self.extra]
            for conv in outputs[n:]:
                x_BCHW = conv(x_BCHW)
                outs.append(x_BCHW)
        while len(outs) < len(self.levels) - first:
            outs.append(F.max_pool2d(outs[-1], kernel_size=1, stride=2))
        return laterals[0], outs

    def joinable(self) -> bool:
        """Whether the convolutions of the finest map may be computed as one."""
        return plain_convs(self.laterals[0], self.outputs[0])

    def _is_shorter(self, channels: int) -> bool:
        """Whether `_finest` has fewer products than the plain order, from so many channels."""
        out = self.levels[0].channels
        return 9 * channels + 4 * out < channels + 9 * out

    def _finest(self, x_BCHW: Tensor, coarser_BDhw: Tensor) -> Tensor:
        """`outputs[0](laterals[0](x) + doubled coarser)` as a convolution of each.

        1x1 and 3x3 make one 3x3 convolution, and a doubled map is read by a transposed convolution where it is small.
        The lateral bias goes with the doubled map, which like it ends where the map ends.
        """
        output = self.outputs[0]
        assert isinstance(output, nn.Conv2d)
        weight_DC, bias_D = self.lateral_weights()
        weight_OCyx = torch.einsum("odyx,dc->ocyx", output.weight, weight_DC)
        near_BOHW = F.conv2d(x_BCHW, weight_OCyx, output.bias, padding=1)
        return near_BOHW + conv_of_doubled(output.weight, coarser_BDhw + bias_D[:, None, None])

    def lateral_weights(self) -> tuple[Tensor, Tensor]:
        """(D, C) and (D,) of the finest map's 1x1 convolution."""
        lateral = self.laterals[0]
        assert isinstance(lateral, nn.Conv2d)
        assert lateral.bias is not None
        return lateral.weight[:, :, 0, 0], lateral.bias


def doubles(used: Sequence[Tensor]) -> bool:
    """Whether the finest of these maps has exactly twice the sides of the next, and lies on a CPU.

    There a doubled map is read by a transposed convolution; on GPUs that was not measured.
    """
    if len(used) == 1 or used[0].device.type != "cpu":
        return False
    height, width = used[1].shape[-2:]
    return known_true(used[0].shape[-2] == 2 * height) and known_true(used[0].shape[-1] == 2 * width)
