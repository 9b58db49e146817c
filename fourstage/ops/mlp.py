"""Two linear layers with a GELU between them, over the last axis. N rows (any number of axes), C channels in, H hidden
ones, D channels out.

A network's widest maps are those between the two layers. With gradients, the fast paths keep the GELU's input alone
for the backward pass, where PyTorch keeps its output too: it is computed again there, for rows that a cache holds.
Where the second layer has few channels, its products are so cheap that this would show: there, the output is kept.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourstage.ops.chunks import FEW, by_rows, joined
from fourstage.ops.eager import may_run_fast
from fourstage.ops.layer_checks import is_linear
from fourstage.ops.layer_scale import Matrix, scaled_map, with_scale
from fourstage.ops.matmul import (
    Product,
    as_own,
    by_blas,
    input_pass,
    linear,
    output_pass,
    passes_of,
    product_of,
    weight_pass,
)
from fourstage.ops.second_gradients import needs_plain_form, of_plain_form, without_autocast

CHUNK = 10 * 2**20  # bytes of the hidden channels of some rows, which stay in a cache
ALONE = 2**25  # bytes of such rows where the first layer is computed elsewhere; fewer gain nothing
NARROW = 32  # channels out of a layer whose products take little more time than its GELU does
Names = tuple[str, ...]  # of the products of the three passes


def mlp(expand: nn.Module, act: nn.Module, reduce: nn.Module, x_NC: Tensor, scale_D: Tensor | None = None) -> Tensor:
    """Return `reduce(act(expand(x)))`, times a scale if there is one: (..., C) to (..., D).

    The fast path takes linear layers around a GELU.
    """
    if (
        may_run_fast(x_NC, scale_D, modules=(expand, act, reduce))
        and is_linear(expand, x_NC.shape[-1])
        and isinstance(act, nn.GELU)
        and is_linear(reduce, len(expand.weight))
    ):
        rows = x_NC.numel() // x_NC.shape[-1]
        run = partial(mlp_of_matrices, matrix(expand), act, x_NC=x_NC)
        return with_scale(run, matrix(reduce), scale_D, rows)
    return scaled_map(reduce(act(expand(x_NC))), scale_D)


def mlp_of_matrices(expand: Matrix, act: nn.GELU, reduce: Matrix, x_NC: Tensor) -> Tensor:
    """Compute an MLP of two linear layers by their matrices; x: (..., C)."""
    if torch.is_grad_enabled() and act.approximate == "none":
        if not expand[0].requires_grad:  # then its input need not be kept
            return gelu_matrix(reduce, _product(x_NC, expand[0])(x_NC, *expand, False))
        first, second = (_passes(x_NC, weight, len(expand[0]), CHUNK) for weight, _ in (expand, reduce))
        if first and second:
            return by_passes(expand, reduce, first, second, x_NC)
    first, second = (_product(x_NC, weight) for weight, _ in (expand, reduce))
    return by_rows(lambda rows_NC: _one_by_one(expand, act, reduce, first, second, rows_NC), x_NC, len(expand[0]))


def gelu_linear(layer: nn.Module, x_NH: Tensor, scale_D: Tensor | None = None) -> Tensor:
    """Return `layer(gelu(x))`, times a scale if there is one: (..., H) to (..., D)."""
    if torch.is_grad_enabled() and may_run_fast(x_NH, scale_D, modules=(layer,)) and is_linear(layer, x_NH.shape[-1]):
        rows = x_NH.numel() // x_NH.shape[-1]
        return with_scale(partial(gelu_matrix, x_NH=x_NH), matrix(layer), scale_D, rows)
    return linear(layer, F.gelu(x_NH), scale_D)


def gelu_matrix(reduce: Matrix, x_NH: Tensor) -> Tensor:
    """The fast path with gradients: where each pass of the layer can be computed alone, GELU is part of them.

    A narrow layer keeps the output of its GELU.
    """
    weight_DH, bias_D = reduce
    names = _passes(x_NH, weight_DH, x_NH.shape[-1], ALONE) if len(weight_DH) > NARROW else None
    if names and not _is_for_bias_alone(weight_DH, bias_D, x_NH):  # which needs no input kept
        return gelu_by_passes(weight_DH, bias_D, names, x_NH)
    return _product(x_NH, weight_DH)(F.gelu(x_NH), weight_DH, bias_D, False)


def _is_for_bias_alone(weight_DH: Tensor, bias_D: Tensor | None, x: Tensor) -> bool:
    wanted = x.requires_grad or weight_DH.requires_grad
    return not wanted and bias_D is not None and bias_D.requires_grad


def _product(x: Tensor, weight: Tensor) -> Product:
    return product_of(x, weight) or by_blas


def matrix(layer: nn.Linear | nn.Conv2d) -> Matrix:
    """Return the weight (D, C) and the bias (D) of a linear layer, or of a 1x1 convolution."""
    return layer.weight.flatten(1), layer.bias


def _passes(x: Tensor, weight: Tensor, width: int, most: int) -> Names | None:
    """Return the products of a layer's passes for the rows of `x` that are computed at a time; None: by other ways."""
    rows = x.numel() // max(x.shape[-1], 1)
    return passes_of(min(rows, _rows_of(most, width, x)), weight)


def _rows_of(most: int, width: int, x: Tensor) -> int:
    """Return how many rows of `width` channels have up to `most` bytes."""
    return max(FEW, most // (width * x.element_size()))


def _one_by_one(expand: Matrix, act: nn.GELU, reduce: Matrix, first: Product, second: Product, x_NC: Tensor) -> Tensor:
    """Layer by layer, with GELU in the pass of the first one where its product has that."""
    exact = act.approximate == "none"
    hidden = first(x_NC, *expand, exact)
    return second(hidden if exact else act(hidden), *reduce, False)


def by_passes(expand: Matrix, reduce: Matrix, first: Names, second: Names, x_NC: Tensor) -> Tensor:
    """With gradients; each pass of each layer has the product that is named for it."""
    return MlpByRows.apply(x_NC, *expand, *reduce, first, second)


class MlpByRows(torch.autograd.Function):
    """Some rows at a time, with the products of these names in the passes of each layer."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *layers: Any) -> Tensor:
        """`layers`: weight (H, C) and bias (H) of the first one, of the second one, and the names of their products."""
        expand_HC, expand_H, reduce_DH, reduce_D, first, second = layers
        rows = _rows_of(CHUNK, len(expand_HC), x)
        chunks = x.reshape(-1, x.shape[-1]).split(rows)
        hidden = [output_pass(first[0], chunk_NC, expand_HC, expand_H) for chunk_NC in chunks]
        out = [output_pass(second[0], F.gelu(chunk_NH), reduce_DH, reduce_D) for chunk_NH in hidden]
        ctx.names, ctx.rows = (first, second), rows
        ctx.save_for_backward(x, expand_HC, expand_H, reduce_DH, reduce_D, *hidden)
        return as_own(joined(out), x)

    @staticmethod
    @without_autocast
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, expand_HC, expand_H, reduce_DH, reduce_D, *hidden = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:5]
        if needs_plain_form(grads[0]):
            tensors = (x, expand_HC, expand_H, reduce_DH, reduce_D)
            return *of_plain_form(_plain, tensors, wanted, grads[0]), None, None
        pairs = x.reshape(-1, x.shape[-1]).split(ctx.rows), grads[0].reshape(-1, len(reduce_DH)).split(ctx.rows)
        sums: list[Tensor | None] = [None] * 4
        inputs: list[Tensor] = []
        for chunk_NC, grad_ND, chunk_NH in zip(*pairs, hidden, strict=True):
            input_NC, *row_grads = _gradients(chunk_NC, chunk_NH, grad_ND, expand_HC, reduce_DH, ctx.names, wanted)
            inputs += [] if input_NC is None else [input_NC]
            sums = _added(sums, row_grads)
        return joined(inputs).view(x.shape) if wanted[0] else None, *sums, None, None


def _gradients(
    x_NC: Tensor,
    hidden_NH: Tensor,
    grad_ND: Tensor,
    expand_HC: Tensor,
    reduce_DH: Tensor,
    names: tuple[Names, Names],
    wanted: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Return the gradients of some rows, and what these rows add to those of weights and biases; None: not wanted."""
    first, second = names
    grad_NH, *reduce = _gelu_gradients(hidden_NH, grad_ND, reduce_DH, second, (any(wanted[:3]), *wanted[3:]))
    if grad_NH is None:
        return None, None, None, *reduce
    return (
        input_pass(first[1], grad_NH, expand_HC) if wanted[0] else None,
        weight_pass(first[2], grad_NH, x_NC) if wanted[1] else None,
        grad_NH.sum(0) if wanted[2] else None,
        *reduce,
    )


def _added(sums: Sequence[Tensor | None], terms: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Add the gradients of some rows to the sums over the rows before."""
    return [
        term if total is None or term is None else total.add_(term) for total, term in zip(sums, terms, strict=True)
    ]


def _plain(
    x_NC: Tensor, expand_HC: Tensor, expand_H: Tensor | None, reduce_DH: Tensor, reduce_D: Tensor | None
) -> Tensor:
    return _plain_gelu(F.linear(x_NC, expand_HC, expand_H), reduce_DH, reduce_D)


# ------------------------------------------------------------------------------------------- a GELU before the layer


def gelu_by_passes(weight_DH: Tensor, bias_D: Tensor | None, names: Names, x_NH: Tensor) -> Tensor:
    """With gradients; each pass of the layer has the product that is named for it."""
    return GeluLinearByRows.apply(x_NH, weight_DH, bias_D, names)


class GeluLinearByRows(torch.autograd.Function):
    """Some rows at a time, with the products of these names in the passes of the layer."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_DH: Tensor, bias_D: Tensor | None, names: Names) -> Tensor:
        ctx.names, ctx.rows = names, _rows_of(ALONE, x.shape[-1], x)
        ctx.save_for_backward(x, weight_DH, bias_D)
        chunks = x.reshape(-1, x.shape[-1]).split(ctx.rows)
        out = [output_pass(names[0], F.gelu(chunk_NH), weight_DH, bias_D) for chunk_NH in chunks]
        return as_own(joined(out), x)

    @staticmethod
    @without_autocast
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight_DH, bias_D = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]
        if needs_plain_form(grads[0]):
            return *of_plain_form(_plain_gelu, (x, weight_DH, bias_D), wanted, grads[0]), None
        pairs = x.reshape(-1, x.shape[-1]).split(ctx.rows), grads[0].reshape(-1, len(weight_DH)).split(ctx.rows)
        sums: list[Tensor | None] = [None] * 2
        inputs = x.new_empty(x.shape if wanted[0] else 0)  # the widest map: filled in place, not joined from chunks
        slots = inputs.view(-1, x.shape[-1]).split(ctx.rows) if wanted[0] else [None] * len(pairs[0])
        for chunk_NH, grad_ND, slot_NH in zip(*pairs, slots, strict=True):
            _, *row_grads = _gelu_gradients(chunk_NH, grad_ND, weight_DH, ctx.names, wanted, slot_NH)
            sums = _added(sums, row_grads)
        return inputs if wanted[0] else None, *sums, None


def _gelu_gradients(
    x_NH: Tensor,
    grad_ND: Tensor,
    weight_DH: Tensor,
    names: Names,
    wanted: Sequence[bool],
    slot_NH: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """Return the gradients of some rows, and what these rows add to those of weight and bias; None: not wanted.

    Args:
        slot_NH: memory for the gradients of the rows.
    """
    weight = weight_pass(names[2], grad_ND, F.gelu(x_NH)) if wanted[1] else None
    bias = grad_ND.sum(0) if wanted[2] else None
    if not wanted[0]:
        return None, weight, bias
    grad_NH = input_pass(names[1], grad_ND, weight_DH)
    if slot_NH is None:  # in place it would take a third more time
        return torch.ops.aten.gelu_backward(grad_NH, x_NH), weight, bias
    return torch.ops.aten.gelu_backward.grad_input(grad_NH, x_NH, grad_input=slot_NH), weight, bias


def _plain_gelu(x_NH: Tensor, weight_DH: Tensor, bias_D: Tensor | None) -> Tensor:
    return F.linear(F.gelu(x_NH), weight_DH, bias_D)
