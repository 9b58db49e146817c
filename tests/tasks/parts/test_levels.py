"""A user's backbone returns the maps that its `levels` promise, or a message reports what it returns instead."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fourstage
from fourstage.backbones.layers import Level
from fourstage.data.sample import Batch
from fourstage.tasks.detection.detector import Detector
from fourstage.tasks.parts.levels import feature_maps

WIDTHS = (4, 6, 8, 10)
SMALL: dict[str, dict[str, Any]] = {
    "upernet": {"channels": 8, "auxiliary_channels": 8},
    "semantic_fpn": {"neck_channels": 8, "channels": 8},
    "retinanet": {"channels": 8},
    "atss": {"channels": 64, "convs": 1},
    "sparse_rcnn": {"proposals": 9, "stages": 1, "channels": 16, "hidden": 16, "filter_channels": 8},
    "mask_rcnn": {"channels": 8, "fc_channels": 8, "mask_channels": 8},
}
IMAGES = torch.zeros(2, 3, 128, 96)


class Own(nn.Module):
    """A backbone with strides 4 to 32; `change` turns its maps into its output."""

    levels = tuple(Level(width, 4 * 2**i) for i, width in enumerate(WIDTHS))

    def __init__(self, change: Callable[[list[Tensor]], Any] = list, odd: int = 0) -> None:
        super().__init__()
        self.change, self.odd, self.scale = change, odd, nn.Parameter(torch.ones(()))

    def forward(self, image_BCHW: Tensor) -> Any:
        b, _, h, w = image_BCHW.shape
        sides = [(h // level.stride + self.odd, w // level.stride + self.odd) for level in self.levels]
        maps = [self.scale.expand(b, level.channels, *hw) for level, hw in zip(self.levels, sides, strict=True)]
        return self.change(maps)


def run(method: str, backbone: nn.Module) -> None:
    if method in ("upernet", "semantic_fpn"):
        model = fourstage.create_segmentor(method, backbone, 3, **SMALL[method])
        model(IMAGES)
        return
    model = fourstage.create_detector(method, backbone, 3, **SMALL[method])
    assert isinstance(model, Detector)
    sizes = ((128, 96),) * 2
    model.maps(Batch(ids=("a", "b"), images_BCHW=IMAGES, sizes=sizes, original_sizes=sizes))


def by_name(maps: list[Tensor]) -> dict[str, Tensor]:
    return {str(i): x for i, x in enumerate(maps)}


def flat(maps: list[Tensor]) -> list[Tensor]:
    return [x.flatten(2) for x in maps]


def last_axis(maps: list[Tensor]) -> list[Tensor]:
    return [x.movedim(1, -1) for x in maps]


def half(maps: list[Tensor]) -> list[Tensor]:
    return [x[:, :, ::2, ::2] for x in maps]


WRONG: dict[str, tuple[Callable[[list[Tensor]], Any], str]] = {
    "fewer": (lambda maps: maps[:3], "(2, 4, 32, 24), (2, 6, 16, 12), (2, 8, 8, 6) for"),
    "more": (lambda maps: [*maps, maps[-1]], "(2, 10, 4, 3), (2, 10, 4, 3) for"),
    "none": (lambda maps: [], "no map for"),
    "other channels": (lambda maps: [maps[0][:, :3], *maps[1:]], "(2, 3, 32, 24), (2, 6"),
    "another order": (lambda maps: maps[::-1], "(2, 10, 4, 3), (2, 8"),
    "a dict": (by_name, "a dict for"),
    "one map": (lambda maps: maps[-1], "a Tensor for"),
    "no tensors": (lambda maps: [None, *maps[1:]], "a NoneType, (2, 6"),
    "no cells": (flat, "(2, 4, 768), "),
    "channels last": (last_axis, "(2, 32, 24, 4), "),
    "other strides": (half, "(2, 4, 16, 12), "),
}


@pytest.mark.parametrize("method", SMALL)
@pytest.mark.parametrize("name", WRONG)
def test_maps_that_do_not_match_the_levels_are_reported(name: str, method: str) -> None:
    change, came = WRONG[name]
    said = "its levels promise 4 channels at stride 4, 6 channels at stride 8, 8"
    with pytest.raises(ValueError, match=f"Own returned .*{re.escape(came)}.*{said}") as caught:
        run(method, Own(change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("odd", [-1, 0, 1])
def test_borders_may_be_cut_off_or_filled_up(odd: int) -> None:
    run("upernet", Own(tuple, odd))


def test_a_graph_holds_no_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is traced serves images of many sizes."""
    backbone = Own(by_name)
    with pytest.raises(ValueError, match="a dict"):
        feature_maps(backbone, IMAGES)
    for name in ("fourstage.ops.eager.is_compiling", "fourstage.ops.eager.is_tracing"):
        with monkeypatch.context() as patch:
            patch.setattr(name, lambda: True)
            assert isinstance(feature_maps(backbone, IMAGES), dict)
    model = fourstage.create_segmentor("semantic_fpn", Own(), 3, **SMALL["semantic_fpn"]).eval()
    torch.export.export(model, (IMAGES,))
