"""Linear layers and MLPs over the last axis. N rows (any number of axes), C channels in, D channels out.

`products.py` says which product computes them. All give the same numbers up to rounding.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourstage.ops import products
from fourstage.ops.chunks import by_rows
from fourstage.ops.eager import may_run_fast

FEW = 128  # rows below which preparing another product costs more than it saves


def linear(layer: nn.Module, x_NC: Tensor) -> Tensor:
    """Return `layer(x)`: (..., C) to (..., D)."""
    if not (may_run_fast(x_NC, modules=(layer,)) and isinstance(layer, nn.Linear)):
        return layer(x_NC)
    product = _product(x_NC)
    return layer(x_NC) if product is None else product(x_NC, layer.weight, layer.bias, False)


def mlp(expand: nn.Module, act: nn.Module, reduce: nn.Module, x_NC: Tensor) -> Tensor:
    """Return `reduce(act(expand(x)))`: (..., C) to (..., D). The fast path takes linear layers around a GELU."""
    if not (
        may_run_fast(x_NC, modules=(expand, act, reduce))
        and isinstance(expand, nn.Linear)
        and isinstance(act, nn.GELU)
        and isinstance(reduce, nn.Linear)
    ):
        return reduce(act(expand(x_NC)))
    return by_rows(lambda rows_NC: _fast_mlp(expand, act, reduce, rows_NC), x_NC, expand.out_features)


def _fast_mlp(expand: nn.Linear, act: nn.GELU, reduce: nn.Linear, x_NC: Tensor) -> Tensor:
    """The same, with GELU in the pass of the first layer where its product has that."""
    product, exact = _product(x_NC), act.approximate == "none"
    if product is None:
        return reduce(act(expand(x_NC)))
    hidden = product(x_NC, expand.weight, expand.bias, exact)
    return product(hidden if exact else act(hidden), reduce.weight, reduce.bias, False)


Product = Callable[[Tensor, Tensor, Tensor | None, bool], Tensor]


def _product(x_NC: Tensor) -> Product | None:
    """Return what computes an untouched layer for this number of rows faster than its `forward`; None: nothing."""
    if x_NC.numel() < FEW * x_NC.shape[-1]:
        return None
    name = products.current().training if torch.is_grad_enabled() else products.current().inference
    if name == "blas" or (name == "onednn" and not products.has_onednn()):  # its flag may have changed
        return None
    return PRODUCTS[name]


def by_blas(x_NC: Tensor, weight_DC: Tensor, bias_D: Tensor | None, gelu: bool) -> Tensor:
    """The plain form."""
    out_ND = F.linear(x_NC, weight_DC, bias_D)
    return F.gelu(out_ND) if gelu else out_ND


def by_convolution(x_NC: Tensor, weight_DC: Tensor, bias_D: Tensor | None, gelu: bool) -> Tensor:
    rows, channels = x_NC.numel() // x_NC.shape[-1], x_NC.shape[-1]
    images = 1 if torch.get_num_threads() > 1 else 16  # one thread alone goes to oneDNN from 16 images on
    if rows % images:
        return by_blas(x_NC, weight_DC, bias_D, gelu)
    columns = x_NC.reshape(images, rows // images, 1, channels).movedim(-1, 1)  # rows as cells of long images
    out = F.conv2d(columns, weight_DC[:, :, None, None], bias_D)
    out_ND = out.movedim(1, -1).reshape(*x_NC.shape[:-1], len(weight_DC))
    return F.gelu(out_ND) if gelu else out_ND


def by_onednn(x_NC: Tensor, weight_DC: Tensor, bias_D: Tensor | None, gelu: bool) -> Tensor:
    after, how = ("gelu", "none") if gelu else ("none", "")  # "none": the exact GELU, not that by tanh
    return torch.ops.mkldnn._linear_pointwise(x_NC, weight_DC, bias_D, after, [], how)


PRODUCTS: dict[str, Product] = {"blas": by_blas, "convolution": by_convolution, "onednn": by_onednn}
