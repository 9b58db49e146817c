"""Softmax over the last axis of products that nobody needs afterwards, by powers of two. Eager on a CPU.

PyTorch's `exp2` takes a quarter of the time of its `exp` on a processor with AVX-512, half with AVX2, and `softmax` is
mostly `exp`. Where the powers of a row stay in the range of float32 as they are, as in any trained network, its maximum
is not looked for either.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

LOG2_E = math.log2(math.e)
LEAST, MOST = 2.0**-64, 2.0**64  # a row's sum of powers: float32 has 2**-126 to 2**128


def softmax(products: Callable[[float], Tensor]) -> Tensor:
    """Return the softmax of `products(1.0)`, in its memory. No row's result depends on what other rows hold.

    Its last bits may depend on how many rows there are: `exp2` computes the last numbers of a tensor one by one. Where
    the largest number of a row is near an end of the range, -44 or 44, relative errors reach 4e-6 instead of 3e-7,
    since numbers are rounded at their own size.

    Args:
        products: returns its numbers times the factor that it is given; called again where a row leaves the range.
    """
    powers = products(LOG2_E).exp2_()
    sums = powers.sum(-1, keepdim=True)
    if not sums.numel() or _in_range(sums):
        return powers.div_(sums)
    weights = powers / sums
    scores = products(1.0)
    return torch.where((sums >= LEAST) & (sums <= MOST), weights, scores.softmax(-1), out=scores)


def _in_range(sums: Tensor) -> bool:
    least, most = torch.aminmax(sums)
    return least.item() >= LEAST and most.item() <= MOST  # false for NaN, too
