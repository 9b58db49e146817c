"""`fourstage data shard` and `fourstage data show` as they are typed."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fourstage.cli import main

Picture = Callable[..., Path]


@pytest.fixture
def photos(picture: Picture, tmp_path: Path) -> Path:
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            for i in range(3):
                picture(f"photos/{split}/{name}/{i}.jpg")
    return tmp_path / "photos"


def test_shard_then_check(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data", "shard", str(photos), str(tmp_path / "s"), "--count", "4"]
    assert main(words) == 0
    assert "train: 6 images in 2 shards\nval: 6 images in 2 shards\n" in capsys.readouterr().out
    assert main(["data", "check", str(tmp_path / "s")]) == 0
    assert "0 errors, 0 warnings, 0 notes" in capsys.readouterr().out
    assert main(words) == 2
    assert "already holds these shards, complete" in capsys.readouterr().err
    assert main([*words[:4], "--max-size", "much"]) == 2
    assert "'much' is not a size" in capsys.readouterr().err


def test_training_reads_shards(photos: Path, tmp_path: Path) -> None:
    assert main(["data", "shard", str(photos), str(tmp_path / "s")]) == 0
    words = ["batch_size=2", "image_size=32", "workers=0", "length=2it", "warmup=0it", "device=cpu"]
    run = ["train", "digits_visformer", "--data", str(tmp_path / "s"), "--out", str(tmp_path / "run"), "--dry-run"]
    assert main([*run, *words]) == 0


@pytest.mark.parametrize("changes", [[], ["augmentation.mixup=0", "augmentation.cutmix=0"]])
def test_show(changes: list[str], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    out = tmp_path / "new/sheet.png"
    assert main(["data", "show", str(photos), "--out", str(out), "image_size=64", *changes]) == 0
    default = "the default for data with a class for each image; choose another one with --recipe NAME"
    assert capsys.readouterr().out == f"wrote {out}, augmented by smt_tiny_in1k, {default}\n"
    with Image.open(out) as sheet:
        size = sheet.size
    columns = 5 if changes else 7
    assert size == (20 + columns * 180, 20 + 6 * 204)
    first = out.read_bytes()
    assert main(["data", "show", str(photos), "--out", str(out), "image_size=64", *changes]) == 0
    assert out.read_bytes() == first  # drawn by the seed


def test_show_what_cannot_be_shown(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "show", str(photos), "--out", str(tmp_path / "sheet.jpg")]) == 2
    assert "must end in .png" in capsys.readouterr().err
    assert main(["data", "show", str(tmp_path / "nowhere"), "--out", str(tmp_path / "a.png")]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert main(["data", "show", str(photos), "--recipe", "nothing_in1k"]) == 2
    assert "nothing_in1k" in capsys.readouterr().err


def test_show_digits(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    assert main(["data", "show", "digits", "--out", str(tmp_path / "digits.png")]) == 0
