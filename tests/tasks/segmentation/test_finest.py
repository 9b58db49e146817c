"""Semantic FPN's two convolutions of the finest map, as one and one after the other."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fourstage.backbones.layers import Level
from fourstage.tasks.parts.fpn import FPN
from fourstage.tasks.segmentation import semantic_fpn
from fourstage.tasks.segmentation.finest import conv_of_finest, is_shorter


def pyramid(widths: tuple[int, ...], channels: int) -> FPN:
    fpn = FPN([Level(width, 4 << i) for i, width in enumerate(widths)], channels, len(widths)).double()
    for conv in (*fpn.laterals, *fpn.outputs):
        assert isinstance(conv.bias, Tensor)
        nn.init.normal_(conv.bias)
    return fpn


class Maps(nn.Module):
    """A backbone of two maps, made of patches."""

    levels = (Level(8, 4), Level(16, 8))

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.ModuleList(nn.Conv2d(3, level.channels, level.stride, level.stride) for level in self.levels)

    def forward(self, image_BCHW: Tensor) -> list[Tensor]:
        return [patches(image_BCHW) for patches in self.patches]


def built() -> Any:
    torch.manual_seed(0)
    return semantic_fpn.semantic_fpn(Maps(), 3, neck_channels=32, channels=16)


@settings(max_examples=50, deadline=None)
@given(side=st.tuples(st.integers(1, 5), st.integers(1, 5)), widths=st.tuples(*[st.integers(1, 5)] * 4))
def test_it_is_the_plain_order(side: tuple[int, int], widths: tuple[int, int, int, int]) -> None:
    torch.manual_seed(0)
    neck = pyramid(widths[:2], widths[2])
    conv = nn.Conv2d(widths[2], widths[3], 3, padding=1, bias=False).double()
    fine_BCHW = torch.randn(2, widths[0], 2 * side[0], 2 * side[1], dtype=torch.float64, requires_grad=True)
    coarse_BCHW = torch.randn(2, widths[1], *side, dtype=torch.float64, requires_grad=True)
    merged, outs = neck.but_finest([fine_BCHW, coarse_BCHW])
    finest_BCHW, *others = neck([fine_BCHW, coarse_BCHW])
    torch.testing.assert_close(outs, others, rtol=0, atol=0)
    wanted, found = conv(finest_BCHW), conv_of_finest(neck, conv, fine_BCHW, merged)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    weight = torch.randn_like(wanted)
    leaves = [fine_BCHW, coarse_BCHW, conv.weight, *neck.laterals.parameters(), *neck.outputs[:1].parameters()]
    grads = [torch.autograd.grad((weight * out).sum(), leaves) for out in (found, wanted)]
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sizes", [((64, 64), (32, 32)), ((8, 8), (4, 4)), ((63, 64), (32, 32))])
def test_a_segmentor_chooses_the_shorter_way(
    sizes: tuple[tuple[int, int], ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernels are joined once for all cells, so few of them go the plain way, and so does a map that is odd."""

    class Maps(nn.Module):
        levels = (Level(8, 4), Level(16, 8))

        def forward(self, _image: Tensor) -> list[Tensor]:
            return maps

    maps = [torch.randn(2, width, *size) for width, size in zip((8, 16), sizes, strict=True)]
    segmentor = semantic_fpn.semantic_fpn(Maps(), 3, neck_channels=32, channels=16).eval()
    seen: list[int] = []
    monkeypatch.setattr(semantic_fpn, "conv_of_finest", lambda *args: seen.append(1) or conv_of_finest(*args))
    image_BCHW = torch.zeros(2, 3, 4 * sizes[0][0], 4 * sizes[0][1])
    found = segmentor.coarse(image_BCHW)
    assert bool(seen) == (sizes[0] == (64, 64))
    monkeypatch.setattr(semantic_fpn, "is_shorter", lambda *_: False)
    torch.testing.assert_close(found, segmentor.coarse(image_BCHW), rtol=1e-4, atol=1e-5)


def test_a_norm_that_was_folded_into_the_convolution() -> None:
    segmentor = built().eval()
    for norm in (module for module in segmentor.modules() if isinstance(module, nn.BatchNorm2d)):
        for numbers in (norm.running_mean, norm.bias):
            assert isinstance(numbers, Tensor)
            nn.init.normal_(numbers)
    image_BCHW = torch.randn(2, 3, 256, 256)
    wanted = segmentor.coarse(image_BCHW)
    first = segmentor.decoder.first
    first.conv, first.norm = fuse_conv_bn_eval(first.conv, first.norm), nn.Identity()
    torch.testing.assert_close(segmentor.coarse(image_BCHW), wanted, rtol=1e-4, atol=1e-5)


def test_modules_that_are_not_as_built_are_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semantic_fpn, "conv_of_finest", None)
    seen: list[Any] = []
    for name in ("neck", "decoder", "decoder.scales.0", "decoder.scales.0.convs.0.conv", "neck.outputs.0"):
        segmentor = built()
        segmentor.get_submodule(name).register_forward_hook(lambda *args: seen.append(args))
        segmentor.coarse(torch.randn(2, 3, 256, 256))
    assert len(seen) == 5
    wrapped = built()
    wrapped.decoder = nn.Sequential(wrapped.decoder)
    wrapped.coarse(torch.randn(2, 3, 256, 256))


def test_it_exports_for_any_batch() -> None:
    """Eight images would go the short way and one would not."""
    segmentor = built().eval()
    dims = ({0: torch.export.Dim("batch", min=1, max=64)},)
    program = torch.export.export(segmentor, (torch.randn(8, 3, 128, 128),), dynamic_shapes=dims)
    one = torch.randn(1, 3, 128, 128)
    torch.testing.assert_close(program.module()(one), segmentor(one), rtol=1e-4, atol=1e-5)


def test_products_are_counted() -> None:
    """With the widths of ResNet-18 401,408 products are saved for each cell, and 849 million are needed first."""
    neck, conv = FPN([Level(64, 4), Level(128, 8)], 256, 2), nn.Conv2d(256, 128, 3, padding=1, bias=False)
    needed = 81 * 256 * (64 + 256) * 128
    cells = needed // (64 * 256 + 9 * 256 * 256 + 9 * 256 * 128 - 25 * 64 * 128 - 9 * 256 * 128)
    assert not is_shorter(neck, conv, torch.empty(1, 64, 1, cells))
    assert is_shorter(neck, conv, torch.empty(1, 64, 1, cells + 1))
