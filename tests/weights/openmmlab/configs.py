"""Configurations as MMDetection and MMSegmentation have them, of tiny networks, and the text that they are kept as."""

from typing import Any

SWIN = {
    "type": "SwinTransformer",
    "embed_dims": 16,
    "depths": [2, 2, 2, 2],
    "num_heads": [1, 2, 4, 8],
    "window_size": 4,
}
WIDTHS = [16, 32, 64, 128]
MEAN, STD = [100.0, 110.0, 120.0], [50.0, 60.0, 70.0]
RPN = {
    "type": "RPNHead",
    "in_channels": 16,
    "feat_channels": 16,
    "anchor_generator": {
        "type": "AnchorGenerator",
        "scales": [8],
        "ratios": [0.5, 1.0, 2.0],
        "strides": [4, 8, 16, 32, 64],
    },
}
LIMITS = {
    "rpn": {"nms_pre": 50, "max_per_img": 20, "nms": {"type": "nms", "iou_threshold": 0.6}, "min_bbox_size": 0},
    "rcnn": {"score_thr": 0.1, "nms": {"type": "nms", "iou_threshold": 0.4}, "max_per_img": 7, "mask_thr_binary": 0.5},
}


def extractor(size: int) -> dict[str, Any]:
    return {"type": "SingleRoIExtractor", "roi_layer": {"type": "RoIAlign", "output_size": size, "sampling_ratio": 0}}


def box_head(stds: list[float], **more: Any) -> dict[str, Any]:
    coder = {"type": "DeltaXYWHBBoxCoder", "target_stds": stds}
    return {"num_classes": 3, "fc_out_channels": 32, "bbox_coder": coder, "reg_class_agnostic": False, **more}


def two_stage(kind: str, box: Any, masks: bool = True) -> dict[str, Any]:
    heads = {
        "type": "CascadeRoIHead" if isinstance(box, list) else "StandardRoIHead",
        "bbox_roi_extractor": extractor(7),
        "bbox_head": box,
    }
    if masks:
        mask = {"type": "FCNMaskHead", "num_convs": 4, "conv_out_channels": 16, "num_classes": 3}
        heads |= {"mask_roi_extractor": extractor(14), "mask_head": mask}
    neck = {"type": "FPN", "in_channels": WIDTHS, "out_channels": 16, "num_outs": 5}
    return {"type": kind, "backbone": SWIN, "neck": neck, "rpn_head": RPN, "roi_head": heads, "test_cfg": LIMITS}


def mask_rcnn(*, masks: bool = True) -> dict[str, Any]:
    box = box_head([0.1, 0.1, 0.2, 0.2], type="Shared2FCBBoxHead")
    return two_stage("MaskRCNN" if masks else "FasterRCNN", box, masks)


def cascade(*, plain: bool = False) -> dict[str, Any]:
    stds = [[0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067]]
    if plain:
        own: dict[str, Any] = {"type": "Shared2FCBBoxHead", "reg_class_agnostic": True}
    else:
        own = {"type": "ConvFCBBoxHead", "num_shared_convs": 4, "num_shared_fcs": 1, "conv_out_channels": 16}
        own["norm_cfg"] = {"type": "SyncBN", "requires_grad": True}
    return two_stage("CascadeRCNN", [box_head(one, **own) for one in stds])


def retinanet() -> dict[str, Any]:
    anchors = {"type": "AnchorGenerator", "octave_base_scale": 4, "scales_per_octave": 3, "ratios": [0.5, 1.0, 2.0]}
    head = {"type": "RetinaHead", "num_classes": 3, "in_channels": 16, "stacked_convs": 2, "feat_channels": 16}
    head["anchor_generator"] = {**anchors, "strides": [8, 16, 32, 64, 128]}
    neck = {"type": "FPN", "in_channels": WIDTHS, "out_channels": 16, "start_level": 1, "num_outs": 5}
    limits = {"nms_pre": 40, "min_bbox_size": 0, "score_thr": 0.1, "nms": {"type": "nms", "iou_threshold": 0.4}}
    return {
        "type": "RetinaNet",
        "backbone": SWIN,
        "neck": {**neck, "add_extra_convs": "on_input"},
        "bbox_head": head,
        "test_cfg": {**limits, "max_per_img": 7},
    }


def atss(*, dyhead: bool = False) -> dict[str, Any]:
    anchors = {"type": "AnchorGenerator", "octave_base_scale": 8, "scales_per_octave": 1, "ratios": [1.0]}
    stds = [0.1, 0.1, 0.2, 0.2]
    head = {"type": "ATSSHead", "num_classes": 3, "in_channels": 64, "feat_channels": 64}
    head |= {"stacked_convs": 0, "pred_kernel_size": 1} if dyhead else {"stacked_convs": 1}
    head["anchor_generator"] = {**anchors, "strides": [8, 16, 32, 64, 128], "center_offset": 0.5 if dyhead else 0}
    head["bbox_coder"] = {"type": "DeltaXYWHBBoxCoder", "target_means": [0.0] * 4, "target_stds": stds}
    neck: Any = {"type": "FPN", "in_channels": WIDTHS, "out_channels": 64, "start_level": 1, "num_outs": 5}
    neck["add_extra_convs"] = "on_output"
    if dyhead:
        neck = [neck, {"type": "DyHead", "in_channels": 64, "out_channels": 64, "num_blocks": 2}]
    limits = {"nms_pre": 40, "min_bbox_size": 0, "score_thr": 0.1, "nms": {"type": "nms", "iou_threshold": 0.4}}
    return {
        "type": "ATSS",
        "backbone": SWIN,
        "neck": neck,
        "bbox_head": head,
        "test_cfg": {**limits, "max_per_img": 7},
    }


def sparse_rcnn() -> dict[str, Any]:
    coder = {"type": "DeltaXYWHBBoxCoder", "clip_border": False, "target_stds": [0.5, 0.5, 1.0, 1.0]}
    conv = {"type": "DynamicConv", "in_channels": 16, "feat_channels": 8, "out_channels": 16, "input_feat_shape": 7}
    head = {"type": "DIIHead", "num_classes": 3, "num_heads": 8, "in_channels": 16, "feedforward_channels": 32}
    head |= {"bbox_coder": coder, "dynamic_conv_cfg": conv, "num_cls_fcs": 1, "num_reg_fcs": 3, "num_ffn_fcs": 2}
    regions = {"type": "SingleRoIExtractor", "roi_layer": {"type": "RoIAlign", "output_size": 7, "sampling_ratio": 2}}
    neck = {"type": "FPN", "in_channels": WIDTHS, "out_channels": 16, "num_outs": 4, "add_extra_convs": "on_input"}
    return {
        "type": "SparseRCNN",
        "backbone": SWIN,
        "neck": neck,
        "rpn_head": {"type": "EmbeddingRPNHead", "num_proposals": 9, "proposal_feature_channel": 16},
        "roi_head": {"type": "SparseRoIHead", "bbox_roi_extractor": regions, "bbox_head": [head, head]},
        "test_cfg": {"rpn": None, "rcnn": {"max_per_img": 7}},
    }


def upernet() -> dict[str, Any]:
    head = {"type": "UPerHead", "in_channels": WIDTHS, "channels": 16, "num_classes": 3, "pool_scales": (1, 2, 3, 6)}
    aside = {"type": "FCNHead", "in_channels": 64, "in_index": 2, "channels": 16, "num_convs": 1, "num_classes": 3}
    return {
        "type": "EncoderDecoder",
        "backbone": SWIN,
        "decode_head": {**head, "norm_cfg": {"type": "SyncBN", "requires_grad": True}, "align_corners": False},
        "auxiliary_head": {**aside, "concat_input": False},
        "test_cfg": {"mode": "slide", "crop_size": (64, 64), "stride": (32, 32)},
    }


def semantic_fpn() -> dict[str, Any]:
    head = {
        "type": "FPNHead",
        "channels": 16,
        "num_classes": 3,
        "feature_strides": [4, 8, 16, 32],
        "dropout_ratio": 0.1,
    }
    neck = {"type": "FPN", "in_channels": WIDTHS, "out_channels": 16, "num_outs": 4}
    return {
        "type": "EncoderDecoder",
        "backbone": SWIN,
        "neck": neck,
        "decode_head": {**head, "norm_cfg": {"type": "BN"}},
        "test_cfg": {"mode": "whole"},
    }


def of_mmcv(model: dict[str, Any]) -> dict[str, Any]:
    """A whole configuration of MMDetection 2 and MMSegmentation 0.x."""
    norm = {"mean": MEAN, "std": STD, "to_rgb": True}
    inner = [
        {"type": "Resize", "keep_ratio": True},
        {"type": "RandomFlip"},
        {"type": "Normalize", **norm},
        {"type": "Pad", "size_divisor": 32},
    ]
    outer = {"type": "MultiScaleFlipAug", "img_scale": (128, 96), "flip": False, "transforms": inner}
    pipeline = [{"type": "LoadImageFromFile"}, outer]
    return {
        "model": model,
        "data": {"samples_per_gpu": 2, "test": {"type": "CocoDataset", "pipeline": pipeline}},
        "optimizer": {
            "lr": 1e-4,
            "betas": (0.9, 0.999),
            "paramwise_cfg": {"custom_keys": {"norm.1": {"decay_mult": 0.0}}},
        },
        "lr_config": {"policy": "step", "step": [8, 11], "warmup": None},
    }


def of_mmengine(model: dict[str, Any]) -> dict[str, Any]:
    """A whole configuration of MMDetection 3 and MMSegmentation 1.x."""
    pipeline = [{"type": "LoadImageFromFile"}, {"type": "Resize", "scale": (128, 96), "keep_ratio": True}]
    first = {"type": "DetDataPreprocessor", "mean": MEAN, "std": STD, "bgr_to_rgb": True}
    return {
        "default_scope": "mmdet",
        "model": {**model, "data_preprocessor": first},
        "test_dataloader": {"batch_size": 1, "dataset": {"type": "CocoDataset", "pipeline": pipeline}},
        "auto_scale_lr": {"enable": False, "base_batch_size": 16},
    }


def written(config: dict[str, Any]) -> str:
    """The text that these libraries keep: an assignment for each entry."""
    return "".join(f"{name} = {_written(value)}\n" for name, value in config.items())


def _written(value: Any) -> str:
    if isinstance(value, dict) and all(key.isidentifier() for key in value):
        return f"dict({', '.join(f'{key}={_written(one)}' for key, one in value.items())})"
    if isinstance(value, dict):
        return f"dict({{{', '.join(f'{key!r}: {_written(one)}' for key, one in value.items())}}})"
    if isinstance(value, list | tuple):
        begin, end = "[]" if isinstance(value, list) else ("(", ",)")
        return f"{begin}{', '.join(map(_written, value))}{end}"
    return repr(value)


def changed(config: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    first, _, rest = path.partition(".")
    return {**config, first: changed(config.get(first, {}), rest, value) if rest else value}
