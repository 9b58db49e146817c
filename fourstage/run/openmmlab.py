"""What a checkpoint of MMDetection or MMSegmentation says about its network, as a recipe of ours.

A configuration becomes the values of a `Detection` or `Segmentation` recipe. What is written in it and cannot be had
here is refused in one sentence: a network that is almost the right one gives numbers that look right.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fourstage.data.class_names import names_of
from fourstage.recipe import Recipe, from_mapping
from fourstage.run.openmmlab_backbones import MAPS, backbone_of
from fourstage.run.openmmlab_part import Part, is_byte, is_count, is_number, mapping, name_of
from fourstage.weights.openmmlab_config import config_of
from fourstage.weights.safe import Checkpoint

Values = dict[str, Any]

ANCHOR_RATIOS = [0.5, 1.0, 2.0]
STDS = [0.1, 0.1, 0.2, 0.2]
CASCADE_STDS = [STDS, [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067]]
PAIRS_SINCE = (2, 19)  # of MMDetection: RetinaNet's candidates are pairs of anchor and class


@dataclass(frozen=True)
class Found:
    """A network that a checkpoint describes.

    Attributes:
        classes: names, in the order of the labels.
        about: what the task must know of its data beside them; see `run.kinds`.
        limits: of a detector: what `apply_limits` sets.
    """

    recipe: Recipe
    classes: tuple[str, ...]
    about: Values = field(default_factory=dict)
    limits: Mapping[str, Any] = field(default_factory=dict)


def described(file: Checkpoint) -> Found | None:
    """What a checkpoint's own configuration describes; None where it carries none.

    Raises:
        ValueError: the configuration cannot be read, or describes what cannot be built here.
    """
    config = config_of(file.content, str(file.path))
    if config is None:
        return None
    return from_config(config, str(file.path), meta=file.content.get("meta"), classes=file.classes)


def from_config(
    config: Mapping[str, Any], source: str, *, meta: object = None, classes: Sequence[str] | None = None
) -> Found:
    """The network of a configuration.

    Args:
        source: the file's name, for messages.
        meta: what the checkpoint says beside it: version and palette.
        classes: names, where the checkpoint has them.
    """
    model = Part(config.get("model"), "model", source)
    meta = meta if isinstance(meta, Mapping) else {}
    builders: dict[str, Callable[..., _Values]] = {
        "MaskRCNN": _mask_rcnn,
        "FasterRCNN": _mask_rcnn,
        "CascadeRCNN": _cascade,
        "RetinaNet": _retinanet,
        "EncoderDecoder": _segmentor,
    }
    kind = model.kind
    if kind not in builders:
        raise ValueError(
            f"{source} holds a {kind or 'network without a name'}, which is not among the networks here "
            f"({', '.join(builders)}); give a checkpoint of one of these"
        )
    built = builders[kind](model, _top(config, model), meta)
    values = {
        "name": re.sub(r"\W", "_", Path(source).stem) or "checkpoint",
        "num_classes": built.classes,
        **built.values,
        **backbone_of(model.part("backbone")),
        **_normalisation(config, model),
        "optimisation": {"batch_size": 2, "length": "1it", "lr": 1.0},  # nothing is trained
    }
    names = tuple(classes) if classes else names_of(built.classes, values["task"])
    if len(names) != built.classes:
        raise ValueError(
            f"{source} names {len(names)} classes, and its configuration has num_classes={built.classes}; name a "
            f"recipe with --weights {source}"
        )
    return Found(from_mapping(values, source).recipe, names, _palette(meta, built.classes), built.limits)


def apply_limits(network: Any, limits: Mapping[str, Any]) -> None:
    """Set how many proposals and detections a detector keeps, and from which score and overlap on."""
    from fourstage.tasks.detection.box_head import Selecting
    from fourstage.tasks.detection.rpn import Proposing

    if "selecting" in limits:
        network.selecting = Selecting(**limits["selecting"])
    if "proposals" in limits:
        network.rpn.proposals = Proposing(**limits["proposals"])


# ---------------------------------------------------------------------------------------------------------- methods


@dataclass(frozen=True)
class _Values:
    values: Values  # of the recipe
    classes: int
    limits: Mapping[str, Any] = field(default_factory=dict)


def _mask_rcnn(model: "Part", test: "_Top", meta: Mapping[str, Any]) -> _Values:
    heads = _heads(model)
    box = heads.part("bbox_head")
    _check_box_head(box, STDS)
    if box.kind != "Shared2FCBBoxHead":
        box.must("num_shared_convs", [0], default=4 if "4Conv" in box.kind else 0)
        box.must("num_shared_fcs", [2], default=2 if "2FC" in box.kind else 1)
    box.must("reg_class_agnostic", [False], default=False)
    arguments = _two_stage(model, heads) | {"fc_channels": box.number("fc_out_channels", 1024)}
    values = {"task": "detection", "method": "mask_rcnn", "method_args": arguments, **_seen_by_detector(test)}
    return _Values(values, box.number("num_classes", 80), _rcnn_limits(test))


def _cascade(model: "Part", test: "_Top", meta: Mapping[str, Any]) -> _Values:
    heads = _heads(model)
    boxes = heads.parts("bbox_head")
    if len(boxes) != len(CASCADE_STDS):
        raise boxes[0].error(f"is one of {len(boxes)}, and a cascade here has {len(CASCADE_STDS)}")
    for box, stds in zip(boxes, CASCADE_STDS, strict=True):
        _check_box_head(box, stds)
    box = boxes[0]
    convs = box.number("num_shared_convs", 4 if "4Conv" in box.kind else 0)
    fcs = box.number("num_shared_fcs", 2 if "2FC" in box.kind else 1)
    plain = (convs, fcs) == (0, 2)
    if not plain and (convs, fcs) != (4, 1):
        raise box.error(f"has {convs} convolutions and {fcs} linear layers, and here there are 0 and 2, or 4 and 1")
    box.must("reg_class_agnostic", [plain], default=False)
    arguments = _two_stage(model, heads) | {
        "heads": "2fc" if plain else "4conv1fc",
        "fc_channels": box.number("fc_out_channels", 1024),
    }
    if not plain:
        arguments["conv_channels"] = box.number("conv_out_channels", 256)
        box.part("norm_cfg").must("type", ["BN", "SyncBN", "MMSyncBN", "BN2d"])
    values = {"task": "detection", "method": "cascade_mask_rcnn", "method_args": arguments, **_seen_by_detector(test)}
    return _Values(values, box.number("num_classes", 80), _rcnn_limits(test))


def _retinanet(model: "Part", test: "_Top", meta: Mapping[str, Any]) -> _Values:
    head, neck = model.part("bbox_head"), model.part("neck")
    _check_neck(neck)
    neck.must("start_level", [max(0, len(neck.whole("in_channels")) - 3)], default=0)  # the map at stride 8
    neck.must("add_extra_convs", ["on_input", True])
    neck.must("relu_before_extra_convs", [False], default=False)
    head.must("type", ["RetinaHead"])
    strides = [8 * 2**i for i in range(neck.number("num_outs", 5))]
    octaves = {"octave_base_scale": [4], "scales_per_octave": [3]}
    _check_anchors(head, {**octaves, "ratios": [ANCHOR_RATIOS], "strides": [strides]})
    channels = neck.number("out_channels", 256)
    head.must("feat_channels", [channels], default=256)
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
    }
    values = {"task": "detection", "method": "retinanet", "method_args": arguments, **_seen_by_detector(test)}
    return _Values(values, head.number("num_classes", 80))


def _segmentor(model: "Part", test: "_Top", meta: Mapping[str, Any]) -> _Values:
    head = model.part("decode_head")
    head.must("type", ["UPerHead", "FPNHead"])
    head.must("align_corners", [False], default=False)
    head.part("norm_cfg").must("type", ["BN", "SyncBN", "MMSyncBN", "BN2d"], default="BN")
    arguments: Values = {"dropout": head.share("dropout_ratio", 0.1)}
    if head.kind == "UPerHead":
        arguments |= {"channels": head.number("channels", 512), **_auxiliary(model)}
        arguments["pool_scales"] = list(head.whole("pool_scales", (1, 2, 3, 6)))
        method = "upernet"
    else:
        neck = model.part("neck")
        neck.must("type", ["FPN"])
        arguments |= {"channels": head.number("channels", 128), "neck_channels": neck.number("out_channels", 256)}
        method = "semantic_fpn"
    values = {"task": "segmentation", "method": method, "method_args": arguments, "evaluation": test.protocol()}
    return _Values(values, head.number("num_classes", 150))


def _auxiliary(model: "Part") -> Values:
    """It predicts nothing: one that we have not is left out."""
    head = Part(model.get("auxiliary_head"), "auxiliary_head", model.source)
    if head.kind != "FCNHead" or head.get("in_index") != MAPS[2]:
        return {"auxiliary_weight": 0}
    return {"auxiliary_channels": head.number("channels", 256), "auxiliary_convs": head.number("num_convs", 1)}


# ------------------------------------------------------------------------------------------------- parts of detectors


def _heads(model: "Part") -> "Part":
    """The region heads. MMDetection 1 kept them beside the backbone."""
    if not isinstance(model.get("roi_head"), Mapping):
        raise model.error("has no roi_head: it is of MMDetection 1, whose boxes are one pixel larger than ours")
    return model.part("roi_head")


def _check_neck(neck: "Part") -> None:
    neck.must("type", ["FPN"])
    neck.must("norm_cfg", [None], default=None)
    neck.must("end_level", [-1], default=-1)


def _check_anchors(head: "Part", wanted: Mapping[str, list[Any]]) -> None:
    anchors = head.part("anchor_generator")
    anchors.must("type", ["AnchorGenerator"])
    for name, values in wanted.items():
        anchors.must(name, values)
    anchors.must("center_offset", [0], default=0)
    head.part("loss_cls").must("use_sigmoid", [True], default=True)
    _check_coder(head.part("bbox_coder"), [1.0] * 4, default=[1.0] * 4)


def _check_coder(coder: "Part", stds: list[float], default: list[float] | None = None) -> None:
    coder.must("type", ["DeltaXYWHBBoxCoder"], default="DeltaXYWHBBoxCoder")
    coder.must("target_means", [[0.0] * 4], default=[0.0] * 4)
    coder.must("target_stds", [stds], default=default)


def _check_box_head(box: "Part", stds: list[float]) -> None:
    box.must("type", ["Shared2FCBBoxHead", "Shared4Conv1FCBBoxHead", "ConvFCBBoxHead"])
    for name in ("num_cls_convs", "num_cls_fcs", "num_reg_convs", "num_reg_fcs"):
        box.must(name, [0], default=0)
    box.part("loss_cls").must("use_sigmoid", [False], default=False)
    _check_coder(box.part("bbox_coder"), stds)


def _two_stage(model: "Part", heads: "Part") -> Values:
    """Arguments of pyramid and mask head, where proposals and regions are as ours."""
    neck, rpn = model.part("neck"), model.part("rpn_head")
    _check_neck(neck)
    maps = len(neck.whole("in_channels"))
    neck.must("start_level", [0], default=0)
    neck.must("add_extra_convs", [False], default=False)
    neck.must("num_outs", [maps + 1])
    rpn.must("type", ["RPNHead"])
    strides = [64 >> i for i in range(maps, -1, -1)]
    _check_anchors(rpn, {"scales": [[8]], "ratios": [ANCHOR_RATIOS], "strides": [strides]})
    heads.must("type", ["StandardRoIHead", "CascadeRoIHead"])
    arguments: Values = {"channels": neck.number("out_channels", 256), "masks": bool(heads.get("mask_head"))}
    for name, size in (("bbox_roi_extractor", 7), ("mask_roi_extractor", 14)):
        if name.startswith("bbox") or arguments["masks"]:
            layer = heads.part(name).part("roi_layer")
            layer.must("type", ["RoIAlign"])
            layer.must("output_size", [size, [size, size]])
            layer.must("sampling_ratio", [0], default=0)
    if arguments["masks"]:
        mask = heads.parts("mask_head")[0]
        mask.must("type", ["FCNMaskHead"])
        mask.must("num_convs", [4], default=4)
        mask.must("class_agnostic", [False], default=False)
        arguments["mask_channels"] = mask.number("conv_out_channels", 256)
    return arguments


def _rcnn_limits(test: "_Top") -> dict[str, Values]:
    rpn, rcnn = test.limits().part("rpn"), test.limits().part("rcnn")
    rcnn.must("mask_thr_binary", [0.5], default=0.5)
    for part in (rpn, rcnn):
        part.must("min_bbox_size", [0], default=0)
    most = next((name for name in ("max_per_img", "max_num", "nms_post") if rpn.get(name) is not None), "max_per_img")
    return {
        "proposals": {
            "per_level": rpn.number("nms_pre", 1000),
            "per_image": rpn.number(most, 1000),  # its name changed over the years
            "iou_threshold": _overlap(rpn, 0.7),
        },
        "selecting": {
            "score_threshold": rcnn.share("score_thr", 0.05),
            "iou_threshold": _overlap(rcnn, 0.5),
            "per_image": rcnn.number("max_per_img", 100),
        },
    }


def _overlap(limits: "Part", usual: float) -> float:
    """From which overlap on the box with the lower score goes."""
    if not isinstance(limits.get("nms"), Mapping):
        return limits.share("nms_thr", usual)
    nms = limits.part("nms")
    nms.must("type", ["nms"], default="nms")
    return nms.share("iou_threshold", nms.share("iou_thr", usual))


def _seen_by_detector(test: "_Top") -> Values:
    scale = test.scale()
    return {"evaluation": {"scale": scale}} if scale else {}


# ------------------------------------------------------------------------------------------- what images go through


@dataclass(frozen=True)
class _Top:
    """The configuration around the model: how images are tested."""

    config: Mapping[str, Any]
    model: "Part"

    def limits(self) -> "Part":
        """`test_cfg`, which older configurations have beside the model."""
        own = self.model.get("test_cfg") or self.config.get("test_cfg")
        return Part(own if isinstance(own, Mapping) else {}, "test_cfg", self.model.source)

    def steps(self) -> list[Mapping[str, Any]]:
        """What happens to a test image, whatever is wrapped around it; empty where the configuration does not say."""
        data, loader = self.config.get("data"), self.config.get("test_dataloader")
        test = mapping(mapping(data).get("test")) or mapping(mapping(loader).get("dataset"))
        while isinstance(test.get("dataset"), Mapping):  # wrapped
            test = mapping(test["dataset"])
        steps = test.get("pipeline") or self.config.get("test_pipeline") or []
        out: list[Mapping[str, Any]] = []
        for step in steps if isinstance(steps, list | tuple) else []:
            inner = mapping(step).get("transforms")
            out.append(mapping(step))
            if name_of(step) == "MultiScaleFlipAug" and isinstance(inner, list | tuple):
                out += [{"img_scale": mapping(step).get("img_scale"), **mapping(one)} for one in inner]
        return out

    def scale(self) -> list[int] | None:
        """The two limits on a test image's sides, pixels; None where the configuration does not say."""
        resize = next((step for step in self.steps() if name_of(step) == "Resize"), None)
        if resize is None:
            return None
        part = Part(resize, "test pipeline's Resize", self.model.source)
        part.must("keep_ratio", [True], default="img_scale" in resize)
        scale = part.get("scale", part.get("img_scale"))
        if isinstance(scale, list | tuple) and scale and isinstance(scale[0], list | tuple):
            scale = scale[0]  # of several the first is that of one view
        if not isinstance(scale, list | tuple) or len(scale) != 2 or not all(is_count(side) for side in scale):
            raise part.error(f"has the scale {scale!r:.60}, and two numbers of pixels are needed")
        return [int(side) for side in scale]

    def protocol(self) -> Values:
        """How a segmentor sees a test image."""
        limits = self.limits()
        limits.must("mode", ["whole", "slide"], default="whole")
        scale = self.scale()
        values: Values = {"scale": scale} if scale else {}
        if limits.get("mode") == "slide":
            values |= {"window": list(limits.whole("crop_size")), "stride": list(limits.whole("stride"))}
        return values


def _top(config: Mapping[str, Any], model: "Part") -> _Top:
    return _Top(config, model)


def _normalisation(config: Mapping[str, Any], model: "Part") -> Values:
    """Mean and standard deviation in units of 1 (white), from wherever the version keeps them."""
    step = next((s for s in _top(config, model).steps() if name_of(s) == "Normalize"), None)
    places = (model.get("data_preprocessor"), config.get("data_preprocessor"), step, config.get("img_norm_cfg"))
    found = next((place for place in places if mapping(place).get("mean") is not None), None)
    if found is None:
        return {}
    part = Part(found, "normalisation", model.source)
    part.must("bgr_to_rgb" if "bgr_to_rgb" in found else "to_rgb", [True], default=True)
    values = {name: part.get(name) for name in ("mean", "std")}
    for name, value in values.items():
        if not isinstance(value, list | tuple) or len(value) != 3 or not all(is_number(one) for one in value):
            raise part.error(f"has the {name} {value!r:.60}, and three numbers are needed")
    return {name: [one / 255 for one in value] for name, value in values.items()}


def _palette(meta: Mapping[str, Any], classes: int) -> Values:
    """The colours of the classes, where the file gives one for each."""
    inner = mapping(meta.get("dataset_meta"))
    for found in (meta.get("PALETTE"), inner.get("palette"), inner.get("PALETTE")):
        if isinstance(found, list | tuple) and len(found) == classes:
            rows = [list(row) for row in found if isinstance(row, list | tuple)]
            if len(rows) == classes and all(len(row) == 3 and all(is_byte(one) for one in row) for row in rows):
                return {"palette": rows}
    return {}
