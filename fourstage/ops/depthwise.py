"""Depth-wise convolutions of (B, H, W, C) maps. B images, H x W cells, C channels."""

from typing import TypeGuard

import torch.nn.functional as F
from torch import Tensor, nn

from fourstage.ops.eager import is_compiling, is_stock, may_run_fast
from fourstage.ops.layer_checks import is_conv
from fourstage.ops.memory_format import without_view
from fourstage.ops.shapes import known_true


def depthwise(conv: nn.Module, x_BHWC: Tensor) -> Tensor:
    """Return `conv(x)` of a 3 x 3 convolution that keeps the size, for maps down to one cell: (B, H, W, C) to the same.

    A convolution asks whether the map has more than one cell a side, and a graph for many sizes would keep the answer
    and refuse other sizes. So while a graph is traced, the map is padded first and then has more cells for certain.
    """
    x_BCHW = x_BHWC.movedim(-1, 1)
    if not is_compiling() or not is_3x3(conv, x_BHWC) or not is_stock(conv):
        return conv(x_BCHW).movedim(1, -1)
    if known_true(x_BHWC.shape[1] > 1) and known_true(x_BHWC.shape[2] > 1):
        return conv(x_BCHW).movedim(1, -1)
    x_BCHW = F.pad(x_BCHW, (1, 1, 1, 1))
    return F.conv2d(x_BCHW, conv.weight, conv.bias, groups=conv.groups).movedim(1, -1)


def residual_depthwise(conv: nn.Module, x_BHWC: Tensor) -> Tensor:
    """Return `x + conv(x)` of such a convolution: (B, H, W, C) to the same."""
    if may_run_fast(x_BHWC, modules=(conv,)) and is_3x3(conv, x_BHWC):
        return with_itself(conv, x_BHWC)
    return x_BHWC + depthwise(conv, x_BHWC)


def with_itself(conv: nn.Conv2d, x_BHWC: Tensor) -> Tensor:
    """The same in one pass over the map."""
    kernel_C133 = kernel_with_itself(conv)
    out_BCHW = F.conv2d(x_BHWC.movedim(-1, 1), kernel_C133, conv.bias, padding=1, groups=conv.groups)
    return without_view(out_BCHW.movedim(1, -1))


def kernel_with_itself(conv: nn.Conv2d) -> Tensor:
    """Return the kernel of `x + conv(x)`: one that is 1 in the middle gives x itself. (C, 1, 3, 3)."""
    return conv.weight + F.pad(conv.weight.new_ones(1, 1, 1, 1), (1, 1, 1, 1))


def is_3x3(conv: nn.Module, x_BHWC: Tensor) -> TypeGuard[nn.Conv2d]:
    """Return whether this is a depth-wise convolution of 3 x 3 that keeps the size, for the channels of this map."""
    channels = x_BHWC.shape[-1]
    return is_conv(conv, 3, channels, groups=channels) and len(conv.weight) == channels
