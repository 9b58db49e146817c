"""A 3x3 convolution of several maps that are first resized to the size of the first one.

The sum over channels and the resizing are both linear and touch different axes, so their order is free. The fast path
sums each coarse cell over its channels once for each of the nine taps of the kernel, and carries the results to the
fine cells by two small matrices, across and down. A map of half the size costs a quarter of the products, one of a
quarter a sixteenth: UPerNet's last merging convolution takes 1.5 times as long in the plain form.

B images, C channels in, O out, h x w cells of a coarse map, H x W of the first one.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourstage.ops.eager import may_run_fast
from fourstage.ops.layer_checks import is_conv

TAPS = 3  # of the kernel, on each side


def conv_of_resized(conv: nn.Module, maps: Sequence[Tensor], align_corners: bool = False) -> Tensor:
    """Return the convolution of all maps, resized to the first one's size bilinearly and concatenated.

    Args:
        conv: for the channels of all maps together; the fast path takes 3x3, padding 1, stride 1, one group.
        maps: (B, C_i, h_i, w_i), at least one.
        align_corners: of the resizing.

    Returns:
        (B, O, h_0, w_0) where the convolution keeps sizes.
    """
    if may_run_fast(*maps, modules=[conv]) and is_conv(conv, TAPS, sum(x.shape[1] for x in maps)):
        return conv_then_resize(conv, maps, align_corners)
    return resize_then_conv(conv, maps, align_corners)


def resize_then_conv(conv: nn.Module, maps: Sequence[Tensor], align_corners: bool) -> Tensor:
    """Compute the plain form."""
    size = maps[0].shape[2:]
    resized = [F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners) for x in maps[1:]]
    return conv(torch.cat([maps[0], *resized], dim=1))


def conv_then_resize(conv: nn.Conv2d, maps: Sequence[Tensor], align_corners: bool) -> Tensor:
    """Compute the fast form."""
    first_BCHW, *others = maps
    weights = conv.weight.split([x.shape[1] for x in maps], dim=1)
    out_BOHW = F.conv2d(first_BCHW, weights[0], conv.bias, padding=1)
    for x_BChw, weight_OCyx in zip(others, weights[1:], strict=True):
        out_BOHW = out_BOHW + _share_of(x_BChw, weight_OCyx, first_BCHW.shape[2:], align_corners)
    return out_BOHW


def _share_of(x_BChw: Tensor, weight_OCyx: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    """Return what one coarse map adds to the output: (B, O, *size)."""
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
    """Return (to, cells * 3): the weight of each cell and tap in each fine cell along an axis, with zeros beyond."""
    one = torch.eye(cells, dtype=like.dtype, device=like.device)
    fine = F.interpolate(one[None], size=to, mode="linear", align_corners=align_corners)[0].T
    padded = F.pad(fine, (0, 0, 1, 1))
    return torch.stack([padded[tap : tap + to] for tap in range(TAPS)], dim=-1).reshape(to, cells * TAPS)
