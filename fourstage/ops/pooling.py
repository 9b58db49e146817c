"""Averages of a map over a few cells, as UPerNet's pyramid has them.

B images, C channels, H x W cells, S averages a side.
"""

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from fourstage.ops.eager import is_exporting, must_repeat_itself


def average_cells(x_BCHW: Tensor, side: int) -> Tensor:
    """Return (B, C, side, side): the averages of adaptive pooling.

    PyTorch's own form fixes the cells of each average to those of the size that is traced, so exported graphs of any
    size do not have it; and its backward pass raises on a GPU that must be deterministic.
    """
    any_size = any(isinstance(cells, torch.SymInt) for cells in x_BCHW.shape[-2:])
    if (any_size and is_exporting()) or must_repeat_itself(x_BCHW.device):
        return by_products(x_BCHW, side)
    return nn.functional.adaptive_avg_pool2d(x_BCHW, side)


def by_products(x_BCHW: Tensor, side: int) -> Tensor:
    """Return the same averages by two products, which a graph computes for maps of any size."""
    device = x_BCHW.device.type
    # pooling keeps the precision, which a product under autocast does not
    with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext():
        return _shares(x_BCHW, 2, side) @ x_BCHW @ _shares(x_BCHW, 3, side).mT


def _shares(x_BCHW: Tensor, axis: int, side: int) -> Tensor:
    """Return (side, cells of the axis): the share of each cell in each average."""
    cells, i_S = x_BCHW.shape[axis], torch.arange(side, device=x_BCHW.device)
    first_S = torch.div(i_S * cells, side, rounding_mode="floor")
    end_S = torch.div((i_S + 1) * cells + side - 1, side, rounding_mode="floor")
    place_N = torch.arange(cells, device=x_BCHW.device)
    inside_SN = (place_N >= first_S[:, None]) & (place_N < end_S[:, None])
    return inside_SN.to(x_BCHW.dtype) / (end_S - first_S)[:, None].to(x_BCHW.dtype)
