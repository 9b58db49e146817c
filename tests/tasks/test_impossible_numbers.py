"""Numbers that Python takes and that no training survives are refused where a network is built."""

import math
from typing import Any

import pytest
import torch

import fourstage
from fourstage.tasks.segmentation.protocol import Protocol

STAGE = {"iou": 0.5, "stds": [0.1, 0.1, 0.2, 0.2], "weight": 1.0}


@pytest.mark.parametrize(
    ("method", "arguments", "sentence"),
    [
        ("cascade_mask_rcnn", {"stages": [{**STAGE, "stds": [0.1, 0.1]}]}, r"are four numbers.*got \[0.1, 0.1\]"),
        ("cascade_mask_rcnn", {"stages": [{**STAGE, "stds": 0.1}]}, r"are four numbers.*got 0.1"),
        ("cascade_mask_rcnn", {"stages": [{**STAGE, "stds": [0.1, 0.1, 0.2, 0]}]}, "numbers above 0"),
        ("mask_rcnn", {"rpn": {"beta": -1.0}}, "beta is a difference of at least 0; got -1.0"),
    ],
)
def test_detectors(method: str, arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        fourstage.create_detector(method, "unified_pico", 3, **arguments)


@pytest.mark.parametrize("share", [math.nan, math.inf])
def test_segmentors(share: float) -> None:
    with pytest.raises(ValueError, match="prior is the share of pixels of each of 3 classes"):
        fourstage.create_segmentor("upernet", "unified_pico", 3, prior=[0.5, 0.2, share])


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("smt_tiny", {"init_values": math.nan}, "init_values is what layer scales begin with.*got nan"),
        ("unified_pico", {"init_values": math.inf}, "init_values is what layer scales begin with.*got inf"),
        ("smt_tiny", {"in_chans": -1}, r"smt_tiny cannot be built with in_chans=-1 \(.*negative.*\); correct them"),
        (
            "visformer_tiny",
            {"qk_scale_factor": 1e9},
            r"visformer_tiny cannot be built with qk_scale_factor=1000000000\.0",
        ),
    ],
)
def test_backbones(name: str, arguments: dict[str, Any], sentence: str) -> None:
    for create in (fourstage.create_model, fourstage.create_backbone):
        with pytest.raises(ValueError, match=sentence):
            create(name, **arguments)


def test_what_goes_wrong_in_a_network_of_ones_own_is_shown_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fourstage.registry._entries", {})

    def broken(**arguments: Any) -> Any:
        raise RuntimeError("mine")

    fourstage.register(broken)
    with pytest.raises(RuntimeError, match="mine"):
        fourstage.create_model("broken")


def test_an_error_without_any_argument_blames_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no memory")

    monkeypatch.setattr("fourstage.registry.call", broken)
    with pytest.raises(RuntimeError, match=r"^no memory$"):
        fourstage.create_model("unified_pico")
    with pytest.raises(ValueError, match=r"unified_pico cannot be built with in_chans=3 \(no memory\)"):
        fourstage.create_model("unified_pico", in_chans=3)


@pytest.mark.parametrize("ratio", [math.nan, math.inf, 0.0])
def test_sizes_of_views(ratio: float) -> None:
    with pytest.raises(ValueError, match="ratios are factors on an image's sides, at least one, above 0"):
        Protocol(ratios=(1.0, ratio))


def test_positions_of_maps() -> None:
    network: Any = fourstage.create_model("visformer_digits")
    with pytest.raises(ValueError, match=r"indices must be a sequence of integers, such as \(2\.0,\); got 2\.0"):
        network.forward_intermediates(torch.zeros(1, 3, 32, 32), indices=2.0)
