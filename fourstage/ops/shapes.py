"""Sizes of maps: rounding, padding and cropping, in a way that one traced graph can serve every size.

B images, H x W cells, C channels. A graph for many sizes must not compare a size with a number: what it compares, it
bakes in. So every question about a size passes `known_true`, and what eager code slices, a graph picks by index.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fourstage.ops.eager import is_compiling, is_transformed


def known_true(condition: bool) -> bool:
    """Return whether `condition` holds for every size that the running code serves.

    Eagerly this is the condition itself. While a graph for many sizes is traced it is True only if the condition holds
    for all of them, so that the graph takes the branch that is right for any size.
    """
    if not is_compiling():
        return bool(condition)
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(condition)


def ceil_div(side: int, stride: int) -> int:
    """Return `side / stride`, rounded up."""
    return -(-side // stride)


def pad_to(x_BHWC: Tensor, height: int, width: int) -> Tensor:
    """Pad with zeros on the right and at the bottom up to `height` x `width`, as a convolution's own padding does."""
    h, w = x_BHWC.shape[1:3]
    if known_true(h == height) and known_true(w == width):
        return x_BHWC
    return F.pad(x_BHWC, (0, 0, 0, width - w, 0, height - h))


def crop_to(x_BHWC: Tensor, height: int, width: int) -> Tensor:
    """Return the upper left `height` x `width` cells: the map without what `pad_to` added."""
    if not is_compiling():
        return x_BHWC[:, :height, :width]
    # a slice's strides depend on whether anything was cut off, and a graph for all sizes may not ask that
    for axis, side in ((1, height), (2, width)):
        x_BHWC = x_BHWC.index_select(axis, torch.arange(side, device=x_BHWC.device))
    return x_BHWC


def channels_last(x_BCHW: Tensor) -> Tensor:
    """Return the map in channels-last memory; under a transform, which adds axes of its own, as it is."""
    if is_transformed():
        return x_BCHW
    return x_BCHW.contiguous(memory_format=torch.channels_last)


def sides_like(like: Tensor, sides: Sequence[int]) -> Tensor:
    """Return sides of maps as a tensor (N,) of the type and on the device of another one."""
    if not is_compiling():
        return like.new_tensor(sides)
    return torch.stack([torch.full((), side, dtype=like.dtype, device=like.device) for side in sides])
