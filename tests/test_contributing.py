"""Each section of CONTRIBUTING.md is followed to the letter: its files train for three steps from its recipe."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from run.runs import logged
from torch import Tensor

import fourstage
from fourstage import registry
from fourstage.backbones.base import Classifier, Dense
from fourstage.cli import main
from fourstage.data import formats
from fourstage.data.formats import open_dataset

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
THREE_STEPS = ("length=3it", "batch_size=4", "warmup=0it", "workers=0", "evaluate_every=3it")


def section(title: str) -> str:
    """Return the text below a heading of the second level."""
    [text] = re.findall(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    return text


def write_files(title: str, folder: Path) -> None:
    """Write the code blocks of a section. The comment in a block's first line is the file's name."""
    for block in re.findall(r"```(?:python|yaml)\n(.*?)```", section(title), re.DOTALL):
        (folder / block.splitlines()[0].removeprefix("# ")).write_text(block)


def train_three_steps(recipe: Path, *settings: str) -> list[dict[str, Any]]:
    """Return the log's lines of the training steps."""
    out = recipe.parent / "run"
    assert main(["train", str(recipe), "--out", str(out), *THREE_STEPS, *settings]) == 0
    steps = logged(out, "train")
    assert steps[-1]["step"] == 3
    return steps


@pytest.fixture(autouse=True)
def _own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget after each test what its files register."""
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    monkeypatch.setattr(registry, "_mixers", dict(registry._mixers))
    monkeypatch.setattr(formats, "_registered", dict(formats._registered))


@pytest.mark.parametrize("title", ["A family of backbones", "A token mixer"])
def test_the_paths_that_a_section_names_exist(title: str) -> None:
    text = section(title)
    names = set(re.findall(r"`((?:fourstage|tests|docs)/[\w/.-]+)`", text)) | set(re.findall(r"\]\(([^)#:]+)\)", text))
    assert names
    assert not [name for name in sorted(names) if not (ROOT / name).exists()]


def test_a_family_of_backbones(tmp_path: Path) -> None:
    write_files("A family of backbones", tmp_path)
    train_three_steps(tmp_path / "mine.yaml")
    network, backbone = fourstage.create_model("pool_tiny", num_classes=7), fourstage.create_backbone("pool_micro")
    assert isinstance(network, Classifier)
    assert isinstance(backbone, Dense)
    assert network(torch.randn(2, 3, 70, 64)).shape == (2, 7)
    maps: list[Tensor] = backbone(torch.randn(2, 3, 70, 64))
    cells = backbone.family.cells
    assert [x.shape for x in maps] == [
        (2, x.channels, cells(70, x.stride), cells(64, x.stride)) for x in backbone.levels
    ]


def test_a_token_mixer(tmp_path: Path) -> None:
    write_files("A token mixer", tmp_path)
    train_three_steps(tmp_path / "mine.yaml")
    backbone = fourstage.create_backbone("unified_pvt_micro", mixer="ShiftMixer").eval()
    maps: list[Tensor] = backbone(torch.randn(1, 3, 45, 64))
    assert [x.shape[1:] for x in maps] == [(32, 12, 16), (64, 6, 8), (160, 3, 4), (256, 2, 2)]


def test_a_data_format(tmp_path: Path) -> None:
    write_files("A data format", tmp_path)
    folder, rng = tmp_path / "my_pictures", np.random.default_rng(0)
    folder.mkdir()
    rows = ["file,class,split"]
    for i in range(16):
        Image.fromarray(rng.integers(0, 256, (40, 36, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        rows.append(f"{i}.png,{'cat' if i % 2 else 'dog'},{'train' if i < 10 else 'val'}")
    (folder / "pictures.csv").write_text("\n".join(rows))
    train_three_steps(tmp_path / "mine.yaml")
    dataset = open_dataset(folder, "val")
    assert (type(dataset).__name__, dataset.classes, len(dataset)) == ("PictureTable", ("cat", "dog"), 6)
