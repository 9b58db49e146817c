"""The description that an exported file carries: what is written is read again, and what is wrong is one sentence."""

import json
from dataclasses import replace
from typing import Any

import pytest

from fourstage.exported.description import (
    FORMAT,
    Description,
    Input,
    KeepRatio,
    MiddleCrop,
    Suppression,
    Views,
)

CLASSIFIER = Description(
    task="classification",
    kind="logits",
    outputs=("logits",),
    classes=("cat", "dög"),
    input=Input("images", batch=None, height=224, width=224),
    network="swin_tiny",
    resize=MiddleCrop(224, crop_pct=0.9),
    licence="MIT",
    recipe="swin_tiny_in1k",
    recipe_hash="0" * 64,
    versions={"torch": "2.15.0"},
)
DETECTOR = Description(
    task="detection",
    kind="detections",
    outputs=("boxes", "scores", "labels"),
    classes=("cat", "dog"),
    input=Input("images", divisor=32),
    network="retinanet over swin_tiny",
    resize=KeepRatio((1333, 800)),
    suppression=Suppression(threshold=0.05, iou=0.5),
    method="retinanet",
    category_ids=(3, 7),
)
SEGMENTOR = Description(
    task="segmentation",
    kind="logits",
    outputs=("logits",),
    classes=("cat", "dog"),
    input=Input("images", smallest=32),
    network="upernet over swin_tiny",
    resize=Views((2048, 512), window=(512, 512), stride=(341, 341)),
    method="upernet",
    palette=((0, 0, 0), (255, 1, 2)),
)
BACKBONE = Description(
    task="backbone",
    kind="maps",
    outputs=("map_0", "map_1"),
    classes=(),
    input=Input("images", "float16", normalised=False),
    network="swin_tiny",
    strides=(4, 8),
)


@pytest.mark.parametrize("one", [CLASSIFIER, DETECTOR, SEGMENTOR, BACKBONE], ids=lambda one: one.task)
def test_what_is_written_is_read_again(one: Description) -> None:
    text = one.to_json()
    assert text.isascii()
    assert Description.from_json(text, "x.onnx") == one
    assert Description.from_json(text.encode(), "x.onnx") == one


def refused(values: object, where: str = "x.onnx") -> str:
    text = values if isinstance(values, str) else json.dumps(values)
    with pytest.raises(ValueError, match=r"x\.onnx") as caught:
        Description.from_json(text, where)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    return message


def changed(one: Description = CLASSIFIER, **values: Any) -> dict[str, Any]:
    return {**json.loads(one.to_json()), **values}


def test_a_newer_format_is_said_to_be_newer_whatever_else_it_holds() -> None:
    assert "install a newer version" in refused({"format": FORMAT + 1, "unheard": [1]})


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ("{", "is not JSON"),
        ("[]", "no format"),
        ({}, "no format"),
        ({"format": True}, "no format"),
        ({"format": -1}, "no format"),
        ("[" * 100_000, "nested too deeply"),
        ('{"format": 1, "task": ' + "9" * 5000 + "}", "is not JSON"),
        (changed(unheard=1), "unheard is unknown"),
        ({key: value for key, value in changed().items() if key != "classes"}, "classes is missing"),
        (changed(task="tracking"), "task is 'tracking'"),
        (changed(kind="label_map"), "kind is 'label_map' for classification"),
        (changed(classes="cat"), "classes is not a list"),
        (changed(classes=[]), "classes are 0"),
        (changed(classes=["cat", 2]), "classes is 2"),
        (changed(outputs=["boxes"]), "outputs lack 'logits'"),
        (changed(input={**changed()["input"], "height": 0}), "input.height is 0"),
        (changed(input={**changed()["input"], "height": 2.5}), "input.height is 2.5"),
        (changed(input={**changed()["input"], "mean": [0.5, 0.5]}), "input.mean has 2 values"),
        (changed(input={**changed()["input"], "std": [0.1, 0.1, 0.0]}), "above 0"),
        (changed(input={**changed()["input"], "std": [0.1, 0.1, float("nan")]}), "finite"),
        (changed(resize={**changed()["resize"], "crop_pct": 0}), "crop_pct"),
        (changed(resize={**changed()["resize"], "rule": "stretch"}), "'stretch'"),
        (changed(resize=None), "no rule"),
        (changed(suppression={}), "suppression"),
        (changed(DETECTOR, suppression=None), "suppression"),
        (changed(DETECTOR, suppression={"iou": 2}), "iou"),
        (changed(DETECTOR, suppression={"most": 10**30}), "most"),
        (changed(DETECTOR, category_ids=[1]), "category_ids has 1"),
        (changed(SEGMENTOR, palette=[[0, 0, 0], [0, 0, 256]]), "palette"),
        (changed(versions={"torch": 2}), "versions"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 40 else "values",
)
def test_what_is_wrong_is_one_sentence(values: object, part: str) -> None:
    assert part in refused(values)


def test_a_huge_text_is_not_read() -> None:
    assert "at most" in refused('{"format": 1, "classes": ["' + "a" * 17_000_000 + '"]}')
    assert "values" in refused('{"format": 1, "classes": [' + "1," * 1_100_000 + "1]}")


def test_a_writer_cannot_describe_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="outputs lack 'scores'"):
        replace(DETECTOR, outputs=("boxes",))
