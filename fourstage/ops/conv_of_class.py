"""A 1x1 convolution with an output channel for each class, of which each region needs one.

The plain form computes all channels and picks one. The fast path multiplies each region by the weights of its class
alone: 80 times fewer products for the classes of COCO.

R regions, D channels in, C classes, M x M cells.
"""

import torch
from torch import Tensor, nn

from fourstage.ops.eager import may_run_fast
from fourstage.ops.layer_checks import is_conv


def conv_of_class(conv: nn.Module, x_RDMM: Tensor, labels_R: Tensor) -> Tensor:
    """Return the channel `labels_R` of `conv(x)` for each region, (R, M, M).

    Args:
        conv: a 1x1 convolution from D to C channels.
    """
    if may_run_fast(x_RDMM, modules=(conv,)) and is_conv(conv, 1, x_RDMM.shape[1]):
        return one_channel(conv, x_RDMM, labels_R)
    return pick_channel(conv, x_RDMM, labels_R)


def pick_channel(conv: nn.Module, x_RDMM: Tensor, labels_R: Tensor) -> Tensor:
    """Compute the plain form."""
    return conv(x_RDMM)[torch.arange(labels_R.shape[0], device=labels_R.device), labels_R]


def one_channel(conv: nn.Conv2d, x_RDMM: Tensor, labels_R: Tensor) -> Tensor:
    """Compute the fast form."""
    weight_RD = conv.weight[:, :, 0, 0][labels_R]
    out_RMM = torch.bmm(weight_RD[:, None], x_RDMM.flatten(2)).view(-1, *x_RDMM.shape[2:])
    return out_RMM if conv.bias is None else out_RMM + conv.bias[labels_R, None, None]
