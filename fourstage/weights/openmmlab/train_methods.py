"""How a configuration trains a detector's or segmentor's heads: arguments of our methods, and what is fixed here."""

from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

from fourstage.weights.description import NetworkDescription
from fourstage.weights.openmmlab.detectors import CASCADE_STDS
from fourstage.weights.openmmlab.findings import Findings
from fourstage.weights.openmmlab.section import ConfigSection, Values, comparable, mapping, unusual

FOCAL = {"type": "FocalLoss", "gamma": 2.0, "alpha": 0.25, "use_sigmoid": True}
BOX_LOSSES = {"L1Loss": "l1", "SmoothL1Loss": "smooth_l1", "GIoULoss": "giou"}
BOX_HEAD_LOSS = {"type": "SmoothL1Loss"}  # of MMDetection's box heads where a configuration leaves the loss out
CASCADE_WEIGHTS, CASCADE_OVERLAPS = [1, 0.5, 0.25], [0.5, 0.6, 0.7]
EXTRACTOR = {"type": "SingleRoIExtractor"}
SET_COSTS = [
    {"type": "FocalLossCost", "weight": 2.0},
    {"type": "BBoxL1Cost", "weight": 5.0},
    {"type": "IoUCost", "iou_mode": "giou", "weight": 2.0},
]
ANY = object()  # a value without effect
ZEROS = [0.0, 0.0, 0.0, 0.0]
# method -> pattern of a path -> the only value here, for entries that nothing reads
FIXED: dict[str, dict[str, Any]] = {
    "any": {
        "*pipeline.*": {"flip": False, "keys": ANY, "meta_keys": ANY, "with_bbox": ANY, "with_mask": ANY}
        | {"type": ANY, "to_float32": False},
        "model": {"type": ANY, "data_preprocessor.type": ANY, "data_preprocessor.pad_mask": True},
        "model.*": {"target_means": ZEROS, "requires_grad": True, "norm_cfg.type": ANY, "init_cfg.type": ANY},
        "tta_pipeline*": {"keep_ratio": True, "prob": ANY, "direction": "horizontal"},
        "test*": {"test_mode": True},
        "train_dataloader": {"persistent_workers": ANY, "sampler.type": ANY, "sampler.shuffle": True},
        "test_dataloader": {
            "persistent_workers": ANY,
            "drop_last": False,
            "sampler.type": ANY,
            "sampler.shuffle": False,
        },
        "*.pipeline.*": {"size_divisor": 32, "reduce_zero_label": True},
        "*optim*": {"type": ANY, "coalesce": ANY, "bucket_size_mb": ANY},
    },
    "two_stage": {
        "model.rpn_head.loss_cls": {"type": "CrossEntropyLoss", "loss_weight": 1.0, "use_sigmoid": True},
        "model.rpn_head.loss_bbox": {"loss_weight": 1.0},
        "model.roi_head.bbox_head*.loss_cls": {"type": "CrossEntropyLoss", "loss_weight": 1.0},
        "model.roi_head.mask_head*.loss_mask": {"type": "CrossEntropyLoss", "use_mask": True, "loss_weight": 1.0},
        "model.roi_head.*_roi_extractor": EXTRACTOR,
        "*train_cfg.rpn.assigner": {"type": "MaxIoUAssigner", "pos_iou_thr": 0.7, "neg_iou_thr": 0.3}
        | {"min_pos_iou": 0.3, "match_low_quality": True, "ignore_iof_thr": -1},
        "*train_cfg.rpn.sampler": {"type": "RandomSampler", "pos_fraction": 0.5, "neg_pos_ub": -1}
        | {"add_gt_as_proposals": False},
        "*train_cfg.rpn": {"pos_weight": -1},
        "*train_cfg.rpn_proposal": {"min_bbox_size": 0, "nms_across_levels": False, "nms_post": 1000}
        | {"nms.type": "nms"},
        "*train_cfg.rcnn.sampler": {"type": "RandomSampler", "pos_fraction": 0.25, "neg_pos_ub": -1}
        | {"add_gt_as_proposals": True},
        "*train_cfg.rcnn": {"mask_size": 28, "pos_weight": -1},
        "*test_cfg.rpn": {"nms_across_levels": False, "nms_post": 1000},
    },
    "mask_rcnn": {
        "*train_cfg.rcnn.assigner": {"type": "MaxIoUAssigner", "pos_iou_thr": 0.5, "neg_iou_thr": 0.5}
        | {"min_pos_iou": 0.5, "match_low_quality": True, "ignore_iof_thr": -1},
    },
    "cascade_mask_rcnn": {
        "*train_cfg.rcnn.?.sampler": {"type": "RandomSampler", "pos_fraction": 0.25, "neg_pos_ub": -1}
        | {"add_gt_as_proposals": True},
        "*train_cfg.rcnn.?": {"mask_size": 28, "pos_weight": -1},
        "*train_cfg.rcnn.?.assigner": {"type": "MaxIoUAssigner", "match_low_quality": False, "ignore_iof_thr": -1},
        "model.roi_head": {"num_stages": 3},
    },
    "retinanet": {
        "model.bbox_head.loss_cls": {**FOCAL, "loss_weight": 1.0},
        "model.bbox_head.loss_bbox": {"type": "L1Loss", "loss_weight": 1.0},
        "*train_cfg.assigner": {"type": "MaxIoUAssigner", "pos_iou_thr": 0.5, "neg_iou_thr": 0.4, "min_pos_iou": 0}
        | {"ignore_iof_thr": -1},
    },
    "atss": {
        "model.bbox_head.loss_cls": {**FOCAL, "loss_weight": 1.0},
        "model.bbox_head.loss_bbox": {"type": "GIoULoss", "loss_weight": 2.0},
        "model.bbox_head.loss_centerness": {"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 1.0},
        "*train_cfg.assigner": {"type": "ATSSAssigner"},
    },
    "sparse_rcnn": {
        "model.roi_head.bbox_roi_extractor": EXTRACTOR,
        "model.roi_head.bbox_head*.loss_cls": {**FOCAL, "loss_weight": 2.0},
        "model.roi_head.bbox_head*.loss_bbox": {"type": "L1Loss", "loss_weight": 5.0},
        "model.roi_head.bbox_head*.loss_iou": {"type": "GIoULoss", "loss_weight": 2.0},
        "model.roi_head.bbox_head*": {"dropout": 0.0},
        "model.roi_head.bbox_head*.dynamic_conv_cfg": {"type": "DynamicConv", "act_cfg.type": "ReLU"}
        | {"norm_cfg.type": "LN"},
        "*train_cfg.rcnn*.assigner": {"type": "HungarianAssigner"},
        "*train_cfg.rcnn*": {"pos_weight": 1},
        "*train_cfg.rcnn*.assigner.cls_cost": {"type": "FocalLossCost", "weight": 2.0},
        "*train_cfg.rcnn*.assigner.reg_cost": {"type": "BBoxL1Cost", "weight": 5.0},
        "*train_cfg.rcnn*.assigner.iou_cost": {"type": "IoUCost", "iou_mode": "giou", "weight": 2.0},
        **{f"*train_cfg.rcnn*.assigner.match_costs.{i}": cost for i, cost in enumerate(SET_COSTS)},
    },
    "dino": {
        "model.bbox_head": {"sync_cls_avg_factor": True},
        "model.bbox_head.loss_cls": {**FOCAL, "loss_weight": 1.0},
        "model.bbox_head.loss_bbox": {"type": "L1Loss", "loss_weight": 5.0},
        "model.bbox_head.loss_iou": {"type": "GIoULoss", "loss_weight": 2.0},
        "model.encoder.layer_cfg.*": {"dropout": 0.0, "ffn_drop": 0.0},
        "model.decoder.layer_cfg.*": {"dropout": 0.0, "ffn_drop": 0.0},
        "model.decoder": {"return_intermediate": True},
        "*train_cfg.assigner": {"type": "HungarianAssigner"},
        **{f"*train_cfg.assigner.match_costs.{i}": cost for i, cost in enumerate(SET_COSTS)},
    },
    "segmentor": {
        "model.*_head.loss_decode": {"type": "CrossEntropyLoss", "loss_weight": 1.0, "use_sigmoid": False},
        "model.auxiliary_head.loss_decode": {"use_sigmoid": False, "type": "CrossEntropyLoss"},
        "model.auxiliary_head": {"dropout_ratio": 0.1, "align_corners": False},
        "model.*_head": {"input_transform": "multiple_select"},
    },
}
FAMILIES = {
    "mask_rcnn": "two_stage",
    "cascade_mask_rcnn": "two_stage",
    "upernet": "segmentor",
    "semantic_fpn": "segmentor",
}
DERIVED = (  # names of entries that follow from others, or say how and not what is computed
    *("in_channels", "roi_feat_size", "requires_grad", "inplace", "debug", "convert_weights"),
    *("embed_dims", "num_levels", "num_feats", "num_heads", "out_channels", "featmap_strides", "pretrain_img_size"),
    *("in_index", "mlp_ratios", "proposal_feature_channel"),
)


def is_fixed(path: str, value: object, method: str) -> bool:
    """Return whether a value of a configuration is the one that our method has, or follows from others."""
    if value is None or (path.startswith("model.") and path.rpartition(".")[2] in DERIVED):
        return True
    for family in (method, FAMILIES.get(method, ""), "any"):
        for pattern, usual in FIXED.get(family, {}).items():
            for name, expected in usual.items():
                if fnmatchcase(path, f"{pattern}.{name}"):
                    return expected is ANY or comparable(value) == comparable(expected)
    return False


def training_arguments(config: ConfigSection, network: NetworkDescription, findings: Findings) -> Values:
    """Return arguments of the method that only its training uses."""
    model = config.section("model")
    own = mapping(model.get("train_cfg"))
    train = model.section("train_cfg") if own else config.section("train_cfg")
    _check_classes(model, network.num_classes, findings)
    if network.task == "detection" and network.method != "dino":
        findings.expect(model.section("data_preprocessor"), "pad_size_divisor", 32)
    read = READERS.get(str(network.method))
    return read(model, train, findings) if read else {}


def _check_classes(model: ConfigSection, classes: int, findings: Findings) -> None:
    """Note heads with another number of classes than the first one."""
    heads = model.section("roi_head")
    for section, name in ((heads, "bbox_head"), (heads, "mask_head"), (model, "auxiliary_head")):
        for head in section.sections(name) if section.get(name) else ():
            findings.expect(head, "num_classes", classes)


def _two_stage(model: ConfigSection, train: ConfigSection, findings: Findings) -> Values:
    """Return the arguments of proposals and regions; usual values are left out."""
    rpn, heads = train.section("rpn"), model.section("roi_head")
    cascade = model.type_name == "CascadeRCNN"
    loss = model.section("rpn_head").section("loss_bbox")
    beta = loss.number("beta", 1.0) if loss.type_name == "SmoothL1Loss" else 0.0
    if loss.type_name not in ("L1Loss", "SmoothL1Loss", ""):
        findings.differs(loss, "type", "L1Loss here")
    border = rpn.get("allowed_border", -1)
    if border not in (0, -1):
        findings.differs(rpn, "allowed_border", "-1 here")
    own = unusual({
        "beta": (beta if loss.type_name else 1 / 9, 1 / 9 if cascade else 0.0),
        "whole_anchors": (border == 0, cascade),
        "count": (rpn.section("sampler").integer("num", 256), 256),
    })  # fmt: skip
    out: Values = {"rpn": own} if own else {}
    proposals = train.section("rpn_proposal")
    kept = next((name for name in ("max_per_img", "max_num") if proposals.get(name) is not None), "max_per_img")
    out["training_proposals"] = {
        "per_level": proposals.integer("nms_pre", 2000),
        "per_image": proposals.integer(kept, 2000 if cascade else 1000),
        "iou_threshold": proposals.section("nms").fraction("iou_threshold", proposals.fraction("nms_thr", 0.7)),
    }
    heads_trained = train.sections("rcnn")
    out["regions"] = heads_trained[0].section("sampler").integer("num", 512)
    for more in heads_trained[1:]:
        findings.expect(more.section("sampler"), "num", out["regions"])
    out |= _box_loss(heads, findings, cascade)
    return out | (_stages(heads, heads_trained, findings) if cascade else {})


def _box_loss(heads: ConfigSection, findings: Findings, cascade: bool) -> Values:
    """Return the loss on boxes, where it is not the one that the kind of heads has here."""
    first, *others = heads.sections("bbox_head")
    loss = first.section("loss_bbox", BOX_HEAD_LOSS)
    name = BOX_LOSSES.get(loss.type_name)
    if name is None:
        if loss.type_name:
            findings.differs(loss, "type", "the loss of our heads here")
        return {}
    for one in (first, *others):
        findings.expect(one.section("loss_bbox", BOX_HEAD_LOSS), "type", loss.get("type"))
        findings.expect(one.section("loss_bbox"), "loss_weight", 10.0 if name == "giou" else 1.0)
        findings.expect(one, "reg_decoded_bbox", name == "giou")
        if name == "smooth_l1":
            findings.expect(one.section("loss_bbox"), "beta", 1.0)
    four_convs = first.type_name == "Shared4Conv1FCBBoxHead" or first.get("num_shared_convs") == 4
    usual = "giou" if four_convs else "smooth_l1" if cascade else "l1"
    return {} if name == usual else {"box_loss": name}


def _stages(heads: ConfigSection, trained: list[ConfigSection], findings: Findings) -> Values:
    """Return the stages of a cascade where their overlaps or weights are not the usual ones."""
    weights: Any = heads.get("stage_loss_weights", CASCADE_WEIGHTS)
    boxes = heads.sections("bbox_head")
    if not isinstance(weights, list | tuple) or {len(weights), len(trained), len(boxes)} != {len(CASCADE_OVERLAPS)}:
        raise heads.error("has another number of stages in bbox_head, train_cfg or stage_loss_weights than three")
    assigners = [one.section("assigner") for one in trained]
    overlaps = [one.fraction("pos_iou_thr", usual) for one, usual in zip(assigners, CASCADE_OVERLAPS, strict=True)]
    for one, overlap in zip(assigners, overlaps, strict=True):
        for name in ("neg_iou_thr", "min_pos_iou"):
            findings.expect(one, name, overlap)
    if comparable(weights) == comparable(CASCADE_WEIGHTS) and overlaps == CASCADE_OVERLAPS:
        return {}
    rows = zip(overlaps, CASCADE_STDS, weights, strict=True)  # other deviations are refused before
    return {"stages": [{"iou": iou, "stds": std, "weight": weight} for iou, std, weight in rows]}


def _single_stage(model: ConfigSection, train: ConfigSection, findings: Findings) -> Values:
    findings.expect(train, "allowed_border", -1)
    findings.expect(train, "pos_weight", -1)
    train.section("sampler").get("type")
    return {}


def _atss(model: ConfigSection, train: ConfigSection, findings: Findings) -> Values:
    necks = model.sections("neck")
    if len(necks) > 1:
        findings.expect(necks[1], "zero_init_offset", True)
    return _single_stage(model, train, findings) | {
        "candidates_per_level": train.section("assigner").integer("topk", 9)
    }


def _sparse(model: ConfigSection, train: ConfigSection, findings: Findings) -> Values:
    heads = model.section("roi_head")
    stages = len(heads.sections("bbox_head"))
    findings.expect(heads, "num_stages", stages)
    findings.expect(heads, "stage_loss_weights", [1] * stages)
    first, *others = heads.sections("bbox_head")
    for one in others:
        findings.expect(one, "feedforward_channels", first.get("feedforward_channels"))
        sizes = one.section("dynamic_conv_cfg"), first.section("dynamic_conv_cfg")
        findings.expect(sizes[0], "feat_channels", sizes[1].get("feat_channels"))
    model.section("neck").get("add_extra_convs")  # there is no further map
    for one in train.sections("rcnn"):
        one.section("sampler").get("type")
        for i in range(3):
            costs = one.section("assigner").sections("match_costs")
            if i < len(costs):
                costs[i].get("box_format")
    return {}


def _dino(model: ConfigSection, train: ConfigSection, findings: Findings) -> Values:
    for cost in train.section("assigner").sections("match_costs"):
        cost.get("box_format")
    return {}


READERS: dict[str, Callable[[ConfigSection, ConfigSection, Findings], Values]] = {
    "mask_rcnn": _two_stage,
    "cascade_mask_rcnn": _two_stage,
    "retinanet": _single_stage,
    "atss": _atss,
    "sparse_rcnn": _sparse,
    "dino": _dino,
}
