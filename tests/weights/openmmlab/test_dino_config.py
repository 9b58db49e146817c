"""DINO in MMDetection's configurations: the golden file's gives our defaults, and what differs here is refused."""

from typing import Any

import pytest
from golden.fill import read_manifest
from weights.openmmlab import configs
from weights.openmmlab.configs import changed
from weights.openmmlab.test_detector_configs import GOLDEN

from fourstage.weights.openmmlab.network import network_of_config

CONFIG = read_manifest(GOLDEN / "heads" / "dino_4scale.json.gz")["config"]
SWIN = {"type": "SwinTransformer", "embed_dims": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24]}
MODEL: dict[str, Any] = {**CONFIG, "backbone": {**SWIN, "window_size": 7, "out_indices": [1, 2, 3]}}


def read(model: dict[str, Any]) -> Any:
    return network_of_config(configs.of_mmengine(model), "m.pth")


def test_the_golden_configuration() -> None:
    found = read(MODEL)
    assert (found.method, found.num_classes, found.backbone) == ("dino", 80, "swin_tiny")
    assert found.backbone_args["out_indices"] == [1, 2, 3]
    assert found.method_args == {
        "queries": 900,
        "scales": 4,
        "channels": 256,
        "encoder_layers": 6,
        "decoder_layers": 6,
        "heads": 8,
        "points": 4,
        "hidden": 2048,
        "denoising": 100,
        "label_noise": 0.5,
        "box_noise": 1.0,
        "position_temperature": 20,
        "position_offset": 0.0,
        "pad_to": 1,
        "per_image": 300,
    }


@pytest.mark.parametrize(
    ("where", "value", "expected"),
    [
        ("num_queries", 300, {"queries": 300}),
        ("neck.bias", True, {"neck_bias": True}),
        ("neck.num_outs", 5, {"scales": 5}),
        ("encoder.num_layers", 3, {"encoder_layers": 3}),
        ("test_cfg.max_per_img", 100, {"per_image": 100}),
        ("dn_cfg.box_noise_scale", 0.4, {"box_noise": 0.4}),
    ],
)
def test_a_setting(where: str, value: object, expected: dict[str, object]) -> None:
    assert read(changed(MODEL, where, value)).method_args.items() >= expected.items()


@pytest.mark.parametrize(
    ("where", "value", "sentence"),
    [
        ("as_two_stage", False, "as_two_stage False is not supported"),
        ("neck.kernel_size", 3, "kernel_size 3 is not supported"),
        ("bbox_head.share_pred_layer", True, "share_pred_layer True is not supported"),
        ("encoder.layer_cfg.ffn_cfg.feedforward_channels", 1024, "here both are the same"),
        ("positional_encoding.temperature", "hot", "a number is needed"),
    ],
)
def test_what_is_not_as_ours_is_refused(where: str, value: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        read(changed(MODEL, where, value))


def test_a_neck_that_does_not_name_its_activation_is_refused() -> None:
    """MMDetection's ChannelMapper then has a ReLU."""
    assert "act_cfg" in MODEL["neck"]
    neck = {key: value for key, value in MODEL["neck"].items() if key != "act_cfg"}
    with pytest.raises(ValueError, match="supported: act_cfg=None"):
        read({**MODEL, "neck": neck})
