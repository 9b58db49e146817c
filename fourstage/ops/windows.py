"""Square windows of a map, shifted or not, for attention.

B images, H x W cells, C channels; h heads of d channels; windows of w x w cells, N = w * w.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from fourstage.ops.eager import may_run_fast
from fourstage.ops.matmul import linear


def to_windows(
    layer: nn.Module, x_BHWC: Tensor, window: int, shift: int, heads: int, front: tuple[int, ...]
) -> tuple[Tensor, ...]:
    """Return the queries, keys and values of each window, each (*front, h, N, d).

    Args:
        layer: maps C channels to 3 * h * d.
        x_BHWC: a map that the windows fit; it is rolled back by `shift` cells first.
        front: the images and the windows of an image, as one axis or as two.
    """
    batch, height, width, channels = x_BHWC.shape
    if may_run_fast(x_BHWC, modules=(layer,)):
        cells = in_order(x_BHWC.reshape(batch, height * width, channels), *cell_orders(height, width, window, shift))
        qkv = linear(layer, cells)
        qkv = qkv.view(*front, window**2, 3, heads, qkv.shape[-1] // (3 * heads))
        return qkv.movedim(-3, 0).transpose(-3, -2).unbind(0)
    if shift:
        x_BHWC = x_BHWC.roll((-shift, -shift), dims=(1, 2))
    qkv = linear(layer, x_BHWC)
    qkv = qkv.reshape(batch, height // window, window, width // window, window, 3, heads, qkv.shape[-1] // (3 * heads))
    qkv = qkv.permute(5, 0, 1, 3, 6, 2, 4, 7)  # 3, B, windows down, windows across, h, w, w, d
    return qkv.reshape(3, *front, heads, window**2, qkv.shape[-1]).unbind(0)


def from_windows(out: Tensor, batch: int, height: int, width: int, window: int, shift: int) -> Tensor:
    """Return the map of these windows, (*front, h, N, d) to (B, H, W, h * d), in the order before `to_windows`."""
    heads, _, dim = out.shape[-3:]
    if may_run_fast(out):
        order, inverse = cell_orders(height, width, window, shift)
        cells = in_order(out.transpose(-3, -2).reshape(batch, height * width, heads * dim), inverse, order)
        return cells.view(batch, height, width, heads * dim)
    out = out.reshape(batch, height // window, width // window, heads, window, window, dim)
    x_BHWC = out.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, height, width, heads * dim)
    return x_BHWC.roll((shift, shift), dims=(1, 2)) if shift else x_BHWC


def in_order(x_BMC: Tensor, order_M: Tensor, inverse_M: Tensor) -> Tensor:
    """Return the cells of each image in another order, in one pass over the memory."""
    return InOrder.apply(x_BMC, order_M, inverse_M)


class InOrder(torch.autograd.Function):
    """Picking cells by a permutation, whose gradient picks by the inverse instead of adding up."""

    @staticmethod
    def forward(ctx: Any, x_BMC: Tensor, order_M: Tensor, inverse_M: Tensor) -> Tensor:
        ctx.save_for_backward(order_M, inverse_M)
        return x_BMC.index_select(1, order_M)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        order_M, inverse_M = ctx.saved_tensors
        return in_order(grads[0], inverse_M, order_M), None, None


@lru_cache(maxsize=64)
def cell_orders(height: int, width: int, window: int, shift: int) -> tuple[Tensor, Tensor]:
    """Return (H * W) int64, twice: the cell at each place of the windows, and the place of each cell."""
    with torch.inference_mode(False):  # these tensors serve trainings too
        cells = torch.arange(height * width, device="cpu").view(1, height, width, 1)
        rolled = cells.roll((-shift, -shift), dims=(1, 2))
        order = rolled.view(height // window, window, width // window, window).transpose(1, 2).flatten()
        return order, order.argsort()
