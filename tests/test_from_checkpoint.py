"""`fourstage.from_checkpoint`: networks from files that describe themselves, and what is refused with one sentence."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from run.test_predict_dense import (
    CLASSES,
    DETECTORS,
    PROPOSING,
    RETINA,
    SEGMENTORS,
    SELECTING,
    alive,
    checkpoint,
    detector,
    mini,
)
from safetensors.torch import load_file, save_file
from torch import nn
from weights.openmmlab import configs

import fourstage
from fourstage.data.class_names import COCO
from fourstage.engine.state import save_state
from fourstage.recipe import resolve
from fourstage.run.convert import convert
from fourstage.run.task_protocol import protocol_of
from fourstage.tasks.detection.single_stage import CandidateLimits

__all__ = ["mini"]  # a fixture, used by every test here
SMALL = ["method_args={channels: 16, fc_channels: 32, mask_channels: 16}"]
RUNS = {  # a recipe, changes that make it small, classes, what its data is like
    "digits_visformer": ([], "abcde", {}),
    "digit_scenes_mask_rcnn": (SMALL, "abc", {"masks": True}),
    "digit_scenes_upernet": (["method_args={channels: 16, auxiliary_channels: 16}"], "abcd", {}),
}


def same(network: nn.Module, state: dict[str, torch.Tensor]) -> bool:
    mine = network.state_dict()
    return mine.keys() == state.keys() and all(torch.equal(value, mine[key]) for key, value in state.items())


def segmentor(name: str) -> Any:
    torch.manual_seed(0)
    return alive(fourstage.create_segmentor(name, "swin_mini", len(CLASSES), **SEGMENTORS[name][0]))


def run_checkpoint(path: Path, name: str = "digits_visformer", **changed: Any) -> tuple[Path, Any]:
    """A checkpoint of a run as the training writes it, and its task."""
    changes, classes, about = RUNS[name]
    recipe = resolve(name, changes).recipe
    about = changed.pop("about", about)
    task = protocol_of(recipe).build_task(tuple(classes), about)
    values = {**recipe.model_dump(mode="json"), **changed}
    average = {key: value + 1 if value.is_floating_point() else value for key, value in task.state_dict().items()}
    states = {"model": task.state_dict(), "ema": average}
    save_state(path, {"fourstage": 1, "recipe": values, "classes": list(classes), "about": about, **states})
    return path, task


# ------------------------------------------------------------------------------------------ OpenMMLab's, by their text


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_of_mmdetection(name: str, tmp_path: Path) -> None:
    method, arguments, config = DETECTORS[name]
    file = checkpoint(tmp_path / "m.pth", method, detector(name), config, new=name == "cascade")
    by_hand = fourstage.create_detector(method, "swin_mini", len(CLASSES), checkpoint_path=file, **arguments)
    network: Any = fourstage.from_checkpoint(file)
    assert (network.method, network.num_classes, network.training) == (method, len(CLASSES), False)
    assert network.class_names == CLASSES
    assert same(network, by_hand.state_dict())
    if method in ("retinanet", "atss"):
        assert network.limits == CandidateLimits(**RETINA)
    elif method == "sparse_rcnn":
        assert network.per_image == 7
    else:
        assert (network.rpn.proposals, network.limits) == (PROPOSING, SELECTING)


@pytest.mark.parametrize("name", SEGMENTORS)
def test_a_segmentor_of_mmsegmentation(name: str, tmp_path: Path) -> None:
    arguments, config, _ = SEGMENTORS[name]
    file = checkpoint(tmp_path / "m.pth", name, segmentor(name), config, new=name == "upernet")
    by_hand = fourstage.create_segmentor(name, "swin_mini", len(CLASSES), checkpoint_path=file, **arguments)
    network: Any = fourstage.from_checkpoint(str(file))
    assert (network.method, network.class_names, network.training) == (name, CLASSES, False)
    assert same(network, by_hand.state_dict())


def test_names_of_classes_come_from_their_number_where_the_file_has_none(tmp_path: Path) -> None:
    model = {**configs.retinanet()}
    for count, names in ((80, COCO), (7, tuple(f"class {i}" for i in range(7)))):
        model["bbox_head"] = {**model["bbox_head"], "num_classes": count}
        network = fourstage.create_detector("retinanet", "swin_mini", count, channels=16, convs=2)
        meta = {"cfg": configs.written(configs.of_mmengine(model))}
        torch.save({"meta": meta, "state_dict": network.state_dict()}, tmp_path / "m.pth")
        found: Any = fourstage.from_checkpoint(tmp_path / "m.pth")
        assert found.class_names == names


# ---------------------------------------------------------------------------------------------- ours, by their recipe


@pytest.mark.parametrize("name", RUNS)
def test_a_checkpoint_of_a_run(name: str, tmp_path: Path) -> None:
    path, task = run_checkpoint(tmp_path / "best.pt", name)
    network: Any = fourstage.from_checkpoint(path)
    assert same(network, task.network.state_dict())
    assert network.class_names == tuple(RUNS[name][1])
    assert network.num_classes == len(network.class_names)
    assert not network.training
    average: Any = fourstage.from_checkpoint(path, which="ema")
    key = next(key for key, value in network.state_dict().items() if value.is_floating_point())
    assert torch.equal(average.state_dict()[key], network.state_dict()[key] + 1)


def test_a_run_on_data_without_masks(tmp_path: Path) -> None:
    path, task = run_checkpoint(tmp_path / "best.pt", "digit_scenes_mask_rcnn", about={"masks": False})
    network: Any = fourstage.from_checkpoint(path)
    assert network.mask_head is None
    assert same(network, task.network.state_dict())


def test_no_other_file_is_read_and_nothing_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("open('MARK', 'w')")
    given = {
        "model_args": {"pretrained": True, "checkpoint_path": "nothere.pth"},
        "imports": [str(tmp_path / "mine.py")],
    }
    path, task = run_checkpoint(tmp_path / "best.pt", **given)
    assert same(fourstage.from_checkpoint(path), task.network.state_dict())
    unknown, _ = run_checkpoint(tmp_path / "own.pt", **{**given, "model": "my_backbone"})
    with pytest.raises(ValueError, match=r"own\.pt .*no model is called 'my_backbone'.*recipe imports .*mine\.py"):
        fourstage.from_checkpoint(unknown)
    assert not (tmp_path / "MARK").exists()


@pytest.mark.parametrize("dense", [False, True])
def test_a_converted_file(dense: bool, tmp_path: Path) -> None:
    model = (fourstage.create_backbone if dense else fourstage.create_model)("visformer_digits", img_size=64)
    torch.save({"model": model.state_dict(), "classes": [f"c{i}" for i in range(10)]}, tmp_path / "m.pth")
    convert(tmp_path / "m.pth", "visformer_digits", tmp_path / "m.safetensors", dense=dense, arguments={"img_size": 64})
    network: Any = fourstage.from_checkpoint(tmp_path / "m.safetensors")
    assert same(network, model.state_dict())
    assert network.default_cfg["input_size"] == (3, 64, 64)
    assert not network.training
    assert network.class_names == (() if dense else tuple(f"c{i}" for i in range(10)))


# ----------------------------------------------------------------------------------------------------------- mistakes


def converted(folder: Path, changed: dict[str, str | None]) -> Path:
    """Return a converted file whose metadata is changed; None removes an entry."""
    torch.save({"model": fourstage.create_model("visformer_digits").state_dict()}, folder / "m.pth")
    entries = {**convert(folder / "m.pth", "visformer_digits", folder / "c.safetensors").metadata, **changed}
    tensors = load_file(folder / "c.safetensors")
    save_file(tensors, folder / "c.safetensors", {key: value for key, value in entries.items() if value is not None})
    return folder / "c.safetensors"


def bare(path: Path, network: nn.Module) -> Path:
    torch.save({"state_dict": network.state_dict()}, path)
    return path


@pytest.mark.parametrize(
    ("network", "call"),
    [
        (
            lambda: fourstage.create_model("visformer_digits"),
            r"visformer_digits: type create_model\('visformer_digits', checkpoint_path='.*m.pth'",
        ),
        (
            lambda: fourstage.create_detector("mask_rcnn", "visformer_digits", 3, channels=16),
            r"visformer_digits: type create_detector\('mask_rcnn', 'visformer_digits', 3, checkpoint_path=",
        ),
        (
            lambda: fourstage.create_segmentor("upernet", "visformer_digits", 4, channels=16),
            r"create_segmentor\('upernet', 'visformer_digits', 4, checkpoint_path=",
        ),
        (lambda: nn.Linear(1, 1), r"build it by name, as list_models\(\) has it, and give checkpoint_path="),
    ],
)
def test_a_file_that_does_not_describe_itself(network: Callable[[], nn.Module], call: str, tmp_path: Path) -> None:
    path = bare(tmp_path / "m.pth", network())
    with pytest.raises(ValueError, match=rf"m\.pth does not say which network it is for; .*{call}"):
        fourstage.from_checkpoint(path)


def test_a_file_without_heads(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "m.pth", "mask_rcnn", detector("mask_rcnn"), configs.mask_rcnn())
    content = torch.load(path)
    content["state_dict"] = {k: v for k, v in content["state_dict"].items() if k.startswith("backbone.")}
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"m\.pth holds a backbone without the heads of a mask_rcnn"):
        fourstage.from_checkpoint(path)


def test_sizes_that_no_machine_has(tmp_path: Path) -> None:
    config = configs.mask_rcnn()
    config["neck"] = {**config["neck"], "out_channels": 10**12}
    path = checkpoint(tmp_path / "m.pth", "mask_rcnn", detector("mask_rcnn"), config)
    with pytest.raises(ValueError, match=r"m\.pth describes a network that cannot be built here"):
        fourstage.from_checkpoint(path)


def test_a_configuration_that_is_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = "model = dict(type='MaskRCNN')\nx = __import__('os').system('touch MARK')\n"
    torch.save({"meta": {"config": text}, "state_dict": {"a": torch.zeros(1)}}, tmp_path / "m.pth")
    with pytest.raises(ValueError, match="'__import__' in line 2"):
        fourstage.from_checkpoint("m.pth")
    assert not (tmp_path / "MARK").exists()


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"task": "poetry"}, "recipe.task is 'poetry'"),
        ({"task": None}, "recipe.task is None"),
        ({"model": 5}, "recipe.model is 5"),
        ({"model_args": [1]}, r"recipe.model_args is \[1\]"),
        ({"model_args": {1: 2}}, r"recipe.model_args is \{1: 2\}"),
        ({"model_args": {"depht": 2}}, "cannot be built here .*no argument depht"),
        ({"task": "detection"}, "recipe.backbone is None"),
        ({"imports": 3}, "recipe.imports is 3"),
    ],
)
def test_a_recipe_that_is_damaged(changed: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    path, _ = run_checkpoint(tmp_path / "best.pt", **changed)
    with pytest.raises(ValueError, match=rf"best\.pt .*{sentence}"):
        fourstage.from_checkpoint(path)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"model": ""}, "model is ''"),
        ({"form": "sparse"}, "form is 'sparse'"),
        ({"form": None}, "form is None"),
        ({"arguments": "[1]"}, r"arguments is \[1\]"),
        ({"arguments": "{"}, "arguments: "),
        ({"arguments": "[" * 10**5}, "arguments: .*recursion"),
        ({"fourstage_format": "[" * 10**5}, "fourstage_format: .*recursion"),
        ({"arguments": "{}"}, "arguments.num_classes is None"),
        ({"arguments": '{"num_classes": 0}'}, "arguments.num_classes is 0"),
        ({"arguments": '{"num_classes": -3}'}, "arguments.num_classes is -3"),
        ({"arguments": '{"num_classes": true}'}, "arguments.num_classes is True"),
        ({"arguments": '{"num_classes": "10"}'}, "arguments.num_classes is '10'"),
        ({"classes": '["a", "b"]'}, "classes has 2 names, and arguments.num_classes is 10"),
        ({"classes": "[]"}, "classes has 0 names, and arguments.num_classes is 10"),
        ({"classes": "[1]"}, "classes is not a list of names"),
        ({"classes": "[" * 10**5}, "classes is not a list of names"),
    ],
)
def test_converted_files_with_damaged_metadata(changed: dict[str, str | None], sentence: str, tmp_path: Path) -> None:
    path = converted(tmp_path, changed)
    with pytest.raises(
        ValueError, match=rf"^the metadata of .*c\.safetensors is damaged \({sentence}.*convert its"
    ) as error:
        fourstage.from_checkpoint(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"depht": 2}, "no argument depht"),
        ({"img_size": "large"}, ""),
        ({"img_size": -5}, ""),
        ({"num_classes": 10**12}, ""),
        ({"num_classes": 10**30}, ""),
        ({"drop_path_rate": "x"}, ""),
        ({"drop_path_rate": []}, ""),
        ({"in_chans": {}}, ""),
    ],
)
def test_converted_files_with_impossible_arguments(arguments: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    path = converted(tmp_path, {"arguments": json.dumps({"num_classes": 10, **arguments})})
    with pytest.raises(
        ValueError, match=rf"c\.safetensors describes a network that cannot be built here \(.*{sentence}"
    ):
        fourstage.from_checkpoint(path)


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file nothere\.pth"):
        fourstage.from_checkpoint("nothere.pth")
    with pytest.raises(ValueError, match="is a folder, not a file"):
        fourstage.from_checkpoint(Path(__file__).parent)


# ------------------------------------------------------------------------------------------------------ the old name


def test_create_detector_and_create_segmentor_still_take_a_file(tmp_path: Path) -> None:
    file = checkpoint(tmp_path / "m.pth", "mask_rcnn", detector("mask_rcnn"), configs.mask_rcnn())
    warning = r"create_detector\(file\) is deprecated; type fourstage\.from_checkpoint\('.*m\.pth'\)"
    with pytest.warns(DeprecationWarning, match=warning) as warned:
        old = fourstage.create_detector(file)
    assert warned[0].filename == __file__
    assert same(old, fourstage.from_checkpoint(file).state_dict())
    with pytest.raises(ValueError, match="give no other argument, or name the method"):
        fourstage.create_detector(file, "swin_tiny")
    with pytest.raises(ValueError, match="contains a detector, not a segmentor"):
        fourstage.create_segmentor(str(file))
    pixels = checkpoint(tmp_path / "s.pth", "upernet", segmentor("upernet"), SEGMENTORS["upernet"][1])
    with pytest.warns(DeprecationWarning, match=r"create_segmentor\(file\) is deprecated"):
        assert fourstage.create_segmentor(pixels).method == "upernet"
    with pytest.raises(ValueError, match="contains a segmentor, not a detector"):
        fourstage.create_detector(pixels)
