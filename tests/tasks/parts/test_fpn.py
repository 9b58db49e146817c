"""The pyramid gives the same maps in the plain order and in the one with fewer products."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fourstage.backbones.layers import Level
from fourstage.tasks.parts.fpn import FPN, Extra
from fourstage.tasks.parts.resized_conv import conv_of_doubled


def plain(fpn: FPN, maps: list[Tensor]) -> list[Tensor]:
    """Of the maps that come in alone."""
    laterals = [conv(x_BCHW) for conv, x_BCHW in zip(fpn.laterals, maps, strict=True)]
    for i in reversed(range(len(maps) - 1)):
        laterals[i] = laterals[i] + F.interpolate(laterals[i + 1], size=laterals[i].shape[2:])
    return [conv(x_BCHW) for conv, x_BCHW in zip(fpn.outputs, laterals, strict=False)]


@settings(max_examples=60, deadline=None)
@given(
    coarsest=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    odd=st.tuples(st.integers(-1, 1), st.integers(-1, 1)),
    widths=st.lists(st.integers(1, 24), min_size=1, max_size=3),
    extra=st.sampled_from(["pool", "input", "lateral", "output"]),
)
def test_it_is_the_plain_order(
    coarsest: tuple[int, int], odd: tuple[int, int], widths: list[int], extra: Extra
) -> None:
    torch.manual_seed(0)
    sizes = [tuple(side << i for side in coarsest) for i in reversed(range(len(widths)))]
    sizes[0] = tuple(max(1, side + one) for side, one in zip(sizes[0], odd, strict=True))
    maps = [torch.randn(2, width, *size, dtype=torch.float64) for width, size in zip(widths, sizes, strict=True)]
    maps = [map.requires_grad_() for map in maps]
    fpn = FPN([Level(width, 4 << i) for i, width in enumerate(widths)], 12, len(widths) + 1, extra=extra).double()
    for conv in (*fpn.laterals, *fpn.outputs):
        assert isinstance(conv.bias, Tensor)
        nn.init.normal_(conv.bias)
    wanted, found = plain(fpn, maps), fpn(maps)[: len(maps)]
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    weights = [torch.randn_like(map) for map in wanted]
    leaves = [*maps, *fpn.laterals.parameters(), *fpn.outputs[: len(maps)].parameters()]
    grads = [
        torch.autograd.grad([(weight * map).sum() for weight, map in zip(weights, maps, strict=True)], leaves)
        for maps in (found, wanted)
    ]
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("width", "short"), [(19, True), (20, False)])
def test_products_are_saved_where_the_finest_map_is_narrow(width: int, short: bool) -> None:
    """From 32 channels: 9 * 19 + 4 * 32 = 299 for each of them and each cell instead of 19 + 9 * 32 = 307."""
    fpn = FPN([Level(width, 4), Level(8, 8)], 32, 2)
    maps = [torch.randn(1, width, 6, 4), torch.randn(1, 8, 3, 2)]
    seen: list[int] = []
    fpn.laterals[0].register_forward_hook(lambda *_: seen.append(1))
    fpn(maps)
    assert seen == [1] * (not short)


def test_a_doubled_map_is_convolved_where_it_is_small() -> None:
    x_BCHW, weight_OCyx = torch.randn(2, 3, 5, 1).double(), torch.randn(4, 3, 3, 3).double()
    wanted = F.conv2d(F.interpolate(x_BCHW, scale_factor=2), weight_OCyx, padding=1)
    torch.testing.assert_close(conv_of_doubled(weight_OCyx, x_BCHW), wanted, rtol=1e-12, atol=1e-12)
