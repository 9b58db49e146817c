"""Semantic FPN's neck and decoder, whose first convolutions join where that is faster."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fourstage.backbones.layers import Level
from fourstage.ops import pyramid
from fourstage.tasks.segmentation.semantic_fpn import semantic_fpn

SIDE = 384  # pixels: 2 images have cells enough


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
    return semantic_fpn(Maps(), 3, neck_channels=32, channels=16)


def watch(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows when the fast path runs."""
    calls: list[int] = []
    inner = pyramid.convs_by_joined_kernel
    monkeypatch.setattr(pyramid, "convs_by_joined_kernel", lambda *args: calls.append(1) or inner(*args))
    return calls


@pytest.mark.parametrize(
    ("sizes", "fast"), [(((96, 96), (48, 48)), True), (((8, 8), (4, 4)), False), (((95, 96), (48, 48)), False)]
)
def test_joining_pays_for_many_cells_of_doubled_maps(
    sizes: tuple[tuple[int, int], ...], fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Fixed(nn.Module):
        levels = Maps.levels

        def forward(self, _image: Tensor) -> list[Tensor]:
            return maps

    maps = [torch.randn(2, width, *size) for width, size in zip((8, 16), sizes, strict=True)]
    segmentor: Any = semantic_fpn(Fixed(), 3, neck_channels=32, channels=16).eval()
    calls = watch(monkeypatch)
    image_BCHW = torch.zeros(2, 3, 4 * sizes[0][0], 4 * sizes[0][1])
    found = segmentor.coarse(image_BCHW)
    assert bool(calls) == fast
    monkeypatch.setenv("FOURSTAGE_OPS", "plain")
    torch.testing.assert_close(found, segmentor.coarse(image_BCHW), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found, segmentor.decoder(segmentor.neck(maps)), rtol=1e-4, atol=1e-5)


def test_a_norm_that_was_folded_into_the_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = watch(monkeypatch)
    segmentor = built().eval()
    for norm in (module for module in segmentor.modules() if isinstance(module, nn.BatchNorm2d)):
        for numbers in (norm.running_mean, norm.bias):
            assert isinstance(numbers, Tensor)
            nn.init.normal_(numbers)
    image_BCHW = torch.randn(2, 3, SIDE, SIDE)
    with torch.no_grad():
        wanted = segmentor.coarse(image_BCHW)
        layer = segmentor.decoder.scales[0].convs[0]
        layer.conv, layer.norm = fuse_conv_bn_eval(layer.conv, layer.norm), nn.Identity()
        torch.testing.assert_close(segmentor.coarse(image_BCHW), wanted, rtol=1e-4, atol=1e-5)
    assert len(calls) == 2


@pytest.mark.parametrize(
    "name",
    [
        *("neck", "neck.laterals.0", "neck.outputs.0", "decoder", "decoder.scales.0", "decoder.scales.0.convs.0"),
        "decoder.scales.0.convs.0.conv",
    ],
)
def test_modules_that_are_not_as_built_are_called(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyramid, "convs_by_joined_kernel", None)
    image_BCHW, seen = torch.randn(2, 3, SIDE, SIDE), []
    hooked, wrapped = built(), built()
    hooked.get_submodule(name).register_forward_hook(lambda *args: seen.append(args))
    hooked.coarse(image_BCHW)
    assert len(seen) == 1
    parent, _, last = name.rpartition(".")
    wrapped.get_submodule(parent)._modules[last] = nn.Sequential(wrapped.get_submodule(name))
    wrapped.coarse(image_BCHW)


def test_a_scale_of_two_layers_applies_both() -> None:
    segmentor, image_BCHW = built().eval(), torch.randn(2, 3, SIDE, SIDE)
    segmentor.decoder.scales[0].convs.append(nn.Conv2d(16, 16, 3, padding=1))
    wanted = segmentor.decoder(segmentor.neck(segmentor.backbone(image_BCHW)))
    torch.testing.assert_close(segmentor.coarse(image_BCHW), wanted, rtol=1e-4, atol=1e-5)


def test_it_exports_for_any_batch() -> None:
    """The fast path takes eight images and would not take one."""
    segmentor = built().eval()
    dims = ({0: torch.export.Dim("batch", min=1, max=64)},)
    program = torch.export.export(segmentor, (torch.randn(8, 3, 128, 128),), dynamic_shapes=dims)
    one = torch.randn(1, 3, 128, 128)
    torch.testing.assert_close(program.module()(one), segmentor(one), rtol=1e-4, atol=1e-5)
