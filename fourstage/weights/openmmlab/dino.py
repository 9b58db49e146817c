"""DINO in a configuration of MMDetection 3: the arguments of our network."""

from collections.abc import Mapping
from typing import Any

from fourstage.weights.openmmlab.evaluation import EvaluationPipeline
from fourstage.weights.openmmlab.section import ConfigSection, MethodSettings, Values, is_number, unusual


def dino(model: ConfigSection, pipeline: EvaluationPipeline, meta: Mapping[str, Any]) -> MethodSettings:
    head, noise = model.section("bbox_head"), model.section("dn_cfg")
    model.require("with_box_refine", [True])
    model.require("as_two_stage", [True])
    head.require("type", ["DINOHead"])
    head.require("share_pred_layer", [False], default=False)
    head.section("loss_cls").require("use_sigmoid", [True], default=True)
    groups = noise.section("group_cfg")
    groups.require("dynamic", [True], default=True)
    arguments: Values = {
        "queries": model.integer("num_queries", 900),
        **_neck(model.section("neck")),
        **_transformer(model),
        "denoising": groups.integer("num_dn_queries", 100),
        "label_noise": noise.fraction("label_noise_scale", 0.5),
        "box_noise": _number(noise, "box_noise_scale", 1.0),
        **_positions(model.section("positional_encoding")),
        "pad_to": _divisor(model),
        "per_image": pipeline.limits().integer("max_per_img", 300),
    }
    scale = pipeline.scale()
    evaluation = {"scale": scale} if scale else {}
    return MethodSettings("detection", "dino", arguments, head.integer("num_classes", 80), evaluation)


def _neck(neck: ConfigSection) -> Values:
    neck.require("type", ["ChannelMapper"])
    neck.require("kernel_size", [1], default=3)
    if neck.values.get("act_cfg", {"type": "ReLU"}) is not None:  # MMDetection's own where the entry is missing
        raise neck.error("has an activation behind its convolutions, and here there is none; supported: act_cfg=None")
    norm = neck.section("norm_cfg")
    norm.require("type", ["GN"])
    norm.require("num_groups", [32])
    neck.require("bias", ["auto", True, False], default="auto")
    scales = neck.integer("num_outs", len(neck.integers("in_channels")))
    return {
        "scales": scales,
        "channels": neck.integer("out_channels", 256),
        **unusual({"neck_bias": (neck.get("bias") is True, False)}),
    }


def _transformer(model: ConfigSection) -> Values:
    """Return the arguments of encoder and decoder, which must have the same widths."""
    out: Values = {}
    found: list[Values] = []
    for name in ("encoder", "decoder"):
        section = model.section(name)
        out[f"{name}_layers"] = section.integer("num_layers", 6)
        layer = section.section("layer_cfg")
        attention = layer.section("self_attn_cfg" if name == "encoder" else "cross_attn_cfg")
        feed = layer.section("ffn_cfg")
        feed.section("act_cfg").require("type", ["ReLU"], default="ReLU")
        found.append({
            "heads": attention.integer("num_heads", 8),
            "points": attention.integer("num_points", 4),
            "hidden": feed.integer("feedforward_channels", 2048),
        })  # fmt: skip
    if found[0] != found[1]:
        raise model.section("decoder").error(f"has {found[1]}, and its encoder {found[0]}; here both are the same")
    return out | found[0]


def _positions(section: ConfigSection) -> Values:
    section.require("normalize", [True], default=True)
    return {
        "position_temperature": _number(section, "temperature", 10000),
        "position_offset": _number(section, "offset", 0.0),
    }


def _divisor(model: ConfigSection) -> int:
    """Return the number of pixels to whose multiples test images are padded."""
    return max(1, model.section("data_preprocessor").integer("pad_size_divisor", 1))


def _number(section: ConfigSection, name: str, default: float) -> float:
    found = section.get(name, default)
    if not is_number(found):
        raise section.error(f"has {name}={found!r:.60}, and a number is needed")
    return found
