"""Weighted sums of `grid_sample`'s readings that keep less for the backward pass than PyTorch does.

N maps of d channels and H x W cells; Q queries of P points each.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from fourstage.ops.second_gradients import needs_plain_form, of_plain_form

BILINEAR, ZEROS = 0, 0  # PyTorch's numbers of these modes


def plain_reading(map_NdHW: Tensor, grid_NPQ2: Tensor, weight_NPQ: Tensor) -> Tensor:
    """Return the (N, d, Q) sums of the readings at all points, by PyTorch's operators."""
    return (read(map_NdHW, grid_NPQ2) * weight_NPQ[:, None]).sum(2)


def read(map_NdHW: Tensor, grid_NPQ2: Tensor) -> Tensor:
    """Return (N, d, P, Q): the maps at places from -1 to 1."""
    return F.grid_sample(map_NdHW, grid_NPQ2, align_corners=False)


def weighed_sum(read_NdPQ: Tensor, weight_NPQ: Tensor) -> Tensor:
    """Return `(read * weight[:, None]).sum(2)`, point after point, so that the product is never in memory."""
    return cast(Tensor, _WeighedSum.apply(read_NdPQ, weight_NPQ))


def weighed_reading(map_NdHW: Tensor, grid_NPQ2: Tensor, weight_NPQ: Tensor) -> Tensor:
    """Return as `plain_reading`; the backward pass reads the maps once more, so that no reading is kept for it."""
    return cast(Tensor, _WeighedReading.apply(map_NdHW, grid_NPQ2, weight_NPQ))


class _WeighedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, read_NdPQ: Tensor, weight_NPQ: Tensor) -> Tensor:
        ctx.save_for_backward(read_NdPQ, weight_NPQ)
        return _summed(read_NdPQ, weight_NPQ)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad_NdQ,), (read_NdPQ, weight_NPQ) = grads, ctx.saved_tensors
        if needs_plain_form(grad_NdQ):
            return grad_NdQ[:, :, None] * weight_NPQ[:, None], (read_NdPQ * grad_NdQ[:, :, None]).sum(1)
        return grad_NdQ[:, :, None] * weight_NPQ[:, None], _to_weight(read_NdPQ, weight_NPQ, grad_NdQ)


class _WeighedReading(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, map_NdHW: Tensor, grid_NPQ2: Tensor, weight_NPQ: Tensor) -> Tensor:
        ctx.save_for_backward(map_NdHW, grid_NPQ2, weight_NPQ)
        return _summed(read(map_NdHW, grid_NPQ2), weight_NPQ)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (grad_NdQ,), tensors, wanted = grads, ctx.saved_tensors, ctx.needs_input_grad  # checkpointing gives them once
        if needs_plain_form(grad_NdQ):
            return tuple(of_plain_form(plain_reading, tensors, wanted, grad_NdQ))
        map_NdHW, grid_NPQ2, weight_NPQ = tensors
        to_weight = _to_weight(read(map_NdHW, grid_NPQ2), weight_NPQ, grad_NdQ) if wanted[2] else None
        if not (wanted[0] or wanted[1]):
            return None, None, to_weight
        to_read_NdPQ, masks = grad_NdQ[:, :, None] * weight_NPQ[:, None], [wanted[0], wanted[1]]
        to_map, to_grid = torch.ops.aten.grid_sampler_2d_backward(
            to_read_NdPQ, map_NdHW, grid_NPQ2, BILINEAR, ZEROS, False, masks
        )
        return to_map if wanted[0] else None, to_grid if wanted[1] else None, to_weight


def _summed(read_NdPQ: Tensor, weight_NPQ: Tensor) -> Tensor:
    out_NdQ = read_NdPQ[:, :, 0] * weight_NPQ[:, None, 0]
    for point in range(1, weight_NPQ.shape[1]):
        out_NdQ.addcmul_(read_NdPQ[:, :, point], weight_NPQ[:, None, point])
    return out_NdQ


def _to_weight(read_NdPQ: Tensor, weight_NPQ: Tensor, grad_NdQ: Tensor) -> Tensor:
    """Return the gradient of the weights, point after point."""
    out_NPQ = torch.empty_like(weight_NPQ)
    for point in range(weight_NPQ.shape[1]):
        torch.sum(read_NdPQ[:, :, point] * grad_NdQ, 1, out=out_NPQ[:, point])
    return out_NPQ
