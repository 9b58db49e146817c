"""Detectors in a configuration of MMDetection: their method and its arguments, limits on detections among them."""

import re
from collections.abc import Mapping
from typing import Any

from fourstage.weights.openmmlab.backbones import MAPS
from fourstage.weights.openmmlab.evaluation import EvaluationPipeline
from fourstage.weights.openmmlab.section import ConfigSection, MethodSettings, Values, unusual

ANCHOR_RATIOS = [0.5, 1.0, 2.0]
STDS = [0.1, 0.1, 0.2, 0.2]
CODER_STDS = [1.0] * 4  # of MMDetection's coder where it is given none, and of its heads over anchors
CASCADE_STDS = [STDS, [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067]]
# What MMDetection's heads have where a configuration leaves the anchors out.
RPN_ANCHORS = {"type": "AnchorGenerator", "scales": [8, 16, 32], "ratios": ANCHOR_RATIOS, "strides": [4, 8, 16, 32, 64]}
RETINA_ANCHORS = {
    "type": "AnchorGenerator",
    "octave_base_scale": 4,
    "scales_per_octave": 3,
    "ratios": ANCHOR_RATIOS,
    "strides": [8, 16, 32, 64, 128],
}
PAIRS_SINCE = (2, 19)  # the version of MMDetection from which RetinaNet's candidates are pairs of anchor and class


def mask_rcnn(model: ConfigSection, pipeline: EvaluationPipeline, meta: Mapping[str, Any]) -> MethodSettings:
    heads = _heads(model)
    box = heads.section("bbox_head")
    _check_box_head(box, STDS)
    arguments = _two_stage(model, heads) | _box_arguments(box, agnostic_of={"2fc": False, "4conv1fc": False})
    return _detector("mask_rcnn", _with_limits(arguments, pipeline.limits()), box, pipeline)


def cascade(model: ConfigSection, pipeline: EvaluationPipeline, meta: Mapping[str, Any]) -> MethodSettings:
    heads = _heads(model)
    boxes = heads.sections("bbox_head")
    if len(boxes) != len(CASCADE_STDS):
        raise boxes[0].error(f"is one of {len(boxes)}, and a cascade here has {len(CASCADE_STDS)}")
    for box, stds in zip(boxes, CASCADE_STDS, strict=True):
        _check_box_head(box, stds)
    arguments = _two_stage(model, heads) | _box_arguments(boxes[0], agnostic_of={"2fc": True, "4conv1fc": False})
    return _detector("cascade_mask_rcnn", _with_limits(arguments, pipeline.limits()), boxes[0], pipeline)


def _detector(method: str, arguments: Values, head: ConfigSection, pipeline: EvaluationPipeline) -> MethodSettings:
    scale = pipeline.scale()
    evaluation = {"scale": scale} if scale else {}
    return MethodSettings("detection", method, arguments, head.integer("num_classes", 80), evaluation)


def retinanet(model: ConfigSection, pipeline: EvaluationPipeline, meta: Mapping[str, Any]) -> MethodSettings:
    head, neck = model.section("bbox_head"), model.section("neck")
    head.require("type", ["RetinaHead"])
    neck.require("add_extra_convs", ["on_input", True])
    anchors = head.section("anchor_generator", RETINA_ANCHORS)
    arguments = _single_stage(model, head, neck, anchors, pipeline, meta, overlap=0.5)
    anchors.require("center_offset", [0], default=0)
    _check_coder(head, CODER_STDS, usual=CODER_STDS)
    arguments |= unusual({
        "ratios": (list(anchors.positive_numbers("ratios")), ANCHOR_RATIOS),
        "base_scale": (anchors.integer("octave_base_scale", 4), 4),
        "scales_per_octave": (anchors.integer("scales_per_octave", 3), 3),
    })  # fmt: skip
    return _detector("retinanet", arguments, head, pipeline)


def atss(model: ConfigSection, pipeline: EvaluationPipeline, meta: Mapping[str, Any]) -> MethodSettings:
    head, (neck, *more) = model.section("bbox_head"), model.sections("neck")
    head.require("type", ["ATSSHead"])
    neck.require("add_extra_convs", ["on_output"])
    anchors, norm = head.section("anchor_generator", RPN_ANCHORS), head.section("norm_cfg")
    arguments = _single_stage(model, head, neck, anchors, pipeline, meta, overlap=0.6)
    anchors.require("ratios", [[1.0]])
    anchors.require("scales_per_octave", [1])
    norm.require("type", ["GN"], default="GN")
    norm.require("num_groups", [32], default=32)
    head.require("dcn_on_last_conv", [False], default=False)
    _check_coder(head, STDS, usual=CODER_STDS)
    blocks = _dyhead_blocks(more, arguments["channels"])
    arguments |= unusual({
        "dyhead": (blocks, 0),
        "kernel": (head.integer("pred_kernel_size", 3), 3),
        "base_scale": (anchors.integer("octave_base_scale", 4), 8),
        "anchor_offset": (anchors.fraction("center_offset", 0.0), 0.0),
    })  # fmt: skip
    return _detector("atss", arguments, head, pipeline)


def _dyhead_blocks(necks: list[ConfigSection], channels: int) -> int:
    """Return the number of blocks of the DyHead after the pyramid; 0 where there is none."""
    if not necks:
        return 0
    neck = necks[0]
    neck.require("type", ["DyHead"])
    neck.require("out_channels", [channels])
    if len(necks) > 1:
        raise necks[1].error("is a third neck, and here there is at most a DyHead after a pyramid")
    return neck.integer("num_blocks", 6)


def _single_stage(
    model: ConfigSection,
    head: ConfigSection,
    neck: ConfigSection,
    anchors: ConfigSection,
    pipeline: EvaluationPipeline,
    meta: Mapping[str, Any],
    *,
    overlap: float,
) -> Values:
    """Return the arguments of pyramid, towers and limits of a head over every cell.

    Args:
        overlap: of suppression, where the configuration does not say.
    """
    _check_neck(neck)
    neck.require("start_level", [1 if _first_stride(model) == 4 else 0], default=0)  # the map at stride 8
    neck.require("relu_before_extra_convs", [False], default=False)
    outs, channels, limits = neck.integer("num_outs", 5), neck.integer("out_channels", 256), pipeline.limits()
    _check_anchors(head, anchors, [8 * 2**i for i in range(outs)])
    version = [int(number) for number in re.findall(r"\d+", str(meta.get("mmdet_version", "")))[:2]]
    return {
        "channels": channels,
        "convs": head.integer("stacked_convs", 4),
        "num_outs": outs,
        "candidates": "anchors" if version and tuple(version) < PAIRS_SINCE else "pairs",
        "per_level": limits.integer("nms_pre", 1000),
        "score_threshold": limits.fraction("score_thr", 0.05),
        "iou_threshold": _overlap(limits, overlap),
        "per_image": limits.integer("max_per_img", 100),
        **unusual({"tower_channels": (head.integer("feat_channels", 256), channels)}),
    }


def _heads(model: ConfigSection) -> ConfigSection:
    """Return the region heads. MMDetection 1 kept them beside the backbone."""
    if not isinstance(model.get("roi_head"), Mapping):
        raise model.error("has no roi_head: it is of MMDetection 1, whose boxes are one pixel larger than ours")
    return model.section("roi_head")


def _check_neck(neck: ConfigSection) -> None:
    neck.require("type", ["FPN"])
    neck.require("norm_cfg", [None], default=None)
    neck.require("end_level", [-1], default=-1)


def _first_stride(model: ConfigSection) -> int:
    """Return the stride of the backbone's first map: stages begin at stride 4, Visformer's at 8."""
    backbone = model.section("backbone")
    return 8 if backbone.type_name == "Visformer" else 4 << min(backbone.integers("out_indices", MAPS), default=0)


def _check_anchors(head: ConfigSection, anchors: ConfigSection, strides: list[int]) -> None:
    anchors.require("type", ["AnchorGenerator"])
    anchors.require("strides", [strides])
    for name, usual in (("base_sizes", None), ("centers", None), ("scale_major", True)):
        anchors.require(name, [usual], default=usual)
    # A head over anchors asks its loss for sigmoid, whatever the loss itself does without this entry.
    head.section("loss_cls", {"use_sigmoid": True}).require("use_sigmoid", [True], default=False)


def _check_coder(head: ConfigSection, stds: list[float], usual: list[float]) -> None:
    """Raise ValueError unless a head's boxes are relative to its regions, with these deviations.

    Args:
        usual: deviations that MMDetection's head has where the configuration leaves the coder out.
    """
    coder = head.section("bbox_coder", {"target_stds": usual})
    coder.require("type", ["DeltaXYWHBBoxCoder"], default="DeltaXYWHBBoxCoder")
    coder.require("target_means", [[0.0] * 4], default=[0.0] * 4)
    coder.require("target_stds", [stds], default=CODER_STDS)


def _check_box_head(box: ConfigSection, stds: list[float]) -> None:
    box.require("type", ["Shared2FCBBoxHead", "Shared4Conv1FCBBoxHead", "ConvFCBBoxHead"])
    for name in ("num_cls_convs", "num_cls_fcs", "num_reg_convs", "num_reg_fcs"):
        box.require(name, [0], default=0)
    box.section("loss_cls").require("use_sigmoid", [False], default=False)
    _check_coder(box, stds, usual=STDS)


def _box_arguments(box: ConfigSection, agnostic_of: Mapping[str, bool]) -> Values:
    """Return the arguments for box heads.

    Args:
        agnostic_of: for each name of heads, whether the method's default is one box for all classes.
    """
    convs = box.integer("num_shared_convs", 4 if "4Conv" in box.type_name else 0)
    fcs = box.integer("num_shared_fcs", 2 if "2FC" in box.type_name else 1)
    heads = {(0, 2): "2fc", (4, 1): "4conv1fc"}.get((convs, fcs))
    if heads is None:
        raise box.error(f"has {convs} convolutions and {fcs} linear layers, and here there are 0 and 2, or 4 and 1")
    box.require("reg_class_agnostic", [True, False], default=False)
    agnostic = bool(box.get("reg_class_agnostic", False))
    arguments: Values = {"fc_channels": box.integer("fc_out_channels", 1024)}
    arguments |= unusual({"heads": (heads, "2fc"), "class_agnostic": (agnostic, agnostic_of[heads])})
    if heads == "4conv1fc":
        arguments["conv_channels"] = box.integer("conv_out_channels", 256)
        box.section("norm_cfg").require("type", ["BN", "SyncBN", "MMSyncBN", "BN2d"])
    return arguments


def _two_stage(model: ConfigSection, heads: ConfigSection) -> Values:
    """Return the arguments of pyramid, proposals and mask head. Raise ValueError where regions are not as ours."""
    neck, rpn = model.section("neck"), model.section("rpn_head")
    maps, outs = _two_stage_maps(neck)
    channels = neck.integer("out_channels", 256)
    strides = [_first_stride(model) << i for i in range(outs)]
    proposals = _proposals(rpn, strides, channels)
    heads.require("type", ["StandardRoIHead", "CascadeRoIHead"])
    masks = bool(heads.get("mask_head"))
    finest_scale = heads.section("bbox_roi_extractor").integer("finest_scale", 56)
    sizes = {"bbox_roi_extractor": 7} | ({"mask_roi_extractor": 14} if masks else {})
    for name, size in sizes.items():
        _check_extractor(heads.section(name), strides[:maps], finest_scale, size)
    return {
        "channels": channels,
        "masks": masks,
        **unusual({"num_outs": (outs, maps + 1)}),
        **({"rpn": proposals} if proposals else {}),
        **unusual({"finest_scale": (finest_scale, 56)}),
        **(_mask_arguments(heads.sections("mask_head")[0]) if masks else {}),
    }


def _two_stage_maps(neck: ConfigSection) -> tuple[int, int]:
    """Return the numbers of maps that go into a pyramid and come out of it."""
    _check_neck(neck)
    maps = len(neck.integers("in_channels"))
    neck.require("start_level", [0], default=0)
    neck.require("add_extra_convs", [False], default=False)
    outs = neck.integer("num_outs", maps + 1)
    if outs < maps:
        raise neck.error(f"has num_outs={outs}, and {maps} maps come in")
    return maps, outs


def _proposals(rpn: ConfigSection, strides: list[int], channels: int) -> Values:
    """Return the arguments of the proposals that differ from the defaults.

    Args:
        strides: of the pyramid's maps.
        channels: of the pyramid's maps.
    """
    rpn.require("type", ["RPNHead"])
    anchors = rpn.section("anchor_generator", RPN_ANCHORS)
    _check_anchors(rpn, anchors, strides)
    anchors.require("center_offset", [0], default=0)
    _check_coder(rpn, CODER_STDS, usual=CODER_STDS)
    return unusual({
        "channels": (rpn.integer("feat_channels", 256), channels),
        "convs": (rpn.integer("num_convs", 1), 1),
        "scales": (list(anchors.positive_numbers("scales")), [8]),
        "ratios": (list(anchors.positive_numbers("ratios")), ANCHOR_RATIOS),
    })  # fmt: skip


def _check_extractor(extractor: ConfigSection, strides: list[int], finest_scale: int, size: int) -> None:
    """Raise ValueError unless regions are cut out of the maps of these strides as here, with `size` cells a side."""
    extractor.require("featmap_strides", [strides], default=strides)
    extractor.require("finest_scale", [finest_scale], default=56)
    layer = extractor.section("roi_layer")
    layer.require("type", ["RoIAlign"])
    layer.require("output_size", [size, [size, size]])
    layer.require("sampling_ratio", [0], default=0)


def _mask_arguments(head: ConfigSection) -> Values:
    """Return the arguments of the mask head."""
    head.require("type", ["FCNMaskHead"])
    head.require("class_agnostic", [False], default=False)
    channels, convs = head.integer("conv_out_channels", 256), head.integer("num_convs", 4)
    return {"mask_channels": channels, **unusual({"mask_convs": (convs, 4)})}


def _with_limits(arguments: Values, limits: ConfigSection) -> Values:
    """Return the arguments of a two-stage method with the limits on its proposals and detections."""
    rpn, rcnn = limits.section("rpn"), limits.section("rcnn")
    mask_threshold = rcnn.fraction("mask_thr_binary", 0.5)
    for section in (rpn, rcnn):
        section.require("min_bbox_size", [0], default=0)
    most = next((name for name in ("max_per_img", "max_num", "nms_post") if rpn.get(name) is not None), "max_per_img")
    proposals = {
        "per_level": rpn.integer("nms_pre", 1000),
        "per_image": rpn.integer(most, 1000),  # the entry was renamed twice
        "iou_threshold": _overlap(rpn, 0.7),
    }
    selecting = {
        "score_threshold": rcnn.fraction("score_thr", 0.05),
        "iou_threshold": _overlap(rcnn, 0.5),
        "per_image": rcnn.integer("max_per_img", 100),
        **unusual({"mask_threshold": (mask_threshold, 0.5)}),
    }
    return {**arguments, "rpn": {**arguments.get("rpn", {}), "proposals": proposals}, "selecting": selecting}


def _overlap(limits: ConfigSection, usual: float) -> float:
    """Return the overlap from which the box with the lower score is suppressed."""
    if not isinstance(limits.get("nms"), Mapping):
        return limits.fraction("nms_thr", usual)
    nms = limits.section("nms")
    nms.require("type", ["nms"], default="nms")
    return nms.fraction("iou_threshold", nms.fraction("iou_thr", usual))
