"""What MMSegmentation's configurations mean for the network that is built of them, and for the images that it sees."""

from pathlib import Path
from typing import Any

import pytest
from weights.openmmlab import configs
from weights.openmmlab.configs import changed

from fourstage.run.described import recipe_of
from fourstage.weights.openmmlab.network import network_of_config

CLASSES = ("cat", "dog", "owl")
SWIN = {"type": "SwinTransformer", "embed_dims": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24]}


def recipe(model: dict[str, Any], **changes: Any) -> Any:
    model = {**model, "backbone": SWIN}
    for path, value in changes.items():
        model = changed(model, path.replace("__", "."), value)
    return recipe_of(network_of_config(configs.of_mmengine(model), "m.pth", classes=CLASSES), Path("m.pth"))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"auxiliary_channels": 16, "auxiliary_convs": 1, "auxiliary_map": 2, "auxiliary_weight": 1.0}),
        ({"auxiliary_head__in_index": -1, "auxiliary_head__concat_input": True},
         {"auxiliary_map": 3, "auxiliary_concat": True}),
        ({"auxiliary_head__loss_decode": {"type": "CrossEntropyLoss", "loss_weight": 0.4}}, {"auxiliary_weight": 0.4}),
        ({"auxiliary_head__num_convs": None}, {"auxiliary_convs": 2}),
        ({"auxiliary_head": None}, {"auxiliary_weight": 0}),
        ({"auxiliary_head": [{"type": "FCNHead"}, {"type": "FCNHead"}]}, {"auxiliary_weight": 0}),
        ({"auxiliary_head__type": "PSPHead"}, {"auxiliary_weight": 0}),
        ({"auxiliary_head__kernel_size": 1}, {"auxiliary_weight": 0}),
        ({"decode_head__align_corners": True}, {"align_corners": True}),
        ({"decode_head__in_index": [0, 1, 2, 3]}, {"maps": None}),
        ({"decode_head__in_index": [1, 3]}, {"maps": [1, 3]}),
        ({"backbone__out_indices": [1, 2, 3], "auxiliary_head__in_index": 1}, {"auxiliary_map": 1, "maps": None}),
    ],
)  # fmt: skip
def test_upernet(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    found = recipe(configs.upernet(), **changes)
    assert {name: found.method_args.get(name) for name in expected} == expected
    assert found.over_valid is False


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"channels": 16, "neck_channels": 16, "maps": None, "num_outs": None, "align_corners": None}),
        ({"neck__start_level": 1, "neck__num_outs": 3, "decode_head__feature_strides": [8, 16, 32]},
         {"maps": [1, 2, 3]}),
        ({"neck__num_outs": 5, "decode_head__feature_strides": [4, 8, 16, 32, 64]}, {"num_outs": 5}),
        ({"decode_head__align_corners": True}, {"align_corners": True}),
    ],
)  # fmt: skip
def test_semantic_fpn(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    found = recipe(configs.semantic_fpn(), **changes)
    assert {name: found.method_args.get(name) for name in expected} == expected


def test_the_mean_over_pixels_that_count() -> None:
    assert recipe(configs.upernet(), decode_head__loss_decode={"avg_non_ignore": True}).over_valid is True


@pytest.mark.parametrize(
    ("model", "changes", "sentence"),
    [
        (
            configs.upernet(),
            {"decode_head__act_cfg": {"type": "GELU"}},
            "decode_head.act_cfg: type 'GELU' is not supported",
        ),
        (configs.upernet(), {"decode_head__out_channels": 1}, "out_channels 1 is not supported"),
        (configs.upernet(), {"decode_head__loss_decode": {"use_sigmoid": True}}, "use_sigmoid True is not supported"),
        (configs.upernet(), {"decode_head__in_index": [0, 4]}, r"in_index must be indices of the 4 maps; got \[0, 4\]"),
        (configs.semantic_fpn(), {"decode_head__feature_strides": [4, 8, 8, 16]}, "feature_strides"),
        (configs.semantic_fpn(), {"neck__norm_cfg": {"type": "BN"}}, "neck: norm_cfg"),
        (configs.semantic_fpn(), {"neck__upsample_cfg": {"mode": "bilinear"}}, "mode 'bilinear' is not supported"),
        (configs.semantic_fpn(), {"neck__add_extra_convs": "on_input"}, "add_extra_convs"),
    ],
)
def test_heads_that_are_not_here_are_refused(model: dict[str, Any], changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        recipe(model, **changes)


def seen(steps: list[dict[str, Any]], **preprocessor: Any) -> Any:
    """How a network of MMSegmentation 1.x sees test images."""
    model = {**configs.semantic_fpn(), "backbone": SWIN}
    first = {"mean": [1, 2, 3], "std": [4, 5, 6], "bgr_to_rgb": True, **preprocessor}
    config = {"model": {**model, "data_preprocessor": first}, "test_dataloader": {"dataset": {"pipeline": steps}}}
    found: Any = recipe_of(network_of_config(config, "m.pth", classes=CLASSES), Path("m.pth"))
    return found.evaluation


LOAD, RESIZE = {"type": "LoadImageFromFile"}, {"type": "Resize", "scale": (256, 128), "keep_ratio": True}


def test_the_sizes_of_test_images() -> None:
    assert seen([LOAD, RESIZE]).scale == (256, 128)
    assert seen([LOAD]).scale is None  # their own size
    assert seen([LOAD, {"type": "Resize", "scale_factor": 1.0}]).scale is None
    assert seen([]).scale == (2048, 512)  # nothing is said
    assert seen([LOAD, RESIZE], size_divisor=32).divisor == 1  # while training alone
    assert seen([LOAD, RESIZE], test_cfg={"size_divisor": 32}).divisor == 32
    normalise = {"type": "Normalize", "mean": [1, 2, 3], "std": [4, 5, 6]}
    assert seen([LOAD, RESIZE, normalise, {"type": "Pad", "size_divisor": 16}]).divisor == 16


@pytest.mark.parametrize(
    ("steps", "preprocessor", "sentence"),
    [
        ([LOAD, RESIZE, {"type": "ResizeToMultiple", "size_divisor": 32}], {}, "step ResizeToMultiple"),
        ([LOAD, {"type": "AlignResize", "img_scale": (256, 128), "keep_ratio": True}], {}, "step AlignResize"),
        ([LOAD, RESIZE, {"type": "Pad", "size_divisor": 32}], {}, "before images are normalised"),
        ([LOAD, RESIZE], {"test_cfg": {"size": (512, 512)}}, r"test_cfg: size \(512, 512\) is not supported"),
        ([LOAD, {"type": "Resize", "scale_factor": 0.5, "keep_ratio": True}], {}, "two numbers of pixels"),
    ],
)
def test_other_ways_to_make_test_images_are_refused(
    steps: list[dict[str, Any]], preprocessor: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        seen(steps, **preprocessor)
