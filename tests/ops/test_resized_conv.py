"""The convolution before the resizing gives what the convolution of resized maps gives."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fourstage.ops import resized_conv
from fourstage.ops.resized_conv import conv_of_resized, conv_then_resize, resize_then_conv

SIDES = st.tuples(st.integers(1, 9), st.integers(1, 9))


@settings(max_examples=60, deadline=None)
@given(
    first=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    others=st.lists(st.tuples(SIDES, st.integers(1, 4)), max_size=3),
    align_corners=st.booleans(),
    bias=st.booleans(),
)
def test_it_is_the_plain_order(
    first: tuple[int, int], others: list[tuple[tuple[int, int], int]], align_corners: bool, bias: bool
) -> None:
    torch.manual_seed(0)
    shapes = [(first, 3), *others]
    maps = [torch.randn(2, width, *size, dtype=torch.float64, requires_grad=True) for size, width in shapes]
    conv = nn.Conv2d(sum(width for _, width in shapes), 5, 3, padding=1, bias=bias, dtype=torch.float64)
    wanted, found = resize_then_conv(conv, maps, align_corners), conv_then_resize(conv, maps, align_corners)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-11)
    weight = torch.randn_like(wanted)
    leaves = [*maps, *conv.parameters()]
    expected = torch.autograd.grad((weight * wanted).sum(), leaves)
    torch.testing.assert_close(torch.autograd.grad((weight * found).sum(), leaves), expected, rtol=1e-9, atol=1e-10)


def test_it_exports_and_compiles_with_any_size() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(6, 4, 3, padding=1)

        def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
            return conv_of_resized(self.conv, [fine, coarse])

    height, width = torch.export.Dim("height", min=4), torch.export.Dim("width", min=4)
    rows, columns = torch.export.Dim("rows", min=2), torch.export.Dim("columns", min=2)
    network = Two().eval()
    inputs = (torch.randn(2, 2, 12, 16), torch.randn(2, 4, 6, 8))
    program = torch.export.export(network, inputs, dynamic_shapes=({2: height, 3: width}, {2: rows, 3: columns}))
    other = (torch.randn(2, 2, 10, 20), torch.randn(2, 4, 5, 7))
    torch.testing.assert_close(program.module()(*other), network(*other))


@pytest.mark.parametrize("changes", [{"padding": 0}, {"stride": 2}, {"groups": 2}, {"padding_mode": "reflect"}])
def test_other_convolutions_take_the_plain_form(changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resized_conv, "conv_then_resize", None)
    conv = nn.Conv2d(6, 4, 3, **{"padding": 1, **changes})
    maps = [torch.randn(2, 4, 7, 8), torch.randn(2, 2, 4, 4)]
    wanted = conv(torch.cat([maps[0], F.interpolate(maps[1], size=(7, 8), mode="bilinear")], dim=1))
    torch.testing.assert_close(conv_of_resized(conv, maps), wanted)
