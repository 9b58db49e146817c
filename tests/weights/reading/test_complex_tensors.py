"""Complex numbers are refused, where torch drops their imaginary part with a warning."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import fourstage
from fourstage.cli import main
from fourstage.weights.complete_checkpoints import fill_completely
from fourstage.weights.reading.safe import read_checkpoint

WORDS = r"has complex numbers in head\.weight, where .*; save the tensor as real numbers"


def complex_state() -> dict[str, Tensor]:
    state = fourstage.create_model("visformer_digits").state_dict()
    return {**state, "head.weight": state["head.weight"].to(torch.complex64)}


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_files_with_complex_tensors_are_refused(
    ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"a.{ending}"
    save_file(complex_state(), path) if ending == "safetensors" else torch.save({"model": complex_state()}, path)
    with pytest.raises(ValueError, match=WORDS):
        fourstage.load_checkpoint(fourstage.create_model("visformer_digits"), path)
    with pytest.raises(ValueError, match=WORDS):
        fourstage.create_model("visformer_digits", checkpoint_path=path)
    out = tmp_path / "out.safetensors"
    assert main(["convert", str(path), "--model", "visformer_digits", "--out", str(out)]) == 2
    assert "has complex numbers" in capsys.readouterr().err
    assert not out.exists()


def test_detectors_too(tmp_path: Path) -> None:
    network: Any = fourstage.create_segmentor("semantic_fpn", "visformer_digits", 3, channels=16)
    state = network.state_dict()
    weights = [key for key, value in state.items() if value.is_floating_point()]
    for key in (weights[0], weights[-1]):  # of the backbone and of the head
        torch.save({"state_dict": {**state, key: state[key].to(torch.complex64)}}, tmp_path / "a.pth")
        with pytest.raises(ValueError, match="has complex numbers in "):
            fill_completely(network, read_checkpoint(tmp_path / "a.pth"))
