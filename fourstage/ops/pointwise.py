"""Convolutions, of which PyTorch computes some 1x1 ones slowly.

B images, C channels, H x W cells, D output channels.
"""

import torch
from torch import Tensor, nn

from fourstage.ops.eager import may_run_fast
from fourstage.ops.layer_checks import is_conv
from fourstage.ops.matmul import product_of
from fourstage.ops.memory_format import without_view

# PyTorch's BLAS library computes a 1x1 convolution of fewer images on one thread, and oneDNN all others
IMAGES = 16
THREADS = 1


def convolve(layer: nn.Module, x_BCHW: Tensor) -> Tensor:
    """Return `layer(x)`: (B, C, H, W) to (B, D, H', W').

    The fast path computes a 1x1 convolution that PyTorch would leave to its BLAS library as a linear layer over
    channels-last memory, whose product is chosen by measurement.
    """
    if (
        may_run_fast(x_BCHW, modules=(layer,))
        and torch.get_num_threads() <= THREADS
        and x_BCHW.ndim == 4
        and is_conv(layer, 1, x_BCHW.shape[1])
        and len(x_BCHW) < IMAGES
        and x_BCHW.is_contiguous(memory_format=torch.channels_last)
    ):
        return by_linear_layer(layer, x_BCHW)
    return layer(x_BCHW)


def by_linear_layer(layer: nn.Conv2d, x_BCHW: Tensor) -> Tensor:
    x_BHWC, weight_DC = x_BCHW.movedim(1, -1), layer.weight.flatten(1)
    product = product_of(x_BHWC, weight_DC)
    if product is None:
        return layer(x_BCHW)
    return without_view(product(x_BHWC, weight_DC, layer.bias, False).movedim(-1, 1))
