"""Convolutions around a GELU, on channels-last memory. Eager on a CPU.

Without gradients, oneDNN computes the GELU in the pass of the convolution before it, while a value is in a register.
With gradients, two 1x1 convolutions of small maps around it are linear layers, and of a network's widest maps only one
is kept: see `mlp.py`. Maps of more cells, and those behind another convolution, are computed sooner by convolutions.

B images, C channels, H x W cells, D output channels.
"""

from typing import TypeGuard

import torch
from torch import Tensor, nn

from fourstage.ops import products
from fourstage.ops.eager import may_run_fast
from fourstage.ops.gelu import activated
from fourstage.ops.layer_checks import holds, is_conv, is_exact_gelu, is_padded_with_zeros
from fourstage.ops.mlp import matrix, mlp_of_matrices
from fourstage.ops.pointwise import convolve

CELLS = 1.0  # of all images, for each hidden channel; with more, convolutions are faster than linear layers


def convolve_gelu(conv: nn.Module, act: nn.Module, x_BCHW: Tensor) -> Tensor:
    """Return `act(conv(x))`: (B, C, H, W) to (B, D, H', W')."""
    if (
        not torch.is_grad_enabled()
        and _may_run_fast(x_BCHW, conv, act)
        and products.has_onednn()
        and is_padded_with_zeros(conv)
        and holds(conv, *conv.weight.shape[1:])
        and x_BCHW.shape[1] == conv.groups * conv.weight.shape[1]
        and is_exact_gelu(act)
    ):
        return in_one_pass(conv, conv.weight, x_BCHW)
    return activated(act, convolve(conv, x_BCHW))


def in_one_pass(conv: nn.Conv2d, weight: Tensor, x_BCHW: Tensor) -> Tensor:
    """Without gradients. `weight`: that of the convolution, or another one of its shape."""
    sizes = (conv.padding, conv.stride, conv.dilation, conv.groups)
    return torch.ops.mkldnn._convolution_pointwise(x_BCHW, weight, conv.bias, *sizes, "gelu", [], "none")


def convolved_mlp(first: nn.Module, act: nn.Module, second: nn.Module, x_BCHW: Tensor) -> Tensor:
    """Return `second(act(first(x)))`: (B, C, H, W) to (B, D, H', W')."""
    if not torch.is_grad_enabled():
        return convolve(second, convolve_gelu(first, act, x_BCHW))
    if (
        _may_run_fast(x_BCHW, first, act, second)
        and _is_1x1(first, x_BCHW.shape[1])
        and is_exact_gelu(act)
        and _is_1x1(second, len(first.weight))
        and x_BCHW.numel() < CELLS * first.weight.numel()
    ):
        return mlp_of_matrices(matrix(first), act, matrix(second), x_BCHW.movedim(1, -1)).movedim(-1, 1)
    return convolve(second, activated(act, convolve(first, x_BCHW)))


def _may_run_fast(x_BCHW: Tensor, *layers: nn.Module) -> bool:
    return (
        may_run_fast(x_BCHW, modules=layers)
        and x_BCHW.ndim == 4
        and x_BCHW.numel() > 0
        and x_BCHW.is_contiguous(memory_format=torch.channels_last)
    )


def _is_1x1(module: nn.Module, channels: int) -> TypeGuard[nn.Conv2d]:
    return is_conv(module, 1, channels)
