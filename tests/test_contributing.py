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
from fourstage import methods, registry
from fourstage.backbones.base import Classifier, Dense
from fourstage.cli import main
from fourstage.data import formats
from fourstage.data.embedded.digit_scenes import write_digit_scenes
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
    registry.list_models()  # imports all families, which register only once
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    monkeypatch.setattr(registry, "_mixers", dict(registry._mixers))
    monkeypatch.setattr(formats, "_registered", dict(formats._registered))
    monkeypatch.setattr(methods, "_registered", dict(methods._registered))


@pytest.mark.parametrize("title", ["A family of backbones", "A token mixer", "A detector", "A segmentor"])
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


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "scenes"
    write_digit_scenes(root, train=8, val=3, size=64)
    return root


def train_on_scenes(recipe: Path, scenes: Path) -> list[str]:
    """Return the names of the losses; the run has predicted an image of the validation split."""
    steps = train_three_steps(recipe, "augmentation.scale=[64,64]", "evaluation.scale=[64,64]", f"data={scenes}")
    image, out = next((scenes / "val").glob("*.jpg")), recipe.parent / "predicted"
    assert main(["predict", str(recipe.parent / "run"), str(image), "--out", str(out), "--device", "cpu"]) == 0
    assert (out / f"{image.stem}.png").is_file()
    return sorted(steps[-1]["losses"])


def test_a_detector(tmp_path: Path, scenes: Path) -> None:
    write_files("A detector", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "mine.yaml",
        "my_detector.py",
    ]  # one file and its recipe
    assert train_on_scenes(tmp_path / "mine.yaml", scenes) == ["loss_bbox", "loss_cls"]
    weights = tmp_path / "run" / "checkpoints" / "last.pt"
    network: Any = fourstage.create_detector("OneAnchor", "visformer_digits", num_classes=10, channels=32)
    assert network.method == "OneAnchor"
    report = fourstage.load_checkpoint(network, weights)
    assert (report.read, report.fresh) == (len(network.state_dict()), ())
    fewer: Any = fourstage.create_detector("OneAnchor", "visformer_digits", num_classes=3, channels=32)
    assert "head.weight" in fourstage.load_checkpoint(fewer, weights, fresh_head=True).fresh
    with pytest.raises(ValueError, match="has no argument 'chanels'; did you mean channels"):
        fourstage.create_detector("OneAnchor", "visformer_digits", num_classes=3, chanels=8)
    other: Any = fourstage.create_detector("retinanet", "visformer_digits", num_classes=10)
    torch.save(other.state_dict(), tmp_path / "other.pth")
    with pytest.raises(ValueError, match="no other names of a OneAnchor are known"):
        fourstage.load_checkpoint(network, tmp_path / "other.pth")


def test_a_segmentor(tmp_path: Path, scenes: Path) -> None:
    write_files("A segmentor", tmp_path)
    assert train_on_scenes(tmp_path / "mine.yaml", scenes) == ["loss_seg"]
    network: Any = fourstage.create_segmentor("sum_of_maps", "visformer_digits", num_classes=11, channels=32)
    report = fourstage.load_checkpoint(network, tmp_path / "run" / "checkpoints" / "last.pt")
    assert (network.method, report.fresh) == ("sum_of_maps", ())


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
