"""What MMDetection's configurations mean for the network that is built of them."""

import gzip
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tiny_networks import SWIN, tiny
from weights.openmmlab import configs
from weights.openmmlab.configs import changed

import fourstage
from fourstage import registry
from fourstage.backbones import swin
from fourstage.data.class_names import ADE20K, COCO
from fourstage.run.described import classes_of, recipe_of
from fourstage.weights.openmmlab.network import network_of_config

GOLDEN = Path(__file__).parents[2] / "golden"
CLASSES = ("cat", "dog", "owl")


@pytest.fixture(autouse=True)
def mini(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Swin small enough for tests, by a name."""
    registry.list_models()
    build = partial(swin.dense, SWIN)
    monkeypatch.setitem(registry._entries, "swin_mini", registry.Entry("swin_mini", partial(tiny, "swin"), build))


def whole(name: str) -> dict[str, Any]:
    with gzip.open(GOLDEN / f"{name}.json.gz") as file:
        return json.load(file)["config"]


SWIN_T = {"depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 7}
BACKBONES = [
    ({"type": "SwinTransformer", "embed_dim": 96, **SWIN_T, "ape": False, "use_checkpoint": False}, "swin_tiny", {}),
    ({"type": "mmdet.SwinTransformer", "embed_dims": 96, **SWIN_T, "drop_path_rate": 0.3}, "swin_tiny", {}),
    ({"type": "SwinTransformer", "embed_dims": 96, **SWIN_T, "window_size": 12}, "swin_tiny", {"window_size": 12}),
    (
        {"type": "SwinTransformer", "embed_dims": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32]}
        | {"window_size": 12, "pretrain_img_size": 384},
        "swin_base_patch4_window12_384",
        {},
    ),
    (
        {"type": "SwinTransformer", "embed_dims": 96, **SWIN_T, "use_abs_pos_embed": True, "pretrain_img_size": 256},
        "swin_tiny",
        {"ape": True, "img_size": 256},
    ),
    ({"type": "SMT", "embed_dims": [64, 128, 256, 512], "depths": [3, 4, 18, 2], "head_conv": 3}, "smt_small", {}),
    ({"type": "SMT", "embed_dims": [64, 128, 256, 512], "depths": [4, 6, 28, 2], "head_conv": 7}, "smt_base", {}),
    (
        {"type": "SMT", "embed_dims": [96, 192, 384, 768], "depths": [4, 6, 28, 4], "mlp_ratios": [8, 6, 4, 2]},
        "smt_large",
        {"init_values": 0},
    ),
    (
        {"type": "SMT", "embed_dims": [96, 192, 384, 768], "depths": [4, 6, 28, 4], "use_layerscale": True}
        | {"layerscale_value": 1e-5, "sa_num_heads": [-1, -1, 8, 16], "ca_num_heads": (4, 4, 4, -1)},
        "smt_large",
        {"init_values": 1e-5},
    ),
    ({"type": "UnifiedConvNeXt", "dims": [32, 64, 128, 256], "depths": [3, 3, 8, 3]}, "unified_convnext_micro", {}),
    ({"type": "UnifiedDCNv3", "dims": [80, 160, 320, 640], "depths": [4, 4, 21, 4]}, "unified_dcn_v3_small", {}),
    ({"type": "UnifiedHalonet", "dims": [96, 192, 384, 768], "depths": [2, 2, 6, 2]}, "unified_halo_tiny", {}),
    ({"type": "UnifiedPVT", "dims": [64, 128, 320, 512], "depths": [3, 8, 45, 3]}, "unified_pvt_base", {}),
    (
        {"type": "UnifiedSwinTransformer", "dims": [128, 256, 512, 1024], "depths": [2, 2, 18, 2]},
        "unified_swin_base",
        {},
    ),
    (
        {"type": "SwinVisformer", "embed_dim": 384, "depth": [0, 7, 4, 4], "num_heads": [6, 6, 6, 6], "qk_scale": -0.5},
        "swin_visformer_small",
        {"qk_scale_factor": -0.5},
    ),
    (
        {"type": "SwinVisformer", "embed_dim": 256, "depth": [1, 10, 14, 3], "num_heads": [2, 4, 8, 16]},
        "swin_visformer_small_v2",
        {},
    ),
]


@pytest.mark.parametrize(
    ("theirs", "ours", "arguments"), BACKBONES, ids=lambda value: value if type(value) is str else ""
)
def test_backbones_are_recognised_by_their_sizes(theirs: dict[str, Any], ours: str, arguments: dict[str, Any]) -> None:
    found = network_of_config({"model": {**whole("e2e/mask_rcnn_swin_t"), "backbone": theirs}}, "m.pth")
    assert found.backbone == ours
    assert found.backbone_args == {**arguments, "drop_path_rate": theirs.get("drop_path_rate", 0.0)}


def test_published_configurations_are_understood() -> None:
    found = network_of_config({"model": whole("e2e/mask_rcnn_swin_t")}, "runs/my file.pth")
    assert (found.task, found.method, found.num_classes, found.evaluation) == ("detection", "mask_rcnn", 80, {})
    arguments = {"channels": 256, "masks": True, "mask_channels": 256, "fc_channels": 1024}
    limits = {
        "rpn": {"proposals": {"per_level": 1000, "per_image": 1000, "iou_threshold": 0.7}},
        "selecting": {"score_threshold": 0.05, "iou_threshold": 0.5, "per_image": 100},
    }
    assert found.method_args == {**arguments, **limits}
    assert (found.mean, found.std) == (pytest.approx((0.485, 0.456, 0.406)), pytest.approx((0.229, 0.224, 0.225)))
    assert (found.classes, found.palette) == (None, None)
    recipe: Any = recipe_of(found, Path("runs/my file.pth"))
    assert (recipe.name, recipe.method, recipe.num_classes, recipe.evaluation.scale) == (
        "my_file",
        "mask_rcnn",
        80,
        (1333, 800),
    )
    assert recipe.mean == pytest.approx((0.485, 0.456, 0.406))
    assert classes_of(found) == COCO
    cascade = network_of_config(
        {"model": {**whole("heads/cascade_mask_rcnn_4conv1fc"), "backbone": whole("e2e/mask_rcnn_swin_t")["backbone"]}},
        "m.pth",
    )
    assert (cascade.method, cascade.method_args["heads"]) == ("cascade_mask_rcnn", "4conv1fc")
    swin_t = whole("e2e/mask_rcnn_swin_t")["backbone"]
    for name, blocks in (("atss_fpn", {"convs": 4}), ("atss_dyhead", {"convs": 0, "dyhead": 2})):
        atss = network_of_config({"model": {**whole(f"heads/{name}"), "backbone": swin_t}}, "m.pth")
        limits = {"per_level": 1000, "score_threshold": 0.05, "iou_threshold": 0.6, "per_image": 100}
        expected = {"channels": 256, "num_outs": 5, "candidates": "pairs", **limits, **blocks}
        assert (atss.method, atss.method_args) == ("atss", expected)
    segmentor = network_of_config({"model": whole("e2e/upernet_swin_t")}, "m.pth")
    assert classes_of(segmentor) == ADE20K
    assert recipe_of(segmentor, Path("m.pth")).network_name == "upernet over swin_tiny"


SETTINGS: list[tuple[dict[str, Any], str, object, dict[str, Any]]] = [
    (configs.mask_rcnn(), "rpn_head.anchor_generator.scales", [4, 8], {"rpn": {"scales": [4, 8]}}),
    (configs.mask_rcnn(), "rpn_head.feat_channels", 24, {"rpn": {"channels": 24}}),
    (configs.mask_rcnn(), "rpn_head.num_convs", 2, {"rpn": {"convs": 2}}),
    (configs.mask_rcnn(), "roi_head.bbox_roi_extractor.finest_scale", 56, {}),
    (configs.mask_rcnn(), "roi_head.bbox_head.reg_class_agnostic", True, {"class_agnostic": True}),
    (configs.mask_rcnn(), "roi_head.mask_head.num_convs", 2, {"mask_convs": 2}),
    (configs.mask_rcnn(), "test_cfg.rcnn.mask_thr_binary", 0.6, {}),
    (configs.cascade(plain=True), "roi_head.mask_head.conv_out_channels", 8, {"mask_channels": 8}),
    (configs.retinanet(), "bbox_head.feat_channels", 24, {"tower_channels": 24}),
    (configs.retinanet(), "bbox_head.anchor_generator.scales_per_octave", 2, {"scales_per_octave": 2}),
    (configs.retinanet(), "bbox_head.anchor_generator.ratios", [1.0], {"ratios": [1.0]}),
    (configs.atss(), "bbox_head.feat_channels", 96, {"tower_channels": 96}),
    (configs.atss(), "bbox_head.anchor_generator.octave_base_scale", 4, {"base_scale": 4}),
    (configs.atss(), "bbox_head.anchor_generator.center_offset", 0.5, {"anchor_offset": 0.5}),
    (configs.atss(dyhead=True), "bbox_head.pred_kernel_size", 5, {"kernel": 5}),
    (configs.sparse_rcnn(), "rpn_head.num_proposals", 12, {"proposals": 12}),
    (configs.sparse_rcnn(), "test_cfg.rcnn.max_per_img", 5, {"per_image": 5}),
]


@pytest.mark.parametrize(("model", "path", "value", "more"), SETTINGS)
def test_what_a_configuration_may_have_otherwise_is_built(
    model: dict[str, Any], path: str, value: object, more: dict[str, Any]
) -> None:
    usual = network_of_config(configs.of_mmengine(model), "m.pth", classes=CLASSES).method_args
    found = network_of_config(configs.of_mmengine(changed(model, path, value)), "m.pth", classes=CLASSES)
    assert found.method is not None
    expected = {**usual, **more}
    if "rpn" in more:
        expected["rpn"] = {**usual["rpn"], **more["rpn"]}
    if "mask_thr" in path:
        expected["selecting"] = {**usual["selecting"], "mask_threshold": value}
    assert found.method_args == expected
    network: Any = fourstage.create_detector(found.method, "swin_mini", 3, **found.method_args)
    if "mask_thr" in path:
        assert network.limits.mask_threshold == value
    if "agnostic" in path:
        assert network.box_head.regress.out_features == 4


def test_boxes_are_read_from_maps_as_the_configuration_says() -> None:
    model = configs.mask_rcnn()
    for name in ("bbox", "mask"):
        model = changed(model, f"roi_head.{name}_roi_extractor.finest_scale", 28)
    found = network_of_config(configs.of_mmengine(model), "m.pth", classes=CLASSES)
    network: Any = fourstage.create_detector("mask_rcnn", "swin_mini", 3, **found.method_args)
    assert (network.box_pool.finest_scale, network.mask_pool.finest_scale) == (28, 28)
    with pytest.raises(ValueError, match="finest_scale 56 is not"):
        network_of_config(configs.of_mmengine(changed(model, "roi_head.mask_roi_extractor.finest_scale", 56)), "m.pth")


def test_a_mask_rcnn_may_have_the_heads_of_the_swin_line() -> None:
    model = configs.mask_rcnn()
    model["roi_head"] = {**model["roi_head"], "bbox_head": configs.cascade()["roi_head"]["bbox_head"][0]}
    found = network_of_config(configs.of_mmengine(model), "m.pth", classes=CLASSES)
    assert (found.method_args["heads"], found.method_args["conv_channels"]) == ("4conv1fc", 16)


def test_maps_of_fewer_stages_begin_where_the_backbone_does() -> None:
    model = changed(configs.mask_rcnn(), "backbone.out_indices", [0, 1, 2])
    model = changed(changed(model, "neck.in_channels", configs.WIDTHS[:3]), "neck.num_outs", 4)
    model = changed(model, "rpn_head.anchor_generator.strides", [4, 8, 16, 32])
    found = network_of_config(configs.of_mmengine(model), "m.pth", classes=CLASSES)
    assert found.backbone_args["out_indices"] == [0, 1, 2]


@pytest.mark.parametrize("model", [configs.retinanet(), configs.atss()], ids=["retinanet", "atss"])
@pytest.mark.parametrize(("version", "candidates"), [("2.11.0", "anchors"), ("2.19.1+1", "pairs"), (None, "pairs")])
def test_single_stage_detectors_choose_as_their_version_did(
    version: str | None, candidates: str, model: dict[str, Any]
) -> None:
    meta = {} if version is None else {"mmdet_version": version}
    found = network_of_config(configs.of_mmcv(model), "m.pth", meta=meta, classes=CLASSES)
    assert found.method_args["candidates"] == candidates


SMT_T = {"type": "SMT", "embed_dims": [64, 128, 256, 512], "depths": [2, 2, 8, 1]}
VISFORMER_S = {"type": "SwinVisformer", "embed_dim": 256, "depth": [1, 10, 14, 3]}
REFUSED: list[tuple[dict[str, Any], str, object, str]] = [
    (configs.mask_rcnn(), "type", "HybridTaskCascade", "network type 'HybridTaskCascade' is not supported.*MaskRCNN"),
    (configs.mask_rcnn(), "type", None, "names no network type; supported types: .*MaskRCNN"),
    (configs.mask_rcnn(), "type", ["a"], "names no network type; supported types: .*MaskRCNN"),
    (
        configs.mask_rcnn(),
        "backbone.type",
        "ResNet",
        r"model\.backbone: backbone type 'ResNet' is not supported.*SwinTransformer",
    ),
    (configs.mask_rcnn(), "backbone.embed_dims", 17, "width 17.*none of swin_base.* has"),
    (configs.mask_rcnn(), "backbone.depths", "many", "depths must be a list of integers.*got 'many'"),
    (configs.mask_rcnn(), "backbone.mlp_ratio", 2, "mlp_ratio 2 is not"),
    (
        configs.mask_rcnn(),
        "backbone",
        {**SMT_T, "sa_num_heads": [-1, -1, 4, 8]},
        r"sa_num_heads \[-1, -1, 4, 8\] is not",
    ),
    (configs.mask_rcnn(), "backbone", {**SMT_T, "ca_num_heads": [2, 2, 2, -1]}, r"ca_num_heads \[2, 2, 2, -1\] is not"),
    (configs.mask_rcnn(), "backbone", {**SMT_T, "ca_attentions": [1, 1, 0, 0]}, "ca_attentions .* is not supported"),
    (configs.mask_rcnn(), "backbone", {**SMT_T, "expand_ratio": 4}, "expand_ratio 4 is not supported; supported: 2"),
    (configs.mask_rcnn(), "backbone", {**SMT_T, "qk_scale": 0.5}, "qk_scale 0.5 is not supported"),
    (
        configs.mask_rcnn(),
        "backbone",
        {**VISFORMER_S, "num_heads": [2, 4, 4, 8]},
        r"heads \[2, 4, 4, 8\], which none of",
    ),
    (configs.mask_rcnn(), "neck.type", "PAFPN", "type 'PAFPN' is not supported"),
    (configs.mask_rcnn(), "neck.num_outs", 3, "num_outs=3, and 4 maps come in"),
    (configs.mask_rcnn(), "neck.num_outs", 6, r"strides \[4, 8, 16, 32, 64\] is not supported"),
    (
        configs.mask_rcnn(),
        "rpn_head.anchor_generator.scales",
        [0, 8],
        r"scales must be a list of numbers above 0; got \[0, 8\]",
    ),
    (
        configs.mask_rcnn(),
        "rpn_head.anchor_generator.center_offset",
        0.5,
        "center_offset 0.5 is not supported; supported: 0",
    ),
    (configs.mask_rcnn(), "roi_head", None, "MMDetection 1"),
    (configs.mask_rcnn(), "roi_head.bbox_head.type", "DoubleConvFCBBoxHead", "DoubleConvFCBBoxHead"),
    (configs.mask_rcnn(), "roi_head.bbox_head.num_classes", 5, "names 3 classes.*num_classes=5"),
    (
        configs.mask_rcnn(),
        "roi_head.mask_roi_extractor.roi_layer.sampling_ratio",
        2,
        "sampling_ratio 2 is not supported; supported: 0",
    ),
    (configs.mask_rcnn(), "test_cfg.rcnn.nms.type", "soft_nms", "type 'soft_nms' is not supported; supported: 'nms'"),
    (configs.mask_rcnn(), "test_cfg.rcnn.score_thr", "low", "score_thr must be a number from 0 to 1; got 'low'"),
    (configs.mask_rcnn(), "test_cfg.rpn.nms_pre", -1, "nms_pre must be an integer of at least 0; got -1"),
    (configs.mask_rcnn(), "roi_head.bbox_head.loss_cls", {"use_sigmoid": True}, "use_sigmoid True is not"),
    (configs.mask_rcnn(), "roi_head.bbox_head.bbox_coder.target_stds", [1.0] * 4, "target_stds"),
    (configs.cascade(), "roi_head.bbox_head", [], "cascade"),
    (configs.retinanet(), "neck.add_extra_convs", "on_output", "on_output"),
    (configs.retinanet(), "bbox_head.anchor_generator.center_offset", 0.5, "center_offset 0.5 is not supported"),
    (configs.atss(), "neck.add_extra_convs", "on_input", "on_input"),
    (configs.atss(), "bbox_head.anchor_generator.ratios", [1.0, 2.0], "ratios .* is not supported"),
    (configs.atss(), "bbox_head.norm_cfg", {"type": "BN"}, "type 'BN' is not supported; supported: 'GN'"),
    (configs.atss(), "bbox_head.bbox_coder.target_stds", [1.0] * 4, "target_stds"),
    (configs.atss(), "neck", [configs.atss()["neck"], {"type": "PAFPN"}], "type 'PAFPN' is not supported"),
    (configs.atss(), "neck", [*configs.atss(dyhead=True)["neck"], {}], "third neck"),
    (configs.sparse_rcnn(), "roi_head.type", "CascadeRoIHead", "type 'CascadeRoIHead' is not supported"),
    (configs.sparse_rcnn(), "neck.num_outs", 5, "num_outs 5 is not supported; supported: 4"),
    (configs.sparse_rcnn(), "roi_head.bbox_roi_extractor.roi_layer.sampling_ratio", 0, "sampling_ratio 0 is not"),
    (configs.sparse_rcnn(), "roi_head.bbox_head", [{"type": "BBoxHead"}], "type 'BBoxHead' is not supported"),
    (configs.upernet(), "decode_head.type", "PSPHead", "PSPHead.*UPerHead"),
    (configs.upernet(), "decode_head.act_cfg", {"type": "GELU"}, "GELU"),
]


@pytest.mark.parametrize(("model", "path", "value", "sentence"), REFUSED)
def test_what_cannot_be_built_the_same_is_refused(
    model: dict[str, Any], path: str, value: object, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence) as error:
        network_of_config(configs.of_mmengine(changed(model, path, value)), "m.pth", classes=CLASSES)
    assert "m.pth" in str(error.value)


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("model.data_preprocessor.bgr_to_rgb", False, "bgr_to_rgb False is not"),
        (
            "model.data_preprocessor",
            {"mean": configs.MEAN, "std": configs.STD},
            "bgr_to_rgb False is not",
        ),  # MMEngine's default
        ("model.data_preprocessor.mean", [1], "three numbers"),
        ("model", "a", "names no network type"),
    ],
)
def test_images_that_reach_the_network_otherwise_are_refused(path: str, value: object, sentence: str) -> None:
    config = changed(configs.of_mmengine(configs.mask_rcnn()), path, value)
    with pytest.raises(ValueError, match=sentence):
        network_of_config(config, "m.pth", classes=CLASSES)
