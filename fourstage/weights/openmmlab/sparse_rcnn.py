"""Sparse R-CNN in a configuration of MMDetection."""

from collections.abc import Mapping
from typing import Any

from fourstage.weights.openmmlab.backbones import MAPS
from fourstage.weights.openmmlab.evaluation import EvaluationPipeline
from fourstage.weights.openmmlab.section import ConfigSection, MethodSettings, Values, unusual

STDS = [0.5, 0.5, 1.0, 1.0]


def sparse_rcnn(model: ConfigSection, pipeline: EvaluationPipeline, meta: Mapping[str, Any]) -> MethodSettings:
    rpn, roi, neck = model.section("rpn_head"), model.section("roi_head"), model.section("neck")
    rpn.require("type", ["EmbeddingRPNHead"])
    roi.require("type", ["SparseRoIHead"])
    heads, channels = roi.sections("bbox_head"), neck.integer("out_channels", 256)
    _check_neck(neck, model)
    _check_regions(roi.section("bbox_roi_extractor"))
    for head in heads:
        _check_head(head, channels)
    proposals, head = rpn.integer("num_proposals", 100), heads[0]
    limits = pipeline.limits().section("rcnn")
    arguments: Values = {
        "proposals": proposals,
        "per_image": limits.integer("max_per_img", 100),
        **unusual(
            {
                "channels": (channels, 256),
                "stages": (len(heads), 6),
                "heads": (head.integer("num_heads", 8), 8),
                "hidden": (head.integer("feedforward_channels", 2048), 2048),
                "filter_channels": (head.section("dynamic_conv_cfg").integer("feat_channels", 64), 64),
            }
        ),
    }
    scale = pipeline.scale()
    classes = head.integer("num_classes", 80)
    return MethodSettings("detection", "sparse_rcnn", arguments, classes, {"scale": scale} if scale else {})


def _check_neck(neck: ConfigSection, model: ConfigSection) -> None:
    maps = len(model.section("backbone").integers("out_indices", MAPS))
    neck.require("type", ["FPN"])
    neck.require("norm_cfg", [None], default=None)
    neck.require("start_level", [0], default=0)
    neck.require("end_level", [-1], default=-1)
    neck.require("num_outs", [maps], default=maps)  # no further map, whatever add_extra_convs says


def _check_regions(regions: ConfigSection) -> None:
    layer = regions.section("roi_layer")
    layer.require("type", ["RoIAlign"])
    layer.require("output_size", [7, [7, 7]])
    layer.require("sampling_ratio", [2])
    regions.require("finest_scale", [56], default=56)


def _check_head(head: ConfigSection, channels: int) -> None:
    head.require("type", ["DIIHead"])
    head.require("in_channels", [channels], default=channels)
    for name, value in (("num_ffn_fcs", 2), ("num_cls_fcs", 1), ("num_reg_fcs", 3)):
        head.require(name, [value], default=value)
    head.section("ffn_act_cfg").require("type", ["ReLU"], default="ReLU")
    conv = head.section("dynamic_conv_cfg")
    conv.require("input_feat_shape", [7], default=7)
    conv.require("with_proj", [True], default=True)
    head.section("loss_cls").require("use_sigmoid", [True], default=True)
    coder = head.section("bbox_coder")
    coder.require("type", ["DeltaXYWHBBoxCoder"], default="DeltaXYWHBBoxCoder")
    coder.require("clip_border", [False], default=True)
    coder.require("target_stds", [STDS])
