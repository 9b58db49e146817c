"""The pyramid gives the same maps in the plain form and by the fast path."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune

from fourstage.backbones.layers import Level
from fourstage.ops import pyramid
from fourstage.tasks.parts.fpn import FPN, Extra


def two_maps(width: int) -> list[Tensor]:
    return [torch.randn(1, width, 6, 4), torch.randn(1, 8, 3, 2)]


def two_levels(width: int) -> FPN:
    return FPN([Level(width, 4), Level(8, 8)], 32, 2)


def watch(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows when the fast path runs."""
    calls: list[int] = []
    inner = pyramid.conv_by_joined_kernel
    monkeypatch.setattr(pyramid, "conv_by_joined_kernel", lambda *args: calls.append(1) or inner(*args))
    return calls


def plain(fpn: FPN, maps: list[Tensor]) -> list[Tensor]:
    """Return the outputs of the maps that come in, without further ones."""
    laterals = [conv(x_BCHW) for conv, x_BCHW in zip(fpn.laterals, maps, strict=True)]
    for i in reversed(range(len(maps) - 1)):
        laterals[i] = laterals[i] + F.interpolate(laterals[i + 1], size=laterals[i].shape[2:])
    return [conv(x_BCHW) for conv, x_BCHW in zip(fpn.outputs[: len(maps)], laterals, strict=True)]


@settings(max_examples=60, deadline=None)
@given(
    coarsest=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    odd=st.sampled_from([(0, 0), (0, 0), (0, 0), (1, 0), (0, -1)]),
    widths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    start=st.integers(0, 1),
    more=st.integers(0, 2),
    extra=st.sampled_from(["pool", "input", "lateral", "output"]),
)
def test_the_fast_path_is_the_plain_form(
    coarsest: tuple[int, int], odd: tuple[int, int], widths: list[int], start: int, more: int, extra: Extra
) -> None:
    torch.manual_seed(0)
    start = min(start, len(widths) - 1)
    sizes = [tuple(side << i for side in coarsest) for i in reversed(range(len(widths)))]
    sizes[start] = tuple(max(1, side + one) for side, one in zip(sizes[start], odd, strict=True))
    maps = [torch.randn(2, width, *size, dtype=torch.float64) for width, size in zip(widths, sizes, strict=True)]
    maps = [map.requires_grad_() for map in maps]
    levels = [Level(width, 4 << i) for i, width in enumerate(widths)]
    fpn = FPN(levels, 12, len(widths) - start + more, start_level=start, extra=extra).double()
    for conv in (*fpn.laterals, *fpn.outputs):
        assert isinstance(conv.bias, Tensor)
        nn.init.normal_(conv.bias)
    with pytest.MonkeyPatch.context() as patch:
        calls = watch(patch)
        patch.setattr(pyramid, "may_run_fast", lambda *_, modules: True)  # in float64 too
        found = fpn(maps)
        patch.setattr(pyramid, "may_run_fast", lambda *_, modules: False)
        wanted = fpn(maps)
    (height, width), coarser = sizes[start], sizes[start + 1] if start + 1 < len(widths) else (0, 0)
    assert bool(calls) == ((height, width) == (2 * coarser[0], 2 * coarser[1]) and 8 * widths[start] < 5 * 12)
    torch.testing.assert_close(wanted[: len(maps) - start], plain(fpn, maps[start:]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    weights = [torch.randn_like(map) for map in wanted]
    leaves = [*maps[start:], *fpn.parameters()]
    grads = [
        torch.autograd.grad([(weight * map).sum() for weight, map in zip(weights, maps, strict=True)], leaves)
        for maps in (found, wanted)
    ]
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-9)


def test_convolutions_that_are_not_as_built_are_called(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = watch(monkeypatch)
    hooked, wrapped, pruned = two_levels(8), two_levels(8), two_levels(8)
    outs: list[Any] = []
    hooked.outputs[0].register_forward_hook(lambda _module, _inputs, out: outs.append(out))
    wrapped.laterals[0] = nn.Sequential(wrapped.laterals[0])
    prune.l1_unstructured(pruned.laterals[0], "weight", 0.5)
    for fpn in (hooked, wrapped, pruned):
        for _ in range(2):  # pruned weights are computed again in each call
            fpn(two_maps(8))[0].sum().backward()
    assert not calls
    assert len(outs) == 2


def test_it_exports_for_any_sizes_of_its_maps() -> None:
    sides = [{2: torch.export.Dim(f"h{i}", min=4), 3: torch.export.Dim(f"w{i}", min=4)} for i in range(2)]
    fpn = two_levels(8).eval()
    maps = [torch.randn(1, 8, 16, 12), torch.randn(1, 8, 8, 6)]
    program = torch.export.export(fpn, (maps,), dynamic_shapes=(sides,))
    for other in (maps, [torch.randn(1, 8, 17, 9), torch.randn(1, 8, 9, 5)]):
        torch.testing.assert_close(program.module()(other), fpn(other))
