"""Dynamic head, https://arxiv.org/abs/2106.08322: blocks that mix the maps of a pyramid.

B images, C channels, H x W cells; T taps of a kernel, O = 2T offsets. A block reads each map and its neighbours at
learned places, weighs the three, and lets the sum choose its activation.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourstage.ops.deformable_conv import deformable_conv
from fourstage.ops.shapes import known_true
from fourstage.tasks.parts.settings import check_counts, check_groups

GROUPS = 16  # of the norms
TAPS = 9  # of the 3x3 kernels


class DyHead(nn.Module):
    """Blocks over the maps of a pyramid, all of one width; map for map the same shapes come out.

    Args:
        channels: C, a multiple of 16 from 32 on.
        blocks: one after the other.
        zero_offsets: whether the layer of the offsets starts with zeros, so that deformable convolutions read their
            regular places at first; otherwise it starts as in the published code, with a normal draw.

    Raises:
        ValueError: no block, or channels that do not split into 16 groups of at least two.
    """

    def __init__(self, channels: int, blocks: int = 6, *, zero_offsets: bool = True) -> None:
        super().__init__()
        check_counts(blocks=blocks)
        check_groups("DyHead", channels, GROUPS)
        self.blocks = nn.ModuleList(DyHeadBlock(channels, zero_offsets=zero_offsets) for _ in range(blocks))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """(B, C, H_i, W_i) for each level to the same."""
        out = list(maps)
        for block in self.blocks:
            out = block(out)
        return out


class DyHeadBlock(nn.Module):
    """Attention over space, over scales and over channels, one after the other.

    Args:
        channels: C.
        zero_offsets: see `DyHead`.
    """

    def __init__(self, channels: int, *, zero_offsets: bool = True) -> None:
        super().__init__()
        self.finer, self.same, self.coarser = (DeformableConv(channels, stride) for stride in (2, 1, 1))
        self.offsets = nn.Conv2d(channels, 3 * TAPS, 3, padding=1)
        self.weigh = nn.Conv2d(channels, 1, 1)
        self.activate = DynamicReLU(channels)
        self.zero_offsets = zero_offsets
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Convolutions: normal, std 0.01, biases 0; offsets all 0 where `zero_offsets`; deformable ones: their own."""
        for conv in self.modules():
            if isinstance(conv, nn.Conv2d):
                nn.init.normal_(conv.weight, std=0.01)
                assert conv.bias is not None
                nn.init.zeros_(conv.bias)
        if self.zero_offsets:
            nn.init.zeros_(self.offsets.weight)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """(B, C, H_i, W_i) for each level to the same."""
        out = []
        for i, x_BCHW in enumerate(maps):
            offset_BOHW, mask_BTHW = self.offsets(x_BCHW).split([2 * TAPS, TAPS], dim=1)
            mask_BTHW, size = mask_BTHW.sigmoid(), (x_BCHW.shape[-2], x_BCHW.shape[-1])
            views = [self.same(x_BCHW, offset_BOHW, mask_BTHW)]
            if i > 0:
                views.append(_resized(self.finer(maps[i - 1], offset_BOHW, mask_BTHW), size))
            if i + 1 < len(maps):
                views.append(_resized(self.coarser(maps[i + 1], offset_BOHW, mask_BTHW), size))
            weighed = [view_BCHW * self._weight(view_BCHW) for view_BCHW in views]
            out.append(self.activate(torch.stack(weighed).sum(dim=0) / len(views)))
        return out

    def _weight(self, x_BCHW: Tensor) -> Tensor:
        """Return (B, 1, 1, 1), from 0 to 1."""
        return F.hardsigmoid(self.weigh(x_BCHW.mean(dim=(2, 3), keepdim=True)).relu())


class DeformableConv(nn.Module):
    """A 3x3 deformable convolution whose offsets come from another map, and a norm over groups of channels.

    Args:
        channels: in and out.
        stride: of the convolution.
    """

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, channels, 3, 3))
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.stride = stride
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights: uniform up to one over the root of the number of inputs."""
        limit = 1 / math.sqrt(self.weight[0].numel())
        nn.init.uniform_(self.weight, -limit, limit)

    def forward(self, x_BCHW: Tensor, offset_BOHW: Tensor, mask_BTHW: Tensor) -> Tensor:
        """Return (B, C, ceil(H / stride), ceil(W / stride)). Offsets and masks may be of another size."""
        size = (-(-x_BCHW.shape[-2] // self.stride), -(-x_BCHW.shape[-1] // self.stride))
        offset_BOhw, mask_BThw = (as_list_of(given, size) for given in (offset_BOHW, mask_BTHW))
        return self.norm(deformable_conv(x_BCHW, self.weight, offset_BOhw, mask_BThw, stride=self.stride))


def as_list_of(x_BKHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Return (B, K, h, w) of `size` from the first values of each image, as if the map were a list.

    The kernel of the published networks reads the offsets of a map as those of a smaller one in this way, and their
    weights have learned with it. Where a list is too short, which their maps never have, the map is resized.
    """
    (height, width), channels = size, x_BKHW.shape[1]
    if _is_of(x_BKHW, size):
        return x_BKHW
    if known_true(x_BKHW.shape[-2] * x_BKHW.shape[-1] < height * width):
        return _resized(x_BKHW, size)
    return x_BKHW.flatten(1)[:, : channels * height * width].unflatten(1, (channels, height, width))


def _resized(x_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Return (B, C, h, w) of `size`; its corners are those of the map."""
    if _is_of(x_BCHW, size):
        return x_BCHW
    return F.interpolate(x_BCHW, size, mode="bilinear", align_corners=True)


class DynamicReLU(nn.Module):
    """The larger of two lines in each value, whose slopes and offsets follow from the mean of the map (DyReLU-B).

    Source: https://arxiv.org/abs/2003.10027; ranges as in the published code of DyHead.

    Args:
        channels: C.
        squeeze: C over the channels in between.
    """

    def __init__(self, channels: int, squeeze: int = 4) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, channels // squeeze, 1)
        self.expand = nn.Conv2d(channels // squeeze, 4 * channels, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) to the same."""
        mean_BC11 = x_BCHW.mean(dim=(2, 3), keepdim=True)
        lines = F.hardsigmoid(self.expand(self.squeeze(mean_BC11).relu())) - 0.5
        slope, offset, other_slope, other_offset = lines.chunk(4, dim=1)
        return torch.maximum(x_BCHW * (2 * slope + 1) + offset, x_BCHW * (2 * other_slope) + other_offset)


def _is_of(x_BCHW: Tensor, size: tuple[int, int]) -> bool:
    """Return whether a map has this size, in every graph that is traced."""
    return known_true(x_BCHW.shape[-2] == size[0]) and known_true(x_BCHW.shape[-1] == size[1])
