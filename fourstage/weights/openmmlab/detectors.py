"""Detectors in a configuration of MMDetection: their method, its arguments, and what they keep of what they find."""

import re
from collections.abc import Mapping
from typing import Any

from fourstage.weights.openmmlab.backbones import MAPS
from fourstage.weights.openmmlab.evaluation import Tested
from fourstage.weights.openmmlab.section import Built, Part, Values, unusual

ANCHOR_RATIOS = [0.5, 1.0, 2.0]
STDS = [0.1, 0.1, 0.2, 0.2]
CASCADE_STDS = [STDS, [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067]]
PAIRS_SINCE = (2, 19)  # of MMDetection: RetinaNet's candidates are pairs of anchor and class


def mask_rcnn(model: Part, test: Tested, meta: Mapping[str, Any]) -> Built:
    heads = _heads(model)
    box = heads.part("bbox_head")
    _check_box_head(box, STDS)
    arguments = _two_stage(model, heads) | _box_arguments(box, agnostic_of={"2fc": False, "4conv1fc": False})
    return _detector("mask_rcnn", with_limits(arguments, test.limits()), box, test)


def cascade(model: Part, test: Tested, meta: Mapping[str, Any]) -> Built:
    heads = _heads(model)
    boxes = heads.parts("bbox_head")
    if len(boxes) != len(CASCADE_STDS):
        raise boxes[0].error(f"is one of {len(boxes)}, and a cascade here has {len(CASCADE_STDS)}")
    for box, stds in zip(boxes, CASCADE_STDS, strict=True):
        _check_box_head(box, stds)
    arguments = _two_stage(model, heads) | _box_arguments(boxes[0], agnostic_of={"2fc": True, "4conv1fc": False})
    return _detector("cascade_mask_rcnn", with_limits(arguments, test.limits()), boxes[0], test)


def _detector(method: str, arguments: Values, head: Part, test: Tested) -> Built:
    scale = test.scale()
    evaluation = {"scale": scale} if scale else {}
    return Built("detection", method, arguments, head.number("num_classes", 80), evaluation)


def retinanet(model: Part, test: Tested, meta: Mapping[str, Any]) -> Built:
    head, neck = model.part("bbox_head"), model.part("neck")
    _check_neck(neck)
    first = _first_stride(model)
    neck.must("start_level", [1 if first == 4 else 0], default=0)  # the map at stride 8
    neck.must("add_extra_convs", ["on_input", True])
    neck.must("relu_before_extra_convs", [False], default=False)
    head.must("type", ["RetinaHead"])
    strides = [8 * 2**i for i in range(neck.number("num_outs", 5))]
    _check_anchors(head, strides)
    anchors, channels = head.part("anchor_generator"), neck.number("out_channels", 256)
    towers = head.number("feat_channels", 256)
    octaves = {"base_scale": anchors.number("octave_base_scale", 4)}
    octaves["scales_per_octave"] = anchors.number("scales_per_octave", 3)
    limits = test.limits()
    version = [int(number) for number in re.findall(r"\d+", str(meta.get("mmdet_version", "")))[:2]]
    arguments = {
        "channels": channels,
        "convs": head.number("stacked_convs", 4),
        "num_outs": neck.number("num_outs", 5),
        "candidates": "anchors" if version and tuple(version) < PAIRS_SINCE else "pairs",
        "per_level": limits.number("nms_pre", 1000),
        "score_threshold": limits.share("score_thr", 0.05),
        "iou_threshold": _overlap(limits, 0.5),
        "per_image": limits.number("max_per_img", 100),
        **unusual({"tower_channels": (towers, channels), "ratios": (list(anchors.numbers("ratios")), ANCHOR_RATIOS)}),
        **unusual({name: (octaves[name], usual) for name, usual in (("base_scale", 4), ("scales_per_octave", 3))}),
    }
    return _detector("retinanet", arguments, head, test)


def _heads(model: Part) -> Part:
    """The region heads. MMDetection 1 kept them beside the backbone."""
    if not isinstance(model.get("roi_head"), Mapping):
        raise model.error("has no roi_head: it is of MMDetection 1, whose boxes are one pixel larger than ours")
    return model.part("roi_head")


def _check_neck(neck: Part) -> None:
    neck.must("type", ["FPN"])
    neck.must("norm_cfg", [None], default=None)
    neck.must("end_level", [-1], default=-1)


def _first_stride(model: Part) -> int:
    """Of the maps that a backbone gives: stages halve the image from stride 4 on, Visformer's from 8 on."""
    backbone = model.part("backbone")
    return 8 if backbone.kind == "Visformer" else 4 << min(backbone.whole("out_indices", MAPS), default=0)


def _check_anchors(head: Part, strides: list[int]) -> None:
    anchors = head.part("anchor_generator")
    anchors.must("type", ["AnchorGenerator"])
    anchors.must("strides", [strides])
    anchors.must("center_offset", [0], default=0)
    for name, usual in (("base_sizes", None), ("centers", None), ("scale_major", True)):
        anchors.must(name, [usual], default=usual)
    head.part("loss_cls").must("use_sigmoid", [True], default=True)
    _check_coder(head.part("bbox_coder"), [1.0] * 4, default=[1.0] * 4)


def _check_coder(coder: Part, stds: list[float], default: list[float] | None = None) -> None:
    coder.must("type", ["DeltaXYWHBBoxCoder"], default="DeltaXYWHBBoxCoder")
    coder.must("target_means", [[0.0] * 4], default=[0.0] * 4)
    coder.must("target_stds", [stds], default=default)


def _check_box_head(box: Part, stds: list[float]) -> None:
    box.must("type", ["Shared2FCBBoxHead", "Shared4Conv1FCBBoxHead", "ConvFCBBoxHead"])
    for name in ("num_cls_convs", "num_cls_fcs", "num_reg_convs", "num_reg_fcs"):
        box.must(name, [0], default=0)
    box.part("loss_cls").must("use_sigmoid", [False], default=False)
    _check_coder(box.part("bbox_coder"), stds)


def _box_arguments(box: Part, agnostic_of: Mapping[str, bool]) -> Values:
    """Arguments for box heads.

    Args:
        agnostic_of: whether a kind of heads has one box for all classes, as the method builds it by itself.
    """
    convs = box.number("num_shared_convs", 4 if "4Conv" in box.kind else 0)
    fcs = box.number("num_shared_fcs", 2 if "2FC" in box.kind else 1)
    heads = {(0, 2): "2fc", (4, 1): "4conv1fc"}.get((convs, fcs))
    if heads is None:
        raise box.error(f"has {convs} convolutions and {fcs} linear layers, and here there are 0 and 2, or 4 and 1")
    box.must("reg_class_agnostic", [True, False], default=False)
    agnostic = bool(box.get("reg_class_agnostic", False))
    arguments: Values = {"fc_channels": box.number("fc_out_channels", 1024)}
    arguments |= unusual({"heads": (heads, "2fc"), "class_agnostic": (agnostic, agnostic_of[heads])})
    if heads == "4conv1fc":
        arguments["conv_channels"] = box.number("conv_out_channels", 256)
        box.part("norm_cfg").must("type", ["BN", "SyncBN", "MMSyncBN", "BN2d"])
    return arguments


def _two_stage(model: Part, heads: Part) -> Values:
    """Arguments of pyramid and mask head, where proposals and regions are as ours."""
    neck, rpn = model.part("neck"), model.part("rpn_head")
    _check_neck(neck)
    maps = len(neck.whole("in_channels"))
    neck.must("start_level", [0], default=0)
    neck.must("add_extra_convs", [False], default=False)
    outs, channels = neck.number("num_outs", maps + 1), neck.number("out_channels", 256)
    if outs < maps:
        raise neck.error(f"has num_outs={outs}, and {maps} maps come in")
    rpn.must("type", ["RPNHead"])
    strides = [_first_stride(model) << i for i in range(outs)]
    _check_anchors(rpn, strides)
    heads.must("type", ["StandardRoIHead", "CascadeRoIHead"])
    arguments: Values = {"channels": channels, "masks": bool(heads.get("mask_head"))}
    arguments |= unusual({"num_outs": (outs, maps + 1)})
    anchors = rpn.part("anchor_generator")
    own = unusual({
        "channels": (rpn.number("feat_channels", 256), channels),
        "convs": (rpn.number("num_convs", 1), 1),
        "scales": (list(anchors.numbers("scales")), [8]),
        "ratios": (list(anchors.numbers("ratios")), ANCHOR_RATIOS),
    })  # fmt: skip
    arguments |= {"rpn": own} if own else {}
    finest = heads.part("bbox_roi_extractor").number("finest_scale", 56)
    arguments |= unusual({"finest": (finest, 56)})
    for name, size in (("bbox_roi_extractor", 7), ("mask_roi_extractor", 14)):
        if name.startswith("bbox") or arguments["masks"]:
            extractor = heads.part(name)
            extractor.must("featmap_strides", [strides[:maps]], default=strides[:maps])
            extractor.must("finest_scale", [finest], default=56)
            layer = extractor.part("roi_layer")
            layer.must("type", ["RoIAlign"])
            layer.must("output_size", [size, [size, size]])
            layer.must("sampling_ratio", [0], default=0)
    if arguments["masks"]:
        mask = heads.parts("mask_head")[0]
        mask.must("type", ["FCNMaskHead"])
        mask.must("class_agnostic", [False], default=False)
        arguments["mask_channels"] = mask.number("conv_out_channels", 256)
        arguments |= unusual({"mask_convs": (mask.number("num_convs", 4), 4)})
    return arguments


def with_limits(arguments: Values, limits: Part) -> Values:
    """Return the arguments of a two-stage method with how many proposals and detections it keeps, from which score."""
    rpn, rcnn = limits.part("rpn"), limits.part("rcnn")
    mask_threshold = rcnn.share("mask_thr_binary", 0.5)
    for part in (rpn, rcnn):
        part.must("min_bbox_size", [0], default=0)
    most = next((name for name in ("max_per_img", "max_num", "nms_post") if rpn.get(name) is not None), "max_per_img")
    proposals = {
        "per_level": rpn.number("nms_pre", 1000),
        "per_image": rpn.number(most, 1000),  # its name changed over the years
        "iou_threshold": _overlap(rpn, 0.7),
    }
    selecting = {
        "score_threshold": rcnn.share("score_thr", 0.05),
        "iou_threshold": _overlap(rcnn, 0.5),
        "per_image": rcnn.number("max_per_img", 100),
        **unusual({"mask_threshold": (mask_threshold, 0.5)}),
    }
    return {**arguments, "rpn": {**arguments.get("rpn", {}), "proposals": proposals}, "selecting": selecting}


def _overlap(limits: Part, usual: float) -> float:
    """From which overlap on the box with the lower score goes."""
    if not isinstance(limits.get("nms"), Mapping):
        return limits.share("nms_thr", usual)
    nms = limits.part("nms")
    nms.must("type", ["nms"], default="nms")
    return nms.share("iou_threshold", nms.share("iou_thr", usual))
