"""The first output of a feature pyramid, and the convolution that a decoder may apply to it.

A pyramid adds up a narrow feature map after a 1x1 convolution and a coarser wide map, resized by nearest neighbours,
and convolves the sum. With no norm and no activation between them, convolutions join: 1x1 and 3x3 make one 3x3
convolution of the narrow map, two 3x3 make one of 5x5. And a map whose every cell is doubled is convolved while it is
still small, by a transposed convolution of stride 2. So no wide map of full size is needed.

B images, C channels of the narrow map, D of the pyramid, O of the decoder, h x w and H x W = 2h x 2w cells, L cells
along an edge.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourstage.ops.eager import may_run_fast
from fourstage.ops.layer_checks import is_conv
from fourstage.ops.pointwise import convolve

JOINING = 8  # times the products that join kernels must be saved: 1.2 times as fast at 16, 0.9 times at 4


def conv_of_sum(lateral: nn.Module, output: nn.Module, x_BCHW: Tensor, coarser_BDhw: Tensor) -> Tensor:
    """Return `output(lateral(x) + coarser)`, (B, D, H, W).

    Args:
        lateral: a 1x1 convolution.
        output: a 3x3 convolution, padding 1.
        x_BCHW: the feature map.
        coarser_BDhw: the sum of the coarser maps; it is resized to the feature map by nearest neighbours.
    """
    if (
        may_run_fast(x_BCHW, coarser_BDhw, modules=(lateral, output))
        and is_conv(lateral, 1, x_BCHW.shape[1])
        and is_conv(output, 3, len(lateral.weight))
        and lateral.bias is not None
        and _doubles(x_BCHW, coarser_BDhw)
        and _is_narrow(lateral)
    ):
        return conv_by_joined_kernel(lateral, output, x_BCHW, coarser_BDhw)
    return conv_of_wide_map(lateral, output, x_BCHW, coarser_BDhw)


def conv_of_wide_map(lateral: nn.Module, output: nn.Module, x_BCHW: Tensor, coarser_BDhw: Tensor) -> Tensor:
    """Compute the plain form."""
    size = x_BCHW.shape[2:]
    return output(convolve(lateral, x_BCHW) + F.interpolate(coarser_BDhw, size=size, mode="nearest"))


def conv_by_joined_kernel(lateral: nn.Conv2d, output: nn.Conv2d, x_BCHW: Tensor, coarser_BDhw: Tensor) -> Tensor:
    """Compute the fast form.

    The bias of the 1x1 convolution goes with the coarser map: like it, it ends where the map ends.
    """
    weight_DC, bias_D = _lateral(lateral)
    weight_OCyx = torch.einsum("odyx,dc->ocyx", output.weight, weight_DC)
    near_BOHW = F.conv2d(x_BCHW, weight_OCyx, output.bias, padding=1)
    return near_BOHW + conv_of_doubled(output.weight, coarser_BDhw + bias_D[:, None, None])


def _is_narrow(lateral: nn.Conv2d) -> bool:
    """Return whether the fast form of `conv_of_sum` has fewer products."""
    channels, out = lateral.in_channels, lateral.out_channels
    return 9 * channels + 4 * out < channels + 9 * out


# ------------------------------------------------------------------------------- the decoder's convolution with it


def convs_of_sum(
    lateral: nn.Module, output: nn.Module, conv: nn.Module, x_BCHW: Tensor, coarser_BDhw: Tensor
) -> Tensor:
    """Return `conv(conv_of_sum(lateral, output, x, coarser))`, (B, O, H, W).

    Args:
        conv: a 3x3 convolution, padding 1.
        lateral, output, x_BCHW, coarser_BDhw: see `conv_of_sum`.
    """
    if (
        may_run_fast(x_BCHW, coarser_BDhw, modules=(lateral, output, conv))
        and is_conv(lateral, 1, x_BCHW.shape[1])
        and is_conv(output, 3, len(lateral.weight))
        and is_conv(conv, 3, len(output.weight))
        and lateral.bias is not None
        and _doubles(x_BCHW, coarser_BDhw)
        and joining_pays(lateral, conv, x_BCHW)
    ):
        return convs_by_joined_kernel(lateral, output, conv, x_BCHW, coarser_BDhw)
    return conv(conv_of_sum(lateral, output, x_BCHW, coarser_BDhw))


def convs_by_joined_kernel(
    lateral: nn.Conv2d, output: nn.Conv2d, conv: nn.Conv2d, x_BCHW: Tensor, coarser_BDhw: Tensor
) -> Tensor:
    """Compute the fast form.

    The joined convolution differs at the edges alone: between the two is a map that ends there, with zeros beyond.
    """
    weight_DC, bias_D = _lateral(lateral)
    near_DCyx = torch.einsum("edyx,dc->ecyx", output.weight, weight_DC)
    bias_O = conv.bias
    if output.bias is not None:
        passed_O = torch.einsum("odyx,d->o", conv.weight, output.bias)
        bias_O = passed_O if bias_O is None else bias_O + passed_O
    out_BOHW = F.conv2d(x_BCHW, _joined(conv.weight, near_DCyx), bias_O, padding=2)
    out_BOHW = out_BOHW + conv_of_doubled(_joined(conv.weight, output.weight), coarser_BDhw + bias_D[:, None, None])

    def beyond(axis: int, index: int) -> Tensor:
        """Return what the joined convolution reads beyond one edge, (B, O, L)."""
        line_BDL = F.conv1d(x_BCHW.select(axis, index), weight_DC[:, :, None], bias_D)
        line_BDL = line_BDL + coarser_BDhw.select(axis, index).repeat_interleave(2, dim=-1)
        corners = 2 if axis == 2 else 1  # belong to the upper and the lower edge
        first, second = (2, 0) if index == 0 else (0, 2)
        ring_BDL = F.conv1d(line_BDL, output.weight.select(axis, first), output.bias, padding=corners)
        return F.conv1d(ring_BDL, conv.weight.select(axis, second), padding=2 - corners)

    for axis, index in ((2, 0), (2, -1), (3, 0), (3, -1)):
        out_BOHW.select(axis, index).sub_(beyond(axis, index))
    return out_BOHW


def joining_pays(lateral: nn.Conv2d, conv: nn.Conv2d, x_BCHW: Tensor) -> bool:
    """Return whether `convs_by_joined_kernel` saves many times the products that join the kernels."""
    channels, wide, out = lateral.in_channels, lateral.out_channels, conv.out_channels
    plain = channels * wide + 9 * wide * wide + 9 * wide * out
    saved = x_BCHW.shape[0] * x_BCHW.shape[2] * x_BCHW.shape[3] * (plain - 25 * channels * out - 9 * wide * out)
    return saved > JOINING * 81 * wide * (channels + wide) * out


def _joined(second_ODyx: Tensor, first_DCyx: Tensor) -> Tensor:
    """Return the 5x5 kernel of two 3x3 convolutions, one after the other: (O, C, 5, 5)."""
    out, channels = len(second_ODyx), first_DCyx.shape[1]
    pairs = torch.einsum("odp,dcq->ocqp", second_ODyx.flatten(2), first_DCyx.flatten(2))
    return F.fold(pairs.reshape(1, -1, 9), 5, 3).reshape(out, channels, 5, 5)


# ---------------------------------------------------------------------------------------------------------- shared


def conv_of_doubled(weight_OCyx: Tensor, x_BChw: Tensor) -> Tensor:
    """Return the convolution of a map whose every cell is first doubled on both axes: (B, O, 2h, 2w).

    This is a transposed convolution of stride 2. From a kernel of 3 x 3, each coarse cell adds to 4 x 4 fine ones: 4
    products for each fine cell and pair of channels instead of 9; from one of 5 x 5, 9 instead of 25.

    Args:
        weight_OCyx: a kernel with odd and equal sides, for a padding of half the kernel.
        x_BChw: (B, C, h, w).
    """
    reached = F.pad(weight_OCyx.flip(2, 3).transpose(0, 1), (1, 1, 1, 1))
    reached = reached[:, :, 1:] + reached[:, :, :-1]
    kernel = reached[..., 1:] + reached[..., :-1]
    return F.conv_transpose2d(x_BChw, kernel, stride=2, padding=weight_OCyx.shape[-1] // 2)


def _doubles(x_BCHW: Tensor, coarser_BDhw: Tensor) -> bool:
    (height, width), (h, w) = x_BCHW.shape[2:], coarser_BDhw.shape[2:]
    return (height, width) == (2 * h, 2 * w)


def _lateral(lateral: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Return (D, C) and (D,)."""
    assert lateral.bias is not None
    return lateral.weight[:, :, 0, 0], lateral.bias
