"""MMDetection's names of necks and heads: every one claimed exactly once, none guessed."""

import pytest
import torch
from goldens import FixedMaps, read_golden
from scenes import NAMES, small

import fourstage
from fourstage.tasks.detection.cascade_mask_rcnn import CascadeMaskRCNN
from fourstage.weights.complete_checkpoints import count_classes
from fourstage.weights.openmmlab.detector_names import ATSS, HEADS
from fourstage.weights.rules import matching_rules, rename

BOX = ("shared_convs.0.conv.weight", "shared_convs.3.bn.running_var", "shared_convs.1.bn.num_batches_tracked")
BOX += ("shared_convs.2.gn.bias", "shared_fcs.1.bias", "fc_cls.weight", "fc_reg.bias")
MASK = ("convs.3.conv.weight", "upsample.bias", "conv_logits.weight")
THEIRS = (
    "neck.lateral_convs.0.conv.weight",
    "neck.fpn_convs.4.conv.bias",
    "bbox_head.cls_convs.3.conv.weight",
    "bbox_head.reg_convs.0.conv.bias",
    "bbox_head.retina_cls.bias",
    "bbox_head.retina_reg.weight",
    "rpn_head.rpn_conv.weight",
    "rpn_head.rpn_conv.1.conv.weight",
    "rpn_head.rpn_cls.weight",
    "rpn_head.rpn_reg.bias",
    *(f"roi_head.bbox_head.{key}" for key in BOX),
    *(f"roi_head.bbox_head.2.{key}" for key in BOX),
    *(f"roi_head.mask_head.{key}" for key in MASK),
    *(f"roi_head.mask_head.1.{key}" for key in MASK),
)


@pytest.mark.parametrize("key", THEIRS)
def test_every_name_is_claimed_once(key: str) -> None:
    assert len(matching_rules(HEADS, key)) == 1


def test_names_become_ours() -> None:
    ours = rename({key: torch.zeros(1) for key in THEIRS}, HEADS)
    assert len(ours) == len(THEIRS)
    assert {"box_heads.2.convs.0.conv.weight", "box_head.classify.weight", "mask_heads.1.logits.weight"} <= ours.keys()


def test_a_name_of_another_detector_is_an_error() -> None:
    for key in ("bbox_head.atss_cls.weight", "roi_head.mask_iou_head.fcs.0.weight", "neck.top_down.weight"):
        with pytest.raises(ValueError, match="matches 0 rules"):
            rename({key: torch.zeros(1)}, HEADS)


def test_every_name_of_ours_has_one_of_theirs() -> None:
    with torch.device("meta"):
        detector = CascadeMaskRCNN(fourstage.create_backbone("swin_tiny"), 80, heads="4conv1fc")
    wanted = {key for key in detector.state_dict() if not key.startswith("backbone.")}
    theirs = {key: torch.zeros(1) for key in THEIRS}
    kinds = {_kind(key) for key in rename(theirs, HEADS)}
    assert {_kind(key) for key in wanted if not key.endswith("num_batches_tracked")} <= kinds


def test_every_name_of_an_atss_is_claimed_once_and_becomes_one_of_ours() -> None:
    for dyhead, golden in ((0, "atss_fpn"), (2, "atss_dyhead")):
        manifest, _ = read_golden(golden)
        assert all(len(matching_rules(ATSS, key)) == 1 for key in manifest["params"])
        with torch.device("meta"):
            network = fourstage.create_detector("atss", FixedMaps(), 80, dyhead=dyhead)
        ours = rename({key: torch.zeros(1) for key in manifest["params"]}, ATSS)
        assert ours.keys() == network.state_dict().keys()
    with pytest.raises(ValueError, match="matches 0 rules"):
        rename({"bbox_head.retina_cls.weight": torch.zeros(1)}, ATSS)


@pytest.mark.parametrize("name", NAMES)
def test_the_number_of_classes_is_counted_by_the_rule_of_the_method(name: str) -> None:
    assert count_classes(small(name, classes=7).state_dict(), "detection") == 7


def _kind(key: str) -> str:
    """A key without its numbers and its last part."""
    return ".".join(part for part in key.split(".")[:-1] if not part.isdigit())
