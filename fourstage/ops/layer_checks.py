"""Which layers the arithmetic of a fast path holds for.

`may_run_fast` asks whether a layer is PyTorch's own. A user may still put another layer of PyTorch in its place, or set
it up in another way, so every fast path also asks for exactly the layers that it was derived for.
"""

from typing import TypeGuard

from torch import nn


def is_linear(module: nn.Module, channels: int) -> TypeGuard[nn.Linear]:
    """Return whether this is a linear layer of an input of this number of channels, with tensors as `holds` asks."""
    return isinstance(module, nn.Linear) and holds(module, channels)


def holds(layer: nn.Linear | nn.Conv2d, *sizes: int) -> bool:
    """Return whether a layer's tensors have the usual shapes: a weight of (D, *sizes), none of them 0, and a bias of D.

    PyTorch computes with some others, and for the rest it has a message with their sizes, which its kernels lack. The
    numbers of a bias are side by side too: oneDNN reads them so, whatever the strides of the tensor are.
    """
    weight, bias = layer.weight, layer.bias
    usual = weight.shape[1:] == sizes and weight.numel() > 0
    return usual and (bias is None or (bias.shape == weight.shape[:1] and bias.is_contiguous()))


def is_conv(module: nn.Module, side: int, channels: int, groups: int = 1) -> TypeGuard[nn.Conv2d]:
    """Return whether this is a convolution of `side` x `side` and stride 1 that keeps sizes, padded with zeros.

    Its input has this number of channels, and its tensors are as `holds` asks, whatever sizes the module names.
    """
    return (
        isinstance(module, nn.Conv2d)
        and module.kernel_size == (side, side)
        and module.padding == (side // 2, side // 2)
        and module.stride == module.dilation == (1, 1)
        and module.groups == groups
        and module.padding_mode == "zeros"
        and holds(module, channels // groups, side, side)
    )


def is_padded_with_zeros(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Return whether this is a convolution that knows how many zeros surround a map of any size.

    Its sizes are pairs, as its constructor makes them; whoever changes them afterwards may give PyTorch one number.
    """
    return (
        isinstance(module, nn.Conv2d)
        and module.padding_mode == "zeros"
        and all(isinstance(sizes, tuple) for sizes in (module.padding, module.stride, module.dilation))
    )


def is_exact_gelu(module: nn.Module) -> TypeGuard[nn.GELU]:
    """Return whether this is a GELU that is not approximated."""
    return isinstance(module, nn.GELU) and module.approximate == "none"
