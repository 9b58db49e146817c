"""A 3x3 convolution of maps that are first resized to one size, without making them as large.

The sum over channels and the resizing are both linear and touch different axes, so their order is free. Here each
coarse cell is summed over its channels once for each of the nine taps, and the results are carried to the fine cells by
two small matrices, across and down. A map of half the size costs a quarter of the products, one of a quarter a
sixteenth. The numbers are those of the plain order but for rounding.

B images, C channels in, O out, h x w cells of a coarse map, H x W of the finest.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourstage.ops.eager import plain_convs
from fourstage.tasks.parts.conv import ConvNormAct

TAPS = 3  # a side


class MergingConv(nn.Module):
    """A 3x3 convolution with norm and activation on several maps side by side, at the size of the first.

    Args:
        made: convolution, norm and activation, for the channels of all maps together.
        align_corners: of the resizing, which is bilinear.
    """

    def __init__(self, made: ConvNormAct, *, align_corners: bool = False) -> None:
        super().__init__()
        self.conv, self.norm, self.act, self.align_corners = made.conv, made.norm, made.act, align_corners

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """(B, C_i, h_i, w_i), C_i adding up to those of the convolution, to (B, O, h_0, w_0)."""
        if maps[0].device.type == "cpu" and plain_convs(self.conv):
            return self.act(self.norm(conv_of_resized(self.conv, maps, self.align_corners)))
        size = maps[0].shape[2:]
        resized = [F.interpolate(x, size=size, mode="bilinear", align_corners=self.align_corners) for x in maps[1:]]
        return self.act(self.norm(self.conv(torch.cat([maps[0], *resized], dim=1))))


def conv_of_resized(conv: nn.Conv2d, maps: Sequence[Tensor], align_corners: bool = False) -> Tensor:
    """`conv` on the concatenation of all maps, each first resized to the size of the first one, bilinear.

    Args:
        conv: 3x3, padding 1, stride 1, one group, for the channels of all maps together.
        maps: (B, C_i, h_i, w_i), at least one.
        align_corners: of the resizing.

    Returns:
        (B, O, h_0, w_0).
    """
    first_BCHW, *others = maps
    weights = conv.weight.split([x.shape[1] for x in maps], dim=1)
    out_BOHW = F.conv2d(first_BCHW, weights[0], conv.bias, padding=conv.padding)
    for x_BChw, weight_OCyx in zip(others, weights[1:], strict=True):
        out_BOHW = out_BOHW + _one(x_BChw, weight_OCyx, first_BCHW.shape[2:], align_corners)
    return out_BOHW


def conv_of_doubled(weight_OCyx: Tensor, x_BChw: Tensor) -> Tensor:
    """The convolution of a map whose every cell is first made two by two cells: (B, O, 2h, 2w).

    The same as a transposed convolution of stride 2. From a kernel of 3 x 3, each coarse cell adds to 4 x 4 fine ones:
    4 products for each fine cell and pair of channels instead of 9; from one of 5 x 5, 9 instead of 25.

    Args:
        weight_OCyx: kernel with odd sides that are the same; zeros lie around the map, half a kernel wide.
        x_BChw: (B, C, h, w).
    """
    reached = F.pad(weight_OCyx.flip(2, 3).transpose(0, 1), (1, 1, 1, 1))
    reached = reached[:, :, 1:] + reached[:, :, :-1]
    kernel = reached[..., 1:] + reached[..., :-1]
    return F.conv_transpose2d(x_BChw, kernel, stride=2, padding=weight_OCyx.shape[-1] // 2)


def _one(x_BChw: Tensor, weight_OCyx: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    images, channels, height, width = x_BChw.shape
    out = len(weight_OCyx)
    taps = weight_OCyx.permute(2, 3, 0, 1).reshape(-1, channels, 1, 1)  # down, across, O
    cells = F.conv2d(x_BChw, taps).permute(0, 2, 3, 1)
    cells = cells.reshape(images, height, width, TAPS, TAPS, out).permute(0, 1, 3, 2, 4, 5)  # B h down w across O
    across_Wx, down_Hy = (_carried(*ends, align_corners, cells) for ends in ((width, size[1]), (height, size[0])))
    rows = torch.matmul(across_Wx, cells.reshape(images * height * TAPS, width * TAPS, out))
    fine = torch.matmul(down_Hy, rows.reshape(images, height * TAPS, size[1] * out))
    return fine.reshape(images, *size, out).permute(0, 3, 1, 2)


def _carried(cells: int, to: int, align_corners: bool, like: Tensor) -> Tensor:
    """(to, cells * 3): what each cell and tap adds to each fine cell along an axis; zeros lie beyond its ends."""
    one = torch.eye(cells, dtype=like.dtype, device=like.device)
    fine = F.interpolate(one[None], size=to, mode="linear", align_corners=align_corners)[0].T
    padded = F.pad(fine, (0, 0, 1, 1))
    return torch.stack([padded[tap : tap + to] for tap in range(TAPS)], dim=-1).reshape(to, cells * TAPS)
