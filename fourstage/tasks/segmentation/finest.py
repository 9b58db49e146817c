"""The finest map of a pyramid and the convolution after it in one step, for Semantic FPN.

The pyramid ends in a 3x3 convolution of 256 channels without norm or activation, and the decoder begins with another.
Together they are one 5x5 convolution of what the pyramid adds up, and that is a map of few channels and a doubled one,
each of which is read for less (see `tasks/parts/resized_conv.py`): 500 thousand products instead of 901 for each cell,
with ResNet-18's widths. It differs at the edges alone: between the two lies a map that ends there, and zeros beyond.

B images, C channels of the backbone's map, D of the pyramid, O of the decoder, h x w and H x W = 2h x 2w cells, L cells
along an edge.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourstage.ops.shapes import known_true
from fourstage.tasks.parts.fpn import FPN
from fourstage.tasks.parts.resized_conv import conv_of_doubled


def is_shorter(neck: FPN, conv: nn.Conv2d, x_BCHW: Tensor) -> bool:
    """Whether `conv_of_finest` has fewer products than one convolution after the other."""
    (images, channels, height, width), wide, out = x_BCHW.shape, neck.levels[0].channels, conv.out_channels
    plain = channels * wide + 9 * wide * wide + 9 * wide * out
    once = 81 * wide * (channels + wide) * out  # to join the kernels
    return known_true(images * height * width * (plain - 25 * channels * out - 9 * wide * out) > once)


def conv_of_finest(neck: FPN, conv: nn.Conv2d, x_BCHW: Tensor, coarser_BDhw: Tensor) -> Tensor:
    """`conv` of the pyramid's finest map, (B, O, H, W), without that map.

    Args:
        neck: gives the finest map.
        conv: 3x3, padding 1.
        x_BCHW: the backbone's finest map.
        coarser_BDhw: what the pyramid adds to it when doubled, see `FPN.but_finest`.
    """
    output = neck.outputs[0]
    assert isinstance(output, nn.Conv2d)
    assert output.bias is not None
    weight_DC, bias_D = neck.lateral_weights()
    near_DCyx = torch.einsum("edyx,dc->ecyx", output.weight, weight_DC)
    everywhere_O = torch.einsum("odyx,d->o", conv.weight, output.bias)
    if conv.bias is not None:
        everywhere_O = everywhere_O + conv.bias
    out_BOHW = F.conv2d(x_BCHW, joined(conv.weight, near_DCyx), everywhere_O, padding=2)
    out_BOHW = out_BOHW + conv_of_doubled(joined(conv.weight, output.weight), coarser_BDhw + bias_D[:, None, None])

    def beyond(axis: int, index: int) -> Tensor:
        """What lies beyond one edge, as `conv` would read it: (B, O, L) to take away there."""
        line_BDL = F.conv1d(x_BCHW.select(axis, index), weight_DC[:, :, None], bias_D)
        line_BDL = line_BDL + coarser_BDhw.select(axis, index).repeat_interleave(2, dim=-1)
        corners = 2 if axis == 2 else 1  # belong to the upper and the lower edge
        first, second = (2, 0) if index == 0 else (0, 2)
        ring_BDL = F.conv1d(line_BDL, output.weight.select(axis, first), output.bias, padding=corners)
        return F.conv1d(ring_BDL, conv.weight.select(axis, second), padding=2 - corners)

    for axis, index in ((2, 0), (2, -1), (3, 0), (3, -1)):
        out_BOHW.select(axis, index).sub_(beyond(axis, index))
    return out_BOHW


def joined(second_ODyx: Tensor, first_DCyx: Tensor) -> Tensor:
    """The 5x5 kernel of two 3x3 convolutions, one after the other: (O, C, 5, 5)."""
    out, channels = len(second_ODyx), first_DCyx.shape[1]
    pairs = torch.einsum("odp,dcq->ocqp", second_ODyx.flatten(2), first_DCyx.flatten(2))
    return F.fold(pairs.reshape(1, -1, 9), 5, 3).reshape(out, channels, 5, 5)
