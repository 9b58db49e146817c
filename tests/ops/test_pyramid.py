"""Joined kernels of a pyramid give what its convolutions give one after the other."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune

from fourstage.ops import pyramid

WIDTHS = st.integers(1, 5)
SIDES = st.tuples(WIDTHS, WIDTHS)


def layers(channels: int, wide: int, out: int, *, bias: bool = False) -> tuple[nn.Conv2d, nn.Conv2d, nn.Conv2d]:
    """The lateral and output convolutions of a pyramid, and one of a decoder, with biases that are not zero."""
    lateral, output = nn.Conv2d(channels, wide, 1), nn.Conv2d(wide, wide, 3, padding=1)
    return lateral, output, nn.Conv2d(wide, out, 3, padding=1, bias=bias)


def maps(channels: int, wide: int, side: tuple[int, int], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    x_BCHW = torch.randn(2, channels, 2 * side[0], 2 * side[1], dtype=dtype, requires_grad=True)
    return x_BCHW, torch.randn(2, wide, *side, dtype=dtype, requires_grad=True)


def assert_same(found: Tensor, wanted: Tensor, leaves: list[Tensor]) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    weight = torch.randn_like(wanted)
    grads = [torch.autograd.grad((weight * out).sum(), leaves) for out in (found, wanted)]
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(side=SIDES, channels=WIDTHS, wide=WIDTHS)
def test_one_joined_kernel(side: tuple[int, int], channels: int, wide: int) -> None:
    torch.manual_seed(0)
    lateral, output, _ = (layer.double() for layer in layers(channels, wide, 1))
    given = maps(channels, wide, side)
    wanted = pyramid.conv_of_wide_map(lateral, output, *given)
    found = pyramid.conv_by_joined_kernel(lateral, output, *given)
    assert_same(found, wanted, [*given, *lateral.parameters(), *output.parameters()])


@settings(max_examples=50, deadline=None)
@given(side=SIDES, channels=WIDTHS, wide=WIDTHS, out=WIDTHS, bias=st.booleans())
def test_two_joined_kernels(side: tuple[int, int], channels: int, wide: int, out: int, bias: bool) -> None:
    torch.manual_seed(0)
    lateral, output, conv = (layer.double() for layer in layers(channels, wide, out, bias=bias))
    given = maps(channels, wide, side)
    wanted = conv(pyramid.conv_of_wide_map(lateral, output, *given))
    found = pyramid.convs_by_joined_kernel(lateral, output, conv, *given)
    assert_same(found, wanted, [*given, *lateral.parameters(), *output.parameters(), *conv.parameters()])


def test_a_doubled_map_is_convolved_where_it_is_small() -> None:
    x_BCHW, weight_OCyx = torch.randn(2, 3, 5, 1).double(), torch.randn(4, 3, 3, 3).double()
    wanted = F.conv2d(F.interpolate(x_BCHW, scale_factor=2), weight_OCyx, padding=1)
    torch.testing.assert_close(pyramid.conv_of_doubled(weight_OCyx, x_BCHW), wanted, rtol=1e-12, atol=1e-12)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The fast paths that ran."""
    names: list[str] = []
    for name in ("conv_by_joined_kernel", "convs_by_joined_kernel"):
        inner = getattr(pyramid, name)
        monkeypatch.setattr(pyramid, name, lambda *args, name=name, inner=inner: names.append(name) or inner(*args))
    return names


@pytest.mark.parametrize(("width", "fast"), [(19, True), (20, False)])
def test_products_are_saved_where_the_map_is_narrow(width: int, fast: bool, calls: list[str]) -> None:
    """With 32 channels: 9 * 19 + 4 * 32 = 299 for each of them and each cell instead of 19 + 9 * 32 = 307."""
    lateral, output, _ = layers(width, 32, 1)
    pyramid.conv_of_sum(lateral, output, *maps(width, 32, (3, 2), torch.float32))
    assert bool(calls) == fast


@pytest.mark.parametrize("size", [(5, 4), (6, 5), (7, 4), (6, 3)])
def test_only_doubled_maps_join(size: tuple[int, int], calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyramid, "JOINING", 0)
    lateral, output, conv = layers(4, 8, 4)
    x_BCHW, coarser_BDhw = torch.randn(2, 4, *size), torch.randn(2, 8, 3, 2)
    out_BOHW = pyramid.convs_of_sum(lateral, output, conv, x_BCHW, coarser_BDhw)
    assert out_BOHW.shape == (2, 4, *size)
    assert not calls


def pruned(conv: nn.Conv2d) -> nn.Module:
    return prune.l1_unstructured(conv, "weight", 0.5)


def dilated(conv: nn.Conv2d) -> nn.Module:
    side = conv.kernel_size[0]
    return nn.Conv2d(4, 4, side, padding=side - 1, dilation=2)


def grouped(conv: nn.Conv2d) -> nn.Module:
    side = conv.kernel_size[0]
    return nn.Conv2d(4, 4, side, padding=side // 2, groups=2)


def reflecting(conv: nn.Conv2d) -> nn.Module:
    side = conv.kernel_size[0]
    return nn.Conv2d(4, 4, side, padding=side // 2, padding_mode="reflect")


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("change", [pruned, dilated, grouped, reflecting, nn.Sequential], ids=lambda f: f.__name__)
def test_convolutions_that_are_not_as_built_are_called(
    change: Callable[[nn.Conv2d], nn.Module], which: int, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pyramid, "JOINING", 0)
    convs: list[Any] = [*layers(4, 4, 4)]
    convs[which] = change(convs[which])
    seen: list[nn.Module] = []
    convs[which].register_forward_hook(lambda module, *_: seen.append(module))
    given = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 4, 4)
    for _ in range(2):  # pruned weights are computed again in each call
        pyramid.convs_of_sum(convs[0], convs[1], convs[2], *given).sum().backward()
    convs[which]._forward_hooks.clear()
    pyramid.convs_of_sum(convs[0], convs[1], convs[2], *given)
    assert "convs_by_joined_kernel" not in calls
    assert len(seen) == 2


def test_joining_pays_for_many_cells() -> None:
    """With the widths of ResNet-18 401,408 products are saved for each cell, and 849 million join the kernels."""
    lateral, _, conv = layers(64, 256, 128)
    cells = pyramid.JOINING * 81 * 256 * (64 + 256) * 128 // 401_408
    assert not pyramid.joining_pays(lateral, conv, torch.empty(1, 64, 1, cells))
    assert pyramid.joining_pays(lateral, conv, torch.empty(1, 64, 1, cells + 1))
