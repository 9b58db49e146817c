"""A user's method that fails, or returns the wrong thing, is answered with one sentence, by a dry run too."""

from pathlib import Path
from typing import Any

import pytest
import torch

import fourstage
from fourstage import methods
from fourstage.cli import main
from fourstage.data.embedded.digit_scenes import write_digit_scenes
from fourstage.data.sample import Batch
from fourstage.tasks.detection.task import Detection

HEAD = """
import torch
from torch import nn

import fourstage
from fourstage.tasks.detection.detector import Detector
from fourstage.tasks.parts.fpn import FPN
from fourstage.tasks.parts.levels import levels_of
from fourstage.tasks.segmentation.segmentor import Segmentor


class Base(Detector):
    def __init__(self, backbone, num_classes):
        super().__init__(backbone, FPN(levels_of(backbone), 8, num_outs=4), num_classes)
        self.layer = nn.Conv2d(8, 1, 1)

    def losses(self, batch, seed=None):
        loss = self.layer(self.maps(batch)[0]).mean()
        return {losses}

    def detect(self, batch, *, rescale=True):
        return {detections}


class Decoder(nn.Module):
    def forward(self, maps):
        return {logits}


@fourstage.register_detector
def own(backbone, num_classes):
    return {detector}


@fourstage.register_segmentor
def own_segmentor(backbone, num_classes):
    return Segmentor(backbone, Decoder(), num_classes)
"""
GOOD = {"losses": '{"loss": loss}', "detections": "[]", "logits": "maps[0]", "detector": "Base(backbone, num_classes)"}
SMALL = [
    "batch_size=2",
    "length=3it",
    "warmup=0it",
    "workers=0",
    "augmentation.scale=[64,64]",
    "evaluation.scale=[64,64]",
]


@pytest.fixture(autouse=True)
def _own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget after each test what its files register."""
    monkeypatch.setattr(methods, "_registered", dict(methods._registered))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "scenes"
    write_digit_scenes(root, train=4, val=2, size=64)
    return root


def write(folder: Path, **changed: str) -> Path:
    text = HEAD
    for name, code in {**GOOD, **changed}.items():
        text = text.replace(f"{{{name}}}", code)
    (folder / "own.py").write_text(text)
    return folder / "own.py"


def dry_run(folder: Path, scenes: Path, task: str, method: str, *more: str) -> int:
    recipe = folder / "own.yaml"
    recipe.write_text(f"base: _digit_scenes_{task}\nimports: own.py\nmethod: {method}\nmethod_args: {{}}\n")
    words = ["train", str(recipe), "--data", str(scenes), "--out", str(folder / "run"), "--dry-run"]
    return main([*words, *SMALL, *more])


def test_a_dry_run_computes_the_losses_of_a_good_detector(scenes: Path, tmp_path: Path) -> None:
    write(tmp_path)
    assert dry_run(tmp_path, scenes, "detection", "own") == 0


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"detector": "3"}, "own returned a int; a detector is a fourstage.tasks.detection.detector.Detector"),
        ({"detector": "None"}, "own returned None; a detector is"),
        ({"detector": "nn.Sequential(backbone)"}, "own returned a Sequential; a detector is"),
        ({"detector": "{}['boom']"}, "own failed while it was built (KeyError: 'boom', at"),
        ({"detector": "backbone.nonsense"}, "own failed while it was built (AttributeError:"),
        ({"losses": "[loss]"}, "Base.losses returned a list; return a dict from names to scalar tensors"),
        ({"losses": "{}"}, "Base.losses returned no losses; return a dict"),
        ({"losses": "{'loss': loss[None]}"}, "Base.losses returned a tensor of shape (1,) as 'loss'; return a dict"),
        ({"losses": "loss.nonsense"}, "own failed on a batch of the training data (AttributeError:"),
    ],
)
def test_a_dry_run_names_what_a_detector_does_wrong(
    changed: dict[str, str], sentence: str, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path, **changed)
    assert dry_run(tmp_path, scenes, "detection", "own") == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert sentence in line
    if "Error:" in sentence:  # where the user's code is, not where torch raised
        assert f"{file}, line " in line


def test_a_dry_run_says_what_a_norm_of_an_own_detector_needs(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pooled = "nn.functional.adaptive_avg_pool2d(self.maps(batch)[0], 1)"
    write(tmp_path, losses=f'{{"loss": nn.BatchNorm2d(8)({pooled}).mean() + loss}}')
    assert dry_run(tmp_path, scenes, "detection", "own", "batch_size=1") == 2
    assert "in each batch norm; train with two images or more at a time" in " ".join(capsys.readouterr().err.split())


def test_a_dry_run_names_what_a_decoder_does_wrong(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, logits="maps")
    assert dry_run(tmp_path, scenes, "segmentation", "own_segmentor") == 2
    assert "Decoder returned a list; a decoder of 11 classes returns logits" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("detections", "sentence"),
    [
        ("3", "Base.detect returned a int; return a list of Detections"),
        ("[[1, 2]] * len(batch)", "Base.detect returned a list with a list for 2 images; return one Detections"),
        ("[]", "Base.detect returned 0 items for 2 images"),
    ],
)
def test_detections_are_checked(detections: str, sentence: str, tmp_path: Path) -> None:
    namespace: dict[str, Any] = {"__name__": "own_method"}
    exec(write(tmp_path, detections=detections).read_text(), namespace)
    network: Any = fourstage.create_detector("own", "visformer_digits", 3)
    batch = Batch(("a", "b"), torch.zeros(2, 3, 64, 64), ((64, 64),) * 2, ((64, 64),) * 2)
    with pytest.raises(ValueError, match=sentence):
        Detection(network, ("a", "b", "c")).predict(batch)
