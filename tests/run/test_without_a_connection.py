"""Published weights that cannot be fetched: each command says what it takes instead."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fourstage.cli import main
from fourstage.weights.reading import download

PREDICT = "type --weights smt_tiny.pth behind smt_tiny.in1k, as in fourstage predict smt_tiny.in1k IMAGE --weights"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("verify smt_tiny.in1k", "then type fourstage verify smt_tiny.pth"),
        ("verify swin_tiny.mask_rcnn_coco_1x", "then type fourstage verify "),
        ("predict smt_tiny.in1k photo.png", PREDICT),
        ("predict smt_tiny photo.png", PREDICT),
        ("export smt_tiny --out x.onnx", PREDICT),
        ("analyze erf smt_tiny --pretrained --data .", "then type smt_tiny=smt_tiny.pth in place of its name"),
        ("evaluate smt_tiny_in1k --weights pretrained --data .", "then type --weights smt_tiny.pth"),
    ],
)
def test_what_a_command_takes_instead(
    command: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(address: str, *_: Any, **__: Any) -> None:
        raise download.FailedError(f"the file could not be fetched from {address} (no connection)")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(download, "download", fail)
    for name in ("photo.png", "train/a/1.png", "val/a/1.png", "train/b/2.png", "val/b/2.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / name)
    assert main(command.split()) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert words in line
    assert "create_model" not in line
