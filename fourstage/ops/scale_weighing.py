"""Weighing the views of several scales against each other: the heart of SMT's modulation.

B images, H x W cells, C channels: M scales of G channels each. D = E * C channels come out.
"""

import math
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourstage.ops.eager import may_run_fast
from fourstage.ops.layer_checks import is_conv

RUN = 8  # channels of a scale in one group of the convolution: small groups are slow, large ones wasteful


def weigh_scales(weigh: nn.Module, norm: nn.Module, views_BHWG: list[Tensor]) -> Tensor:
    """Return (B, D, H, W): the M views woven, so that those of one channel are side by side, weighed, and normed.

    Args:
        weigh: a 1x1 convolution from C to D channels in G groups.
        views_BHWG: one for each scale.
    """
    if may_run_fast(*views_BHWG, modules=(weigh, norm)) and _weighs_each_channel(weigh, views_BHWG):
        return in_runs(weigh, norm, views_BHWG)
    woven_BHWC = torch.stack(views_BHWG, dim=-1).flatten(-2)
    return norm(weigh(woven_BHWC.movedim(-1, 1)))


def in_runs(weigh: nn.Conv2d, norm: nn.Module, views_BHWG: list[Tensor]) -> Tensor:
    """The same with several channels of a scale in a group, and a norm with fixed statistics as part of the weights."""
    weight_DM, bias_D = weigh.weight.flatten(1), weigh.bias
    folded = False
    if bias_D is not None and _is_fixed(norm, len(bias_D)):
        folded = True
        weight_DM, bias_D = with_norm(weight_DM, bias_D, norm)
    group = views_BHWG[0].shape[-1]
    run = math.gcd(group, RUN)
    woven_BHWC = torch.stack([view.unflatten(-1, (-1, run)) for view in views_BHWG], dim=-2).flatten(-3)
    weight = run_weights(weight_DM, group, run)[:, :, None, None]
    weighed_BDHW = F.conv2d(woven_BHWC.movedim(-1, 1), weight, bias_D, groups=group // run)
    return weighed_BDHW if folded else norm(weighed_BDHW)


def with_norm(weight_DM: Tensor, bias_D: Tensor, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return weights and bias of a convolution that also does what a norm with fixed statistics does to its output."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    gain_D = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return weight_DM * gain_D[:, None], (bias_D - norm.running_mean) * gain_D + norm.bias


def _weighs_each_channel(weigh: nn.Module, views_BHWG: list[Tensor]) -> TypeGuard[nn.Conv2d]:
    group = views_BHWG[0].shape[-1]
    return is_conv(weigh, 1, group * len(views_BHWG), groups=group)


def _is_fixed(norm: nn.Module, channels: int) -> TypeGuard[nn.BatchNorm2d]:
    """Return whether a norm's statistics, scale and shift are fixed numbers in this pass, one for each channel."""
    if not isinstance(norm, nn.BatchNorm2d) or norm.training:
        return False
    tensors = norm.weight, norm.bias, norm.running_mean, norm.running_var
    return all(tensor is not None and tensor.shape == (channels,) for tensor in tensors)


def run_weights(weight_DM: Tensor, group: int, run: int) -> Tensor:
    """Return (D, M * run): weights that read a run of channels, M times each, from weights that read one channel."""
    scales = weight_DM.shape[1]
    diagonal = weight_DM.unflatten(0, (group // run, run, -1)).permute(0, 2, 3, 1).diag_embed()  # runs, E, M, run, run
    return diagonal.permute(0, 3, 1, 2, 4).reshape(-1, scales * run)
