"""Convolutions with a stride over narrow maps, in bfloat16 on a CPU.

oneDNN leaves parts of the weight's gradient without a value where a map is narrower than the stride, for example in
the extra levels of a feature pyramid over images of 64 pixels (torch 2.15, processors with AVX-512 for bfloat16). The
loss then becomes NaN, or a run does not repeat bit for bit. Zeros on the right change nothing in the output.

B images, C channels, h x w cells.
"""

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor, nn


def widen_narrow_maps(task: nn.Module) -> None:
    """Pad narrow inputs of a task's convolutions with zeros to the width of a stride, where outputs stay equal."""
    for conv in _strided(task):
        conv.register_forward_pre_hook(_widen)


def _strided(task: nn.Module) -> Iterator[nn.Conv2d]:
    for module in task.modules():
        if isinstance(module, nn.Conv2d) and module.stride[1] > 1 and module.padding_mode == "zeros":
            yield module


def _widen(conv: nn.Conv2d, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    x_BChw, *others = inputs
    width, stride = x_BChw.shape[-1], conv.stride[1]
    if width >= stride or _columns(conv, width) != _columns(conv, stride):
        return inputs
    return F.pad(x_BChw, (0, stride - width)), *others


def _columns(conv: nn.Conv2d, width: int) -> int:
    """Return the width of the convolution's output."""
    assert not isinstance(conv.padding, str)  # which PyTorch refuses beside a stride
    return (width + 2 * conv.padding[1] - conv.dilation[1] * (conv.kernel_size[1] - 1) - 1) // conv.stride[1] + 1
