"""Deformable convolution with modulation, https://arxiv.org/abs/1811.11168. B images, C channels in, D channels out.

H x W cells come in, h x w cells go out; a kernel has T taps, the product of its sides.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fourstage.ops.sampling import deformable_sample, kernel_cells


def deformable_conv(
    x_BCHW: Tensor, weight_DCKK: Tensor, offset_BOhw: Tensor, mask_BThw: Tensor, *, stride: int = 1
) -> Tensor:
    """Return (B, D, h, w): a convolution that reads each tap `offset` cells away from its place, times `mask`.

    Zeros surround the map, so that h = ceil(H / stride) and w = ceil(W / stride). Values between cells are bilinear.
    Places are computed in float32 at least, the products in the precision of `x`.

    Args:
        weight_DCKK: of an odd square kernel; rows first, as in `conv2d`.
        offset_BOhw: O = 2T channels: down and right of the first tap, of the second, ...; taps are in the order of
            the kernel's rows.
        mask_BThw: factors of the values that are read.
    """
    (batch, channels, height, width), side = x_BCHW.shape, weight_DCKK.shape[-1]
    out_height, out_width = offset_BOhw.shape[-2:]
    cells_QT2 = kernel_cells(height, width, side, stride=stride, device=x_BCHW.device)
    down_right_BQT2 = _by_column(offset_BOhw, side, 2)
    read_BQC = deformable_sample(
        [x_BCHW.permute(0, 2, 3, 1).unsqueeze(3)],
        down_right_BQT2.flip(-1).flatten(1, 2)[:, :, None, None, None].to(_precise(down_right_BQT2)),
        _by_column(mask_BThw, side, 1).flatten(1, 2)[:, :, None, None],
        cells_BQhLP2=cells_QT2.flatten(0, 1)[None, :, None, None, None],
    )
    weight_DT = weight_DCKK.permute(0, 3, 2, 1).flatten(1)
    out_BQD = F.linear(read_BQC.reshape(batch, -1, side * side * channels), weight_DT)
    return out_BQD.transpose(1, 2).unflatten(2, (out_height, out_width))


def _by_column(x_BKhw: Tensor, side: int, values: int) -> Tensor:
    """(B, Q, T, values) from channels in the order of the kernel's rows; T in the order of its columns."""
    return x_BKhw.unflatten(1, (side, side, values)).permute(0, 4, 5, 2, 1, 3).flatten(1, 2).flatten(2, 3)


def _precise(x: Tensor) -> torch.dtype:
    """float32, or the type of `x` where it is more precise."""
    return torch.promote_types(x.dtype, torch.float32)
