"""Linear layers over the last axis. N rows (any number of axes), C channels in, D channels out.

`products.py` says which product computes them. All give the same numbers up to rounding.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourstage.ops import products
from fourstage.ops.eager import may_run_fast
from fourstage.ops.layer_checks import is_linear
from fourstage.ops.layer_scale import scaled_map, with_scale
from fourstage.ops.products import Ways
from fourstage.ops.second_gradients import needs_plain_form, without_autocast

FEW = 16  # rows


def linear(layer: nn.Module, x_NC: Tensor, scale_D: Tensor | None = None) -> Tensor:
    """Return `layer(x)`, times a scale if there is one: (..., C) to (..., D)."""
    if not (may_run_fast(x_NC, scale_D, modules=(layer,)) and is_linear(layer, x_NC.shape[-1])):
        return scaled_map(layer(x_NC), scale_D)
    product = product_of(x_NC, layer.weight) or by_blas
    rows = x_NC.numel() // x_NC.shape[-1]
    return with_scale(lambda matrix: product(x_NC, *matrix, False), (layer.weight, layer.bias), scale_D, rows)


Product = Callable[[Tensor, Tensor, Tensor | None, bool], Tensor]


def product_of(x_NC: Tensor, weight_DC: Tensor) -> Product | None:
    """Return what computes an untouched layer faster than its `forward`, by its number of rows; None: nothing does."""
    ways = _ways_of(x_NC.numel() // max(x_NC.shape[-1], 1), weight_DC)
    if ways is None:
        return None
    names = set(ways.training) if torch.is_grad_enabled() else {ways.inference}
    if names == {"blas"}:
        return None
    if torch.is_grad_enabled() and "onednn" in names:
        return partial(by_passes, ways)
    return PRODUCTS[names.pop()]


def passes_of(rows: int, weight_DC: Tensor) -> tuple[str, ...] | None:
    """Return the products of a layer's three passes, each of which can be computed alone; None: not of this layer."""
    ways = _ways_of(rows, weight_DC)
    return ways.training if ways is not None and set(ways.training) <= set(PASS_PRODUCTS) else None


def _ways_of(rows: int, weight_DC: Tensor) -> Ways | None:
    """Return the products of a layer by its shape; None: it has few rows, or products that this process lacks now."""
    if rows < FEW:  # preparing another product costs more than it saves
        return None
    channels_out, channels_in = weight_DC.shape
    ways = products.current().linear[products.shape_class(rows, channels_in, channels_out)]
    names = {*ways.training} if torch.is_grad_enabled() else {ways.inference}
    return None if "onednn" in names and not products.has_onednn() else ways  # its flag may have changed


# ------------------------------------------------------------------------------------- one product for all passes


def by_blas(x_NC: Tensor, weight_DC: Tensor, bias_D: Tensor | None, gelu: bool) -> Tensor:
    """The plain form."""
    out_ND = F.linear(x_NC, weight_DC, bias_D)
    return F.gelu(out_ND) if gelu else out_ND


def by_convolution(x_NC: Tensor, weight_DC: Tensor, bias_D: Tensor | None, gelu: bool) -> Tensor:
    """Compute a 1x1 convolution of the rows, as cells of images in channels-last memory."""
    rows, channels = x_NC.numel() // x_NC.shape[-1], x_NC.shape[-1]
    images = 1 if torch.get_num_threads() > 1 else 16  # one thread alone goes to oneDNN from 16 images on
    if rows % images:
        return by_blas(x_NC, weight_DC, bias_D, gelu)
    columns = x_NC.reshape(images, rows // images, 1, channels).movedim(-1, 1)  # rows as cells of long images
    out = F.conv2d(columns, weight_DC[:, :, None, None], bias_D)
    out_ND = as_own(out.movedim(1, -1).contiguous(), x_NC)
    return F.gelu(out_ND) if gelu else out_ND


def by_onednn(x_NC: Tensor, weight_DC: Tensor, bias_D: Tensor | None, gelu: bool) -> Tensor:
    """Compute oneDNN's linear layer, which has no gradients."""
    after, how = ("gelu", "none") if gelu else ("none", "")  # "none": the exact GELU, not that by tanh
    out_ND = torch.ops.mkldnn._linear_pointwise(x_NC, weight_DC, bias_D, after, [], how)
    return as_own(out_ND, x_NC) if out_ND._is_view() else out_ND


def as_own(out_ND: Tensor, x_NC: Tensor) -> Tensor:
    """Return the output with the front axes of the input, of no other tensor's memory for autograd.

    A caller may then change it in place, as ReLU can, also with gradients where it was computed without.
    """
    return torch.ops.aten._unsafe_view(out_ND, [*x_NC.shape[:-1], out_ND.shape[-1]])


PRODUCTS: dict[str, Product] = {"blas": by_blas, "convolution": by_convolution, "onednn": by_onednn}


# ------------------------------------------------------------------------------------- one product for each pass


PASS_PRODUCTS = ("blas", "onednn")


def by_passes(ways: Ways, x_NC: Tensor, weight_DC: Tensor, bias_D: Tensor | None, gelu: bool) -> Tensor:
    """With gradients; each of the three passes has the product that `ways` names for it."""
    out_ND = LinearByPasses.apply(x_NC, weight_DC, bias_D, ways.training)
    return F.gelu(out_ND) if gelu else out_ND


def output_pass(name: str, x_NC: Tensor, weight_DC: Tensor, bias_D: Tensor | None) -> Tensor:
    """Return the layer's output, of a matrix of rows."""
    return (by_onednn if name == "onednn" else by_blas)(x_NC, weight_DC, bias_D, False)


def input_pass(name: str, grad_ND: Tensor, weight_DC: Tensor) -> Tensor:
    """Return the gradient of the layer's input: (N, C)."""
    return by_onednn(grad_ND, weight_DC.t(), None, False) if name == "onednn" else grad_ND @ weight_DC


def weight_pass(name: str, grad_ND: Tensor, x_NC: Tensor) -> Tensor:
    """Return the gradient of the layer's weight: (D, C).

    oneDNN's layer copies its first operand, which is a transposed matrix here. Where the input is much smaller than
    the gradient, it is the first one, and the weight is transposed afterwards, in half of the time and a quarter of the
    memory.
    """
    if name != "onednn":
        return grad_ND.t() @ x_NC
    (rows, channels_out), channels_in = grad_ND.shape, x_NC.shape[-1]
    if rows * (channels_out - channels_in) > channels_out * channels_in:
        return by_onednn(x_NC.t(), grad_ND.t(), None, False).t().contiguous()
    return by_onednn(grad_ND.t(), x_NC.t(), None, False)


class LinearByPasses(torch.autograd.Function):
    """A linear layer whose three passes are computed by the products of these names.

    As PyTorch's own layer it keeps the input for the gradient of the weight, and the weight for that of the input.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_DC: Tensor, bias_D: Tensor | None, names: tuple[str, ...]) -> Tensor:
        ctx.names, ctx.shape = names, x.shape
        wants_input, wants_weight = ctx.needs_input_grad[:2]
        ctx.save_for_backward(x if wants_weight else None, weight_DC if wants_input else None)
        return as_own(output_pass(names[0], x.reshape(-1, x.shape[-1]), weight_DC, bias_D), x)

    @staticmethod
    @without_autocast
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight_DC = ctx.saved_tensors
        _, to_input, to_weight = ("blas",) * 3 if needs_plain_form(grads[0]) else ctx.names  # which is differentiable
        grad_ND = grads[0].reshape(-1, grads[0].shape[-1])
        return (
            None if weight_DC is None else input_pass(to_input, grad_ND, weight_DC).reshape(ctx.shape),
            None if x is None else weight_pass(to_weight, grad_ND, x.reshape(-1, x.shape[-1])),
            grad_ND.sum(0) if ctx.needs_input_grad[2] else None,
            None,
        )
