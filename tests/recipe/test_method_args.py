"""The reference of method arguments is complete, and its page is the one that signatures and docstrings give."""

import inspect
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from fourstage import create_detector
from fourstage.methods import METHODS
from fourstage.recipe import resolve
from fourstage.recipe.detection import Detection
from fourstage.recipe.keys import Key, in_yaml
from fourstage.recipe.method_args import COMMAND, arguments_of, meaning_of, page
from fourstage.tasks.detection.two_stage import TwoStage

PAGE = Path(__file__).parents[2] / "docs" / "method-args.md"


def of(method: str) -> dict[str, Key]:
    return {argument.name: argument for argument in arguments_of(METHODS[method])}


def test_the_page_is_the_one_of_the_code() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), f"a method has changed; write the page again: {COMMAND}"


@pytest.mark.parametrize("method", METHODS)
def test_every_argument_is_described_once(method: str) -> None:
    names = [argument.name for argument in arguments_of(METHODS[method])]
    signature = inspect.signature(METHODS[method].builder).parameters
    assert len(set(names)) == len(names)
    assert [name for name in names if "." not in name] == [*signature][2:]  # after backbone and num_classes
    for argument in of(method).values():
        assert argument.meaning.endswith("."), argument
        assert "see `" not in argument.meaning, argument
        assert len(argument.meaning.split()) > 3, argument
        assert argument.type
        assert argument.default


def test_types_and_defaults_are_those_of_the_signatures() -> None:
    rcnn, cascade = of("mask_rcnn"), of("cascade_mask_rcnn")
    assert (rcnn["heads"].type, rcnn["heads"].default) == ("`2fc` or `4conv1fc`", "2fc")
    assert (rcnn["rpn"].type, rcnn["rpn.scales"].type, rcnn["rpn.scales"].default) == (
        "mapping or null",
        "list of float",
        "[8]",
    )
    assert rcnn["training_proposals"].default == "{per_level: 2000, per_image: 1000, iou_threshold: 0.7}"
    assert rcnn["rpn.proposals.per_level"].default == "required"
    assert cascade["stages[].stds"].type == "[float, float, float, float]"
    assert of("upernet")["prior"].type == "list of float or null"
    assert of("atss")["kernel"].default == "3"


@pytest.mark.parametrize("method", ["mask_rcnn", "cascade_mask_rcnn"])
def test_defaults_of_proposals_are_those_that_the_detector_sets(method: str) -> None:
    rows = of(method)
    with torch.device("meta"):
        detector = create_detector(method, "smt_tiny", num_classes=2)
    assert isinstance(detector, TwoStage)
    rpn = detector.rpn
    assert rows["rpn.beta"].default == f"{rpn.beta:.4g}"
    assert rows["rpn.whole_anchors"].default == str(rpn.whole_anchors).lower()
    assert rows["rpn.proposals"].default == in_yaml(asdict(rpn.proposals))
    assert rows["training_proposals"].default == in_yaml(asdict(rpn.training_proposals))


def test_a_reference_leads_to_the_meaning() -> None:
    assert of("atss")["per_image"].meaning == of("retinanet")["per_image"].meaning
    assert of("cascade_mask_rcnn")[
        "finest_scale"
    ].meaning == "Side in pixels; boxes of less than twice this side are read " + ("from the first map.")
    assert "null: that of `heads`" in of("cascade_mask_rcnn")["box_loss"].meaning


def undescribed(backbone: object, num_classes: int, *, width: int = 3, depth: int = 2) -> None:
    """Nothing.

    Args:
        width: number of channels of
            the neck.

    Raises:
        depth: which is no argument here.
    """


def test_an_argument_without_meaning_is_an_error() -> None:
    assert meaning_of(undescribed, "width") == "Number of channels of the neck."
    with pytest.raises(AssertionError, match="undescribed lacks depth in its Args"):
        meaning_of(undescribed, "depth")


def test_a_dot_of_a_name_leads_into_a_mapping() -> None:
    changes = ["method_args.rpn.scales=[4]", "method_args.regions=64"]
    recipe = resolve("mask_rcnn_swin_small_coco_3x_ms", changes).recipe
    assert isinstance(recipe, Detection)
    assert recipe.method_args["rpn"] == {"scales": [4]}
    assert recipe.method_args["regions"] == 64
