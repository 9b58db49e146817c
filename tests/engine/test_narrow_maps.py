"""Gradients in bfloat16 over maps that are narrower than a stride, with memory that holds NaN before."""

import pytest
import torch
from torch import Tensor, nn

from fourstage.engine.narrow_maps import widen_narrow_maps

KINDS = {  # kernel, stride, padding
    "pyramid": (3, 2, 1),
    "stem": (7, 2, 3),
    "patches": (7, 4, 3),
    "even": (4, 4, 2),  # its output would be wider: left as it is
}


def fill_freed_memory_with_nan() -> None:
    blocks = [torch.full((size,), float("nan")) for size in (64, 576, 4096, 36864, 65536, 147456)]
    del blocks


def gradient(conv: nn.Conv2d, x_BCHW: Tensor, *, bfloat16: bool) -> tuple[Tensor, Tensor]:
    conv.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        out = conv(x_BCHW)
    fill_freed_memory_with_nan()
    out.float().sum().backward()
    assert conv.weight.grad is not None
    return out.detach().float(), conv.weight.grad.clone()


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (3, 2), (1, 3), (5, 5)])
@pytest.mark.parametrize("kind", ["pyramid", "stem", "patches"])
def test_gradients_are_those_of_float32(kind: str, size: tuple[int, int]) -> None:
    kernel, stride, padding = KINDS[kind]
    plain = nn.Conv2d(16, 16, kernel, stride, padding)
    widened = nn.Conv2d(16, 16, kernel, stride, padding)
    widened.load_state_dict(plain.state_dict())
    widen_narrow_maps(nn.Sequential(widened))
    x_BCHW = torch.randn(2, 16, *size)
    expected = gradient(plain, x_BCHW, bfloat16=False)
    torch.testing.assert_close(gradient(widened, x_BCHW, bfloat16=False), expected)
    for _ in range(3):
        torch.testing.assert_close(gradient(widened, x_BCHW, bfloat16=True), expected, rtol=2e-2, atol=5e-2)


def test_what_needs_no_zeros_gets_none() -> None:
    network = nn.Sequential(nn.Conv2d(2, 2, *KINDS["even"]), nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3, 2, 1))
    widen_narrow_maps(network)
    widths: list[int] = []
    for conv in network:
        conv.register_forward_pre_hook(lambda _, inputs: widths.append(inputs[0].shape[-1]))
    network[0](torch.ones(1, 2, 3, 3))
    network[1](torch.ones(1, 2, 3, 3))
    network[2](torch.ones(1, 2, 1, 2))
    network[2](torch.ones(1, 2, 2, 1))
    assert widths == [3, 3, 2, 2]


def test_a_map_as_wide_as_the_stride_is_not_cut() -> None:
    conv = nn.Conv2d(2, 2, kernel_size=2, stride=3, padding=1)  # over 3, 4 and 5 columns, the output has 2
    widen_narrow_maps(nn.Sequential(conv))
    x_BCHW = torch.randn(1, 2, 3, 5)
    assert torch.equal(conv(x_BCHW), conv._conv_forward(x_BCHW, conv.weight, conv.bias))
