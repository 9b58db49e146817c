"""Depth-wise convolutions in graphs for many sizes do what the layer does, whatever a user did to it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.fx.experimental._config as tracing
from torch import Tensor, nn

from fourstage.ops.depthwise import depthwise


class Depthwise(nn.Module):
    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x_BHWC: Tensor) -> Tensor:
        return depthwise(self.conv, x_BHWC)


def conv(**arguments: Any) -> nn.Conv2d:
    return nn.Conv2d(4, 4, 3, **{"padding": 1, "groups": 4, **arguments})


def tripled(layer: nn.Module, inputs: object, out: Tensor) -> Tensor:
    return 3 * out


def hooked() -> nn.Conv2d:
    layer = conv()
    layer.register_forward_hook(tripled)
    return layer


def patched() -> nn.Conv2d:
    layer = conv()
    forward = layer.forward
    layer.forward = lambda input: forward(input).mul(3)
    return layer


LAYERS: dict[str, Callable[[], nn.Conv2d]] = {
    "plain": conv,
    "hooked": hooked,
    "patched": patched,
    "circular": lambda: conv(padding_mode="circular"),
    "dilation": lambda: conv(padding=2, dilation=2),
    "two groups": lambda: conv(groups=2),
}


@pytest.mark.parametrize("build", LAYERS.values(), ids=LAYERS)
def test_compiled_for_many_sizes(build: Callable[[], nn.Conv2d]) -> None:
    torch._dynamo.reset()
    module = Depthwise(build())
    compiled = torch.compile(module, backend="eager", dynamic=True, fullgraph=True)
    with torch.no_grad():
        for size in ((2, 6, 8, 4), (3, 5, 7, 4), (2, 9, 10, 4)):
            x_BHWC = torch.randn(size)
            torch.testing.assert_close(compiled(x_BHWC), module(x_BHWC))


@pytest.mark.parametrize("build", LAYERS.values(), ids=LAYERS)
def test_exported_for_many_sizes(build: Callable[[], nn.Conv2d]) -> None:
    module, given = Depthwise(build()), torch.randn(2, 6, 8, 4)
    sides = {1: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO}
    with tracing.patch(backed_size_oblivious=True), torch.no_grad():  # pyright: ignore[reportAttributeAccessIssue]
        program = torch.export.export(module, (given,), dynamic_shapes={"x_BHWC": sides}).module()
        for x_BHWC in (given, torch.randn(2, 5, 9, 4)):
            torch.testing.assert_close(program(x_BHWC), module(x_BHWC))
