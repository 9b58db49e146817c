"""Entries that a configuration leaves out have the values of MMDetection's classes."""

import copy
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
from tiny_networks import SWIN, tiny
from weights.openmmlab import configs
from weights.openmmlab.config_files import write
from weights.openmmlab.source_configs import CONFIGS

from fourstage import registry
from fourstage.backbones import swin
from fourstage.recipe import Detection
from fourstage.run.import_config import imported_recipe
from fourstage.weights.openmmlab.network import network_of_config

CLASSES = ("cat", "dog", "owl")


@pytest.fixture(autouse=True)
def mini(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Swin small enough for tests, by a name."""
    registry.list_models()
    build = partial(swin.dense, SWIN)
    monkeypatch.setitem(registry._entries, "swin_mini", registry.Entry("swin_mini", partial(tiny, "swin"), build))


def without(model: dict[str, Any], *paths: str) -> dict[str, Any]:
    """Return a copy of a configuration without these entries."""
    out = copy.deepcopy(model)
    for path in paths:
        *above, last = path.split(".")
        at: Any = out
        for word in above:
            at = at[int(word) if word.isdigit() else word]
        del at[last]
    return out


def arguments(model: dict[str, Any]) -> Mapping[str, Any]:
    return network_of_config(configs.of_mmengine(model), "m.pth", classes=CLASSES).method_args


@pytest.mark.parametrize(
    ("model", "path"),
    [
        (configs.mask_rcnn(), "roi_head.bbox_head.bbox_coder"),
        (configs.cascade(), "roi_head.bbox_head.0.bbox_coder"),
        (configs.cascade(plain=True), "roi_head.bbox_head.0.bbox_coder"),
        (configs.retinanet(), "bbox_head.anchor_generator"),
    ],
)
def test_an_entry_with_the_usual_value_may_be_left_out(model: dict[str, Any], path: str) -> None:
    assert arguments(without(model, path)) == arguments(model)


def test_proposals_without_anchors_have_those_of_mmdetection() -> None:
    assert arguments(without(configs.mask_rcnn(), "rpn_head.anchor_generator"))["rpn"]["scales"] == [8, 16, 32]


@pytest.mark.parametrize(
    ("model", "path", "sentence"),
    [
        (configs.cascade(), "roi_head.bbox_head.1.bbox_coder", r"target_stds \[0.1, 0.1, 0.2, 0.2\] is not"),
        (configs.mask_rcnn(), "roi_head.bbox_head.bbox_coder.target_stds", r"target_stds \[1.0, 1.0, 1.0, 1.0\] is"),
        (configs.atss(), "bbox_head.bbox_coder", r"target_stds \[1.0, 1.0, 1.0, 1.0\] is not supported"),
        (configs.atss(), "bbox_head.bbox_coder.target_stds", r"target_stds \[1.0, 1.0, 1.0, 1.0\] is not supported"),
        (configs.upernet(), "decode_head.norm_cfg", r"decode_head\.norm_cfg: type None is not supported"),
        (configs.semantic_fpn(), "decode_head.norm_cfg", r"decode_head\.norm_cfg: type None is not supported"),
        (configs.atss(), "bbox_head.anchor_generator", r"strides \[4, 8, 16, 32, 64\] is not supported"),
    ],
)
def test_a_default_that_the_networks_here_lack_is_refused(model: dict[str, Any], path: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        arguments(without(model, path))


def test_a_loss_of_anchors_that_does_not_name_sigmoid_is_of_softmax() -> None:
    loss = {"type": "CrossEntropyLoss", "loss_weight": 1.0}
    with pytest.raises(ValueError, match="use_sigmoid False is not supported"):
        arguments(configs.changed(configs.mask_rcnn(), "rpn_head.loss_cls", loss))


def test_heads_without_a_loss_for_boxes_train_with_that_of_mmdetection(tmp_path: Path) -> None:
    text = CONFIGS["mask_rcnn_smt_small_coco_1x"]
    usual = cast(Detection, imported_recipe(write(tmp_path, text)).recipe)
    assert "box_loss" not in usual.method_args
    more = text + "model = dict(roi_head=dict(bbox_head=dict(loss_bbox=None)))\n"
    assert "\nmodel = " not in text
    found = cast(Detection, imported_recipe(write(tmp_path, more, "without")).recipe)
    assert found.method_args["box_loss"] == "smooth_l1"
