"""MLPs in which each cell looks at its 3 x 3 neighbours, channel by channel, before a GELU. Eager on a CPU.

Without gradients, oneDNN computes the GELU in the pass of that convolution, while a value is in a register. With
gradients, the GELU is part of the layer behind it: see `mlp.py`.

B images, H x W cells, C channels in, D channels out.
"""

from typing import TypeGuard

import torch
from torch import Tensor, nn

from fourstage.ops import products
from fourstage.ops.conv_gelu import in_one_pass
from fourstage.ops.depthwise import depthwise, is_3x3, kernel_with_itself, residual_depthwise
from fourstage.ops.eager import may_run_fast
from fourstage.ops.matmul import linear
from fourstage.ops.mlp import gelu_linear


def depthwise_mlp(
    expand: nn.Module, spatial: nn.Module, reduce: nn.Module, x_BHWC: Tensor, scale_D: Tensor | None = None
) -> Tensor:
    """Return `reduce(gelu(spatial(expand(x))))`, times a scale if there is one: (B, H, W, C) to (B, H, W, D)."""
    hidden_BHWC = linear(expand, x_BHWC)
    if _may_run_in_one_pass(spatial, hidden_BHWC):
        return linear(reduce, _activated(spatial, spatial.weight, hidden_BHWC), scale_D)
    return gelu_linear(reduce, depthwise(spatial, hidden_BHWC), scale_D)


def residual_depthwise_mlp(
    expand: nn.Module, spatial: nn.Module, reduce: nn.Module, x_BHWC: Tensor, scale_D: Tensor | None = None
) -> Tensor:
    """The same with `h + spatial(h)` in place of `spatial(h)`."""
    hidden_BHWC = linear(expand, x_BHWC)
    if _may_run_in_one_pass(spatial, hidden_BHWC):
        return linear(reduce, _activated(spatial, kernel_with_itself(spatial), hidden_BHWC), scale_D)
    return gelu_linear(reduce, residual_depthwise(spatial, hidden_BHWC), scale_D)


def _may_run_in_one_pass(spatial: nn.Module, hidden_BHWC: Tensor) -> TypeGuard[nn.Conv2d]:
    return (
        not torch.is_grad_enabled()
        and may_run_fast(hidden_BHWC, modules=(spatial,))
        and products.has_onednn()
        and is_3x3(spatial, hidden_BHWC)
    )


def _activated(spatial: nn.Conv2d, kernel_C133: Tensor, hidden_BHWC: Tensor) -> Tensor:
    return in_one_pass(spatial, kernel_C133, hidden_BHWC.movedim(-1, 1)).movedim(1, -1)
