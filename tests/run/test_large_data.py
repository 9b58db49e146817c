"""Training from shards, lists and archives by the command line: what resumes, and what is refused."""

import zipfile
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from run.runs import losses, refused, run_setup, stop_before

from fourstage.cli import main
from fourstage.data.embedded.digits import Digits
from fourstage.data.sample import Batch
from fourstage.data.shards.write import write_shards
from fourstage.engine.state import load_state

SHORT = ["length=9it", "batch_size=8", "warmup=0it", "workers=0", "log_every=1", "evaluate_every=9it", "ema=0.9"]


def words(data: Path, out: Path, *more: str) -> list[str]:
    return ["train", "digits_visformer", "--data", str(data), "--out", str(out), *SHORT, *more]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real scans in class folders."""
    root = tmp_path_factory.mktemp("photos")
    for split, count in (("train", 40), ("val", 20)):
        digits = Digits("train" if split == "train" else "val")
        for index in range(count):
            sample = digits.sample(index)
            folder = root / split / f"digit {sample.label}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.asarray(sample.image)).save(folder / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def shards(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "digits"
    write_shards(photos, folder, count=7)
    return folder


def test_a_run_over_shards_that_was_stopped_ends_with_the_same_bits(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(words(shards, tmp_path / "whole")) == 0
    with monkeypatch.context() as patch:
        stop_before(4, patch)
        main(words(shards, tmp_path / "parts"))
    assert len(losses(tmp_path / "parts")) < 9
    assert main(words(shards, tmp_path / "parts")) == 0
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    whole, parts = (load_state(tmp_path / name / "checkpoints" / "last.pt") for name in ("whole", "parts"))
    for part in ("model", "ema"):
        assert all(torch.equal(value, parts[part][key]) for key, value in whole[part].items())


def test_an_epoch_passes_over_the_shards_once(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order that a run computes is the one for shards: it keeps their sizes."""
    seen: list[tuple[int, ...]] = []
    real = run_setup.train_batches

    def batches(dataset: Any, plan: Any, *args: Any, **named: Any) -> Generator[list[Batch]]:
        seen.append(plan.shard_sizes)
        yield from real(dataset, plan, *args, **named)

    monkeypatch.setattr(run_setup, "train_batches", batches)
    assert main(words(shards, tmp_path / "run", "--dry-run")) == 0
    assert seen == [(7, 7, 7, 7, 7, 5)]


def cut_shard(root: Path, photos: Path) -> tuple[str, ...]:
    write_shards(photos, root, count=20)
    path = root / "train-000001.tar"
    path.write_bytes(path.read_bytes()[:12_000])
    return str(path), "cut off"


def list_of_missing_files(root: Path, photos: Path) -> tuple[str, ...]:
    (root / "meta").mkdir(parents=True)
    lines = [f"{p.parent.name}/{p.name} {p.parent.name[-1]}\n" for p in sorted(photos.glob("train/*/*.png"))]
    (root / "train").symlink_to(photos / "train")
    (root / "val").symlink_to(photos / "val")
    (root / "meta/train.txt").write_text("".join([*lines, "digit 3/gone.png 3\n"]))
    (root / "meta/val.txt").write_text("".join(lines[:4]))
    return "lists 1 image that does not exist", "gone.png"


def zip_without_its_map(root: Path, photos: Path) -> tuple[str, ...]:
    root.mkdir()
    for split in ("train", "val"):
        with zipfile.ZipFile(root / f"{split}.zip", "w") as archive:
            for path in sorted(photos.glob(f"{split}/*/*.png")):
                archive.write(path, f"{path.parent.name}/{path.name}")
    return "train_map.txt", "train.zip"


@pytest.mark.parametrize("broken", [cut_shard, list_of_missing_files, zip_without_its_map])
def test_broken_data_is_named_before_anything_is_written(
    broken: Callable[[Path, Path], tuple[str, ...]], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = broken(tmp_path / "data", photos)
    refused(main(words(tmp_path / "data", tmp_path / "run")), capsys, *expected)
    assert not (tmp_path / "run").exists()


def test_a_batch_that_does_not_fit_is_refused(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(main(words(photos, tmp_path / "run", "accumulation=3")), capsys, "batch_size 8", "3")
    refused(main(words(photos, tmp_path / "run", "batch_size=64")), capsys, "64", "40")


def test_a_loss_that_is_nan_names_the_layer_and_keeps_the_checkpoint(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(BREAKS)
    out = tmp_path / "run"
    more = [f"imports=[{tmp_path / 'mine.py'}]", "model=breaks", "model_args={}", "checkpoint_every=2it"]
    refused(main(words(photos, out, *more)), capsys, "network.body.explodes", "checkpoints are from before")
    assert load_state(out / "checkpoints" / "last.pt")["step"] == 4
    assert [step for step, _ in losses(out)] == [1, 2, 3, 4, 5]


BREAKS = """
import torch
from torch import nn
from fourstage import register

class Explodes(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, maps):
        self.calls += self.training
        return maps * torch.where(self.calls > 5, torch.nan, 1.0)

class Breaks(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.body = nn.Sequential()
        self.body.add_module("stem", nn.Conv2d(3, 8, 7, 7))
        self.body.add_module("explodes", Explodes())
        self.head = nn.Linear(8, num_classes)

    def forward(self, images):
        return self.head(self.body(images).mean((2, 3)))

@register
def breaks(num_classes=10, img_size=32):
    return Breaks(num_classes)
"""
