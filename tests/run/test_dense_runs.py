"""Detection and segmentation from the command line: train, stop, continue, evaluate, predict, and what goes wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from run.runs import losses, refused, stop_before

from fourstage.cli import main
from fourstage.data.embedded.digit_scenes import write_digit_scenes
from fourstage.engine.state import load_state

SHORT = ["length=6it", "batch_size=4", "warmup=0it", "workers=0", "log_every=1", "evaluate_every=6it", "ema=0.9"]
SMALL = {
    "digit_scenes_dino": [
        "method_args={queries: 99, channels: 8, encoder_layers: 1, decoder_layers: 1, heads: 2, hidden: 8}"
    ],
    "digit_scenes_upernet": ["method_args={channels: 16, auxiliary_channels: 16}", "augmentation.crop=[64,64]"],
    "digit_scenes_semantic_fpn": ["method_args={neck_channels: 16, channels: 16}", "augmentation.crop=[64,64]"],
    "digit_scenes_retinanet": ["method_args={channels: 16}"],
    "digit_scenes_atss": ["method_args={channels: 64, convs: 1}"],
    "digit_scenes_sparse_rcnn": ["method_args={proposals: 9, stages: 2, channels: 16, hidden: 32, filter_channels: 8}"],
    "digit_scenes_mask_rcnn": ["method_args={channels: 16, fc_channels: 32, mask_channels: 16, regions: 16}"],
    "digit_scenes_cascade_mask_rcnn": ["method_args={channels: 16, fc_channels: 32, mask_channels: 16, regions: 16}"],
}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scenes") / "data"
    write_digit_scenes(root, train=16, val=6, size=64)
    return root


def words(recipe: str, data: Path, out: Path, *more: str) -> list[str]:
    size = (
        []
        if "upernet" in recipe or "semantic" in recipe
        else ["augmentation.scale=[64,64]", "evaluation.scale=[64,64]"]
    )
    return ["train", recipe, "--data", str(data), "--out", str(out), *SHORT, *SMALL[recipe], *size, *more]


@pytest.mark.parametrize("recipe", SMALL)
def test_a_dense_run_from_end_to_end(
    recipe: str, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that was stopped ends with the same bits; its checkpoint gives the same numbers, and pictures."""
    assert main(words(recipe, scenes, tmp_path / "whole")) == 0, capsys.readouterr().err
    with monkeypatch.context() as patch:
        stop_before(3, patch)
        main(words(recipe, scenes, tmp_path / "parts"))
    assert len(losses(tmp_path / "parts")) < 6
    assert main(words(recipe, scenes, tmp_path / "parts")) == 0
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    whole, parts = (load_state(tmp_path / name / "checkpoints" / "last.pt") for name in ("whole", "parts"))
    assert all(torch.equal(value, parts["ema"][key]) for key, value in whole["ema"].items())
    report = (tmp_path / "whole" / "report.html").read_text()
    assert report.count("data:image/") >= 6
    capsys.readouterr()

    evaluation = json.loads((tmp_path / "whole" / "evaluation.json").read_text())
    assert main(["evaluate", str(tmp_path / "whole"), "--csv", str(tmp_path / "a.csv"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["metrics"]
    assert {name: found[name] for name in evaluation["metrics"]} == pytest.approx(evaluation["metrics"])
    lines = (tmp_path / "a.csv").read_text().splitlines()
    assert lines[0].startswith(("class,count,", "class,pixels,"))
    assert len(lines) == 1 + len(evaluation["classes"])

    images = [str(path) for path in sorted((scenes / "val").iterdir())[:2]]
    assert main(["predict", str(tmp_path / "whole"), *images, "--out", str(tmp_path / "p"), "--json"]) == 0
    predicted = json.loads(capsys.readouterr().out)
    assert [Path(one["image"]).name for one in predicted] == [Path(image).name for image in images]
    assert all(Path(one["picture"]).is_file() for one in predicted)
    if "label" in str(list((tmp_path / "p").iterdir())):
        with Image.open(Path(predicted[0]["picture"]).with_name("000000_labels.png")) as labels:
            assert (labels.mode, labels.size) == ("P", (64, 64))
            shares = {one["class"]: one["share"] for one in predicted[0]["classes"]}
            assert sum(shares.values()) == pytest.approx(1)
            assert len(np.unique(np.asarray(labels))) == len(shares)


@pytest.mark.parametrize("recipe", ["digit_scenes_mask_rcnn", "digit_scenes_upernet"])
def test_loader_processes_change_no_bit(
    recipe: str, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also not in a run that was stopped and goes on with another number of them."""
    assert main(words(recipe, scenes, tmp_path / "none")) == 0, capsys.readouterr().err
    with monkeypatch.context() as patch:
        stop_before(3, patch)
        main(words(recipe, scenes, tmp_path / "one", "workers=1"))
    assert 0 < len(losses(tmp_path / "one")) < 6
    assert main(words(recipe, scenes, tmp_path / "one", "workers=1")) == 0
    assert losses(tmp_path / "one") == losses(tmp_path / "none")
    none, one = (load_state(tmp_path / name / "checkpoints" / "last.pt") for name in ("none", "one"))
    assert all(torch.equal(value, one["model"][key]) for key, value in none["model"].items())


def test_a_detector_starts_from_the_classifier(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classifier = ["train", "digits_visformer", "--out", str(tmp_path / "c"), *SHORT, "length=2it", "evaluate_every=2it"]
    assert main(classifier) == 0
    capsys.readouterr()
    start = f"weights={tmp_path / 'c' / 'checkpoints' / 'best.pt'}"
    for recipe in ("digit_scenes_retinanet", "digit_scenes_upernet"):
        assert main([*words(recipe, scenes, tmp_path / recipe, start), "--dry-run"]) == 0
        assert "starting from best.pt" in capsys.readouterr().out


def not_coco(root: Path) -> tuple[str, ...]:
    (root / "annotations" / "instances_train.json").write_text('{"a": 1}')
    return "not in COCO format", "images"


@pytest.mark.parametrize("broken", [not_coco])
def test_broken_detection_data_is_named(
    broken: Callable[[Path], tuple[str, ...]], scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(scenes, tmp_path / "data")
    expected = broken(tmp_path / "data")
    refused(main(words("digit_scenes_retinanet", tmp_path / "data", tmp_path / "run")), capsys, *expected)
    assert not (tmp_path / "run").exists()


def test_data_of_another_task_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--data", "digits", "--out", str(tmp_path / "run")]
    refused(main(["train", "digit_scenes_upernet", *more]), capsys, "no label map")
    refused(main(["train", "digit_scenes_retinanet", *more]), capsys, "no boxes")


@pytest.mark.parametrize(
    ("recipe", "known", "masks"),
    [
        ("digit_scenes_mask_rcnn", "Faster R-CNN", ()),
        ("digit_scenes_cascade_mask_rcnn", "Cascade R-CNN", ()),
        ("digit_scenes_mask_rcnn", None, (1,)),  # only some have masks: what is said of them is enough
        ("digit_scenes_retinanet", None, ()),
    ],
)
def test_training_on_boxes_alone_is_reported(
    recipe: str,
    known: str | None,
    masks: tuple[int, ...],
    scenes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = tmp_path / "data"
    shutil.copytree(scenes, data)
    for path in (data / "annotations").glob("instances_*.json"):
        content = json.loads(path.read_text())
        for one in content["annotations"]:
            if one["id"] not in masks:
                del one["segmentation"]
        path.write_text(json.dumps(content))
    assert main(words(recipe, data, tmp_path / "run", "--dry-run")) == 0
    out = capsys.readouterr().out
    assert ("no object of" in out) == (known is not None)
    assert known is None or f"only boxes are trained and scored, as in {known}." in out
    assert ("no mask: the mask loss and the mask score leave them out" in out) == bool(masks)
