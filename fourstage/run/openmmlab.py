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
from fourstage.run.openmmlab_part import Part, is_byte, is_count, is_index, is_number, mapping, name_of
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
    arguments = _two_stage(model, heads) | _box_arguments(box, agnostic_of={"2fc": False, "4conv1fc": False})
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
    arguments = _two_stage(model, heads) | _box_arguments(box, agnostic_of={"2fc": True, "4conv1fc": False})
    values = {"task": "detection", "method": "cascade_mask_rcnn", "method_args": arguments, **_seen_by_detector(test)}
    return _Values(values, box.number("num_classes", 80), _rcnn_limits(test))


def _retinanet(model: "Part", test: "_Top", meta: Mapping[str, Any]) -> _Values:
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
        **_unusual({"tower_channels": (towers, channels), "ratios": (list(anchors.numbers("ratios")), ANCHOR_RATIOS)}),
        **_unusual({name: (octaves[name], usual) for name, usual in (("base_scale", 4), ("scales_per_octave", 3))}),
    }
    values = {"task": "detection", "method": "retinanet", "method_args": arguments, **_seen_by_detector(test)}
    return _Values(values, head.number("num_classes", 80))


def _segmentor(model: "Part", test: "_Top", meta: Mapping[str, Any]) -> _Values:
    head = model.part("decode_head")
    head.must("type", ["UPerHead", "FPNHead"])
    head.must("align_corners", [False, True], default=False)
    head.part("norm_cfg").must("type", ["BN", "SyncBN", "MMSyncBN", "BN2d"], default="BN")
    head.part("act_cfg").must("type", ["ReLU"], default="ReLU")
    head.must("conv_cfg", [None], default=None)
    classes = head.number("num_classes", 150)
    head.must("out_channels", [classes], default=classes)
    loss = head.parts("loss_decode")[0]
    loss.must("use_sigmoid", [False], default=False)
    arguments: Values = {"dropout": head.share("dropout_ratio", 0.1)}
    if head.get("align_corners", False):
        arguments["align_corners"] = True
    if head.kind == "UPerHead":
        arguments |= {"channels": head.number("channels", 512), **_auxiliary(model)}
        arguments["pool_scales"] = list(head.whole("pool_scales", (1, 2, 3, 6)))
        arguments |= _read(head.indices("in_index", _maps(model)), _maps(model))
        method = "upernet"
    else:
        arguments |= {"channels": head.number("channels", 128), **_pyramid(model, head)}
        method = "semantic_fpn"
    values = {"task": "segmentation", "method": method, "method_args": arguments, "evaluation": test.protocol()}
    values["over_valid"] = bool(loss.get("avg_non_ignore", False))
    return _Values(values, classes)


def _maps(model: "Part") -> list[int]:
    """The numbers of the maps that the backbone gives."""
    return list(range(len(model.part("backbone").whole("out_indices", MAPS))))


def _read(used: Sequence[int], maps: Sequence[int]) -> Values:
    return {} if list(used) == list(maps) else {"maps": list(used)}


def _pyramid(model: "Part", head: "Part") -> Values:
    """Arguments of the pyramid below Semantic FPN's decoder."""
    neck, maps = model.part("neck"), _maps(model)
    neck.must("type", ["FPN"])
    for name in ("norm_cfg", "act_cfg", "conv_cfg"):
        neck.must(name, [None], default=None)
    neck.must("end_level", [-1, maps[-1]], default=-1)
    neck.must("add_extra_convs", [False], default=False)
    neck.part("upsample_cfg").must("mode", ["nearest"], default="nearest")
    used = maps[neck.number("start_level", 0) :]
    outs = neck.number("num_outs", len(used))
    head.must("in_index", [list(range(outs))], default=list(range(outs)))
    finest = head.whole("feature_strides", (4,))[0]
    doubled = [finest * 2**i for i in range(outs)]
    head.must("feature_strides", [doubled], default=doubled)
    arguments: Values = {"neck_channels": neck.number("out_channels", 256), **_read(used, maps)}
    return arguments if outs == len(used) else arguments | {"num_outs": outs}


def _auxiliary(model: "Part") -> Values:
    """It predicts nothing: one that we have not is left out."""
    head = Part(model.get("auxiliary_head"), f"{model.path}.auxiliary_head", model.source)
    usual = head.get("kernel_size", 3) == 3 and head.get("dilation", 1) == 1
    if head.kind != "FCNHead" or not usual or not is_index(head.get("in_index", -1)):
        return {"auxiliary_weight": 0}
    maps, at = _maps(model), head.get("in_index", -1)
    weight = head.parts("loss_decode")[0].get("loss_weight", 1.0)
    if not -len(maps) <= at < len(maps) or not is_number(weight) or weight <= 0:
        return {"auxiliary_weight": 0}
    arguments: Values = {"auxiliary_channels": head.number("channels", 256)}
    arguments |= {"auxiliary_convs": head.number("num_convs", 2), "auxiliary_weight": weight}
    if head.get("concat_input", True):
        arguments["auxiliary_concat"] = True
    return arguments | {"auxiliary_map": maps[at]}


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


def _unusual(values: Mapping[str, tuple[Any, Any]]) -> Values:
    """Those that are not as usual, given as (value, usual value)."""
    return {name: value for name, (value, usual) in values.items() if value != usual}


def _first_stride(model: "Part") -> int:
    """Of the maps that a backbone gives: stages halve the image from stride 4 on, Visformer's from 8 on."""
    backbone = model.part("backbone")
    return 8 if backbone.kind == "Visformer" else 4 << min(backbone.whole("out_indices", MAPS), default=0)


def _check_anchors(head: "Part", strides: list[int]) -> None:
    anchors = head.part("anchor_generator")
    anchors.must("type", ["AnchorGenerator"])
    anchors.must("strides", [strides])
    anchors.must("center_offset", [0], default=0)
    for name, usual in (("base_sizes", None), ("centers", None), ("scale_major", True)):
        anchors.must(name, [usual], default=usual)
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


def _box_arguments(box: "Part", agnostic_of: Mapping[str, bool]) -> Values:
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
    arguments |= _unusual({"heads": (heads, "2fc"), "class_agnostic": (agnostic, agnostic_of[heads])})
    if heads == "4conv1fc":
        arguments["conv_channels"] = box.number("conv_out_channels", 256)
        box.part("norm_cfg").must("type", ["BN", "SyncBN", "MMSyncBN", "BN2d"])
    return arguments


def _two_stage(model: "Part", heads: "Part") -> Values:
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
    arguments |= _unusual({"num_outs": (outs, maps + 1)})
    anchors = rpn.part("anchor_generator")
    own = _unusual({
        "channels": (rpn.number("feat_channels", 256), channels),
        "convs": (rpn.number("num_convs", 1), 1),
        "scales": (list(anchors.numbers("scales")), [8]),
        "ratios": (list(anchors.numbers("ratios")), ANCHOR_RATIOS),
    })  # fmt: skip
    arguments |= {"rpn": own} if own else {}
    finest = heads.part("bbox_roi_extractor").number("finest_scale", 56)
    arguments |= _unusual({"finest": (finest, 56)})
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
        arguments |= _unusual({"mask_convs": (mask.number("num_convs", 4), 4)})
    return arguments


def _rcnn_limits(test: "_Top") -> dict[str, Values]:
    rpn, rcnn = test.limits().part("rpn"), test.limits().part("rcnn")
    mask_threshold = rcnn.share("mask_thr_binary", 0.5)
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
            **_unusual({"mask_threshold": (mask_threshold, 0.5)}),
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
        self._check_steps()
        resize = self.step("Resize")
        if resize is None or resize.get("scale_factor") == 1:
            return None
        part = Part(resize, "test pipeline's Resize", self.model.source)
        part.must("keep_ratio", [True], default="img_scale" in resize)
        scale = part.get("scale", part.get("img_scale"))
        if isinstance(scale, list | tuple) and scale and isinstance(scale[0], list | tuple):
            scale = scale[0]  # of several the first is that of one view
        if not isinstance(scale, list | tuple) or len(scale) != 2 or not all(is_count(side) for side in scale):
            raise part.error(f"has the scale {scale!r:.60}, and two numbers of pixels are needed")
        return [int(side) for side in scale]

    def step(self, name: str) -> Mapping[str, Any] | None:
        """The first step of this name."""
        return next((step for step in self.steps() if name_of(step) == name), None)

    def _check_steps(self) -> None:
        """Raise ValueError for a step that makes other sizes than ours do."""
        known = ("Resize", "Pad")
        for step in self.steps():
            if re.search("Resize|Crop|Pad", name_of(step)) and name_of(step) not in known:
                raise Part(step, "test pipeline", self.model.source).error(
                    f"has the step {name_of(step)}, and the networks here see an image after {' and '.join(known)}"
                )

    def divisor(self) -> int:
        """Of which number the sides of a test image are multiples when a segmentor sees it."""
        own = mapping(self.model.get("data_preprocessor")) or mapping(self.config.get("data_preprocessor"))
        places = [Part(own.get("test_cfg"), "data_preprocessor.test_cfg", self.model.source)]
        if (pad := self.step("Pad")) is not None:
            names = [name_of(step) for step in self.steps()]
            if "Normalize" not in names[: names.index("Pad")]:
                raise Part(pad, "test pipeline's Pad", self.model.source).error(
                    "comes before images are normalised, and here it comes after"
                )
            places.append(Part(pad, "test pipeline's Pad", self.model.source))
        for place in places:
            place.must("size", [None], default=None)
            for name in ("pad_val", "pad_to_square"):
                place.must(name, [0, False, {"img": 0, "seg": 255}], default=0)
        return max(1, *(place.number("size_divisor", 1) for place in places))

    def protocol(self) -> Values:
        """How a segmentor sees a test image."""
        limits = self.limits()
        limits.must("mode", ["whole", "slide"], default="whole")
        scale = self.scale()
        values: Values = {"scale": scale} if scale or self.steps() else {}
        if (divisor := self.divisor()) > 1:
            values["divisor"] = divisor
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
