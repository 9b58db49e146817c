"""Segmentors in a configuration of MMSegmentation: their method and its arguments."""

from collections.abc import Mapping, Sequence
from typing import Any

from fourstage.weights.openmmlab.backbones import MAPS
from fourstage.weights.openmmlab.evaluation import EvaluationPipeline
from fourstage.weights.openmmlab.section import ConfigSection, MethodSettings, Values, is_index, is_number


def segmentor(model: ConfigSection, pipeline: EvaluationPipeline, meta: Mapping[str, Any]) -> MethodSettings:
    head = model.section("decode_head")
    head.require("type", ["UPerHead", "FPNHead"])
    head.require("align_corners", [False, True], default=False)
    head.section("norm_cfg").require("type", ["BN", "SyncBN", "MMSyncBN", "BN2d"])
    head.section("act_cfg").require("type", ["ReLU"], default="ReLU")
    head.require("conv_cfg", [None], default=None)
    classes = head.integer("num_classes", 150)
    head.require("out_channels", [classes], default=classes)
    loss = head.sections("loss_decode")[0]
    loss.require("use_sigmoid", [False], default=False)
    arguments: Values = {"dropout": head.fraction("dropout_ratio", 0.1)}
    if head.get("align_corners", False):
        arguments["align_corners"] = True
    if head.type_name == "UPerHead":
        arguments |= {"channels": head.integer("channels", 512), **_auxiliary(model)}
        arguments["pool_scales"] = list(head.integers("pool_scales", (1, 2, 3, 6)))
        arguments |= _used_maps(head.map_indices("in_index", _maps(model)), _maps(model))
        method = "upernet"
    else:
        arguments |= {"channels": head.integer("channels", 128), **_pyramid(model, head)}
        method = "semantic_fpn"
    return MethodSettings(
        task="segmentation",
        method=method,
        method_args=arguments,
        num_classes=classes,
        evaluation=pipeline.protocol(),
        over_valid=bool(loss.get("avg_non_ignore", False)),
    )


def _maps(model: ConfigSection) -> list[int]:
    """Return the indices of the backbone's maps."""
    return list(range(len(model.section("backbone").integers("out_indices", MAPS))))


def _used_maps(used: Sequence[int], maps: Sequence[int]) -> Values:
    return {} if list(used) == list(maps) else {"maps": list(used)}


def _pyramid(model: ConfigSection, head: ConfigSection) -> Values:
    """Return the arguments of the pyramid below Semantic FPN's decoder."""
    neck, maps = model.section("neck"), _maps(model)
    neck.require("type", ["FPN"])
    for name in ("norm_cfg", "act_cfg", "conv_cfg"):
        neck.require(name, [None], default=None)
    neck.require("end_level", [-1, maps[-1]], default=-1)
    neck.require("add_extra_convs", [False], default=False)
    neck.section("upsample_cfg").require("mode", ["nearest"], default="nearest")
    used = maps[neck.integer("start_level", 0) :]
    outs = neck.integer("num_outs", len(used))
    head.require("in_index", [list(range(outs))], default=list(range(outs)))
    first_stride = head.integers("feature_strides", (4,))[0]
    doubled = [first_stride * 2**i for i in range(outs)]
    head.require("feature_strides", [doubled], default=doubled)
    arguments: Values = {"neck_channels": neck.integer("out_channels", 256), **_used_maps(used, maps)}
    return arguments if outs == len(used) else arguments | {"num_outs": outs}


def _auxiliary(model: ConfigSection) -> Values:
    """Return the arguments of the auxiliary head. An unsupported one is left out: it predicts nothing."""
    head = ConfigSection(model.get("auxiliary_head"), f"{model.path}.auxiliary_head", model.source)
    usual = head.get("kernel_size", 3) == 3 and head.get("dilation", 1) == 1
    if head.type_name != "FCNHead" or not usual or not is_index(head.get("in_index", -1)):
        return {"auxiliary_weight": 0}
    maps, at = _maps(model), head.get("in_index", -1)
    weight = head.sections("loss_decode")[0].get("loss_weight", 1.0)
    if not -len(maps) <= at < len(maps) or not is_number(weight) or weight <= 0:
        return {"auxiliary_weight": 0}
    arguments: Values = {"auxiliary_channels": head.integer("channels", 256)}
    arguments |= {"auxiliary_convs": head.integer("num_convs", 2), "auxiliary_weight": weight}
    if head.get("concat_input", True):
        arguments["auxiliary_concat"] = True
    return arguments | {"auxiliary_map": maps[at]}
