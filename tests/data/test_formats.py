import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fourstage.cli import main
from fourstage.data.checks.check import check
from fourstage.data.embedded import digit_scenes
from fourstage.data.embedded.digits import Digits
from fourstage.data.formats import FORMATS, open_dataset
from fourstage.data.labels.imagefolder import ImageFolder
from fourstage.data.objects.coco import Coco

Picture = Callable[..., Path]


@pytest.fixture
def scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(digit_scenes, "CACHED", {"train": 2, "val": 1, "size": 64, "seed": 0})


def test_names_come_first(scenes: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path)
    assert isinstance(open_dataset("digits", "train"), Digits)
    assert isinstance(open_dataset(Path("digits"), "val"), Digits)
    assert isinstance(open_dataset("digit_scenes", "val"), Coco)


@pytest.mark.parametrize("paths", [("train/a/1.png", "train/b/1.png"), ("a/1.png", "b/deep/1.jpg")])
def test_an_image_folder_is_recognised(paths: tuple[str, str], tmp_path: Path, picture: Picture) -> None:
    for path in paths:
        picture(path)
    dataset = open_dataset(str(tmp_path), "train")
    assert isinstance(dataset, ImageFolder)
    assert dataset.classes == ("a", "b")


def test_a_coco_folder_is_recognised_before_an_image_folder(tmp_path: Path, picture: Picture) -> None:
    picture("train/a/1.png")
    (tmp_path / "train/_annotations.coco.json").write_text(
        json.dumps({"images": [], "annotations": [], "categories": []})
    )
    assert isinstance(open_dataset(tmp_path, "train"), Coco)


def test_nothing_that_is_known(tmp_path: Path, picture: Picture, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "list.csv").touch()
    (tmp_path / "texts").mkdir()
    with pytest.raises(
        ValueError, match=r"not recognised \(it has the folder texts and 1 file \(\.csv\)\).*; supported layouts:"
    ) as caught:
        open_dataset(tmp_path, "train")
    assert "\n" not in str(caught.value)
    layouts = caught.value.__notes__
    assert [line.partition(":")[0] for line in layouts] == [f"  {format.name}" for format in FORMATS]
    assert all(len(line) <= 120 for line in layouts)
    assert main(["data", "check", str(tmp_path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith("; supported layouts:")
    assert lines[1:] == layouts


def test_a_folder_of_images_alone_is_one_folder_too_deep(tmp_path: Path, picture: Picture) -> None:
    picture("pets/cat/1.png")
    picture("pets/dog/1.png")
    with pytest.raises(ValueError, match=r"cat holds 1 image and no labels; .* give the folder above it: /.*/pets$"):
        open_dataset(tmp_path / "pets/cat", "train")


def test_a_single_class_folder_is_named(tmp_path: Path, picture: Picture) -> None:
    picture("pets/cat/1.png")
    with pytest.raises(ValueError, match=r"pets holds one class, cat, so there is nothing to classify: give each"):
        open_dataset(tmp_path / "pets", "train")
    with pytest.raises(ValueError, match="not recognised"):
        open_dataset(tmp_path / "pets", "train", truth="objects")
    picture("maps/images/1.png")
    with pytest.raises(ValueError, match="not recognised"):
        open_dataset(tmp_path / "maps", "train")


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"not recognised \(it is empty\)"):
        open_dataset(tmp_path, "train")


def test_an_empty_path_is_not_the_current_folder(
    tmp_path: Path, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture("train/a/1.png")
    monkeypatch.chdir(tmp_path)
    for read in (lambda: open_dataset("", "train"), lambda: check("")):
        with pytest.raises(ValueError, match="the path of the data set is empty"):
            read()


def test_the_folder_that_was_meant_is_named(tmp_path: Path, picture: Picture) -> None:
    picture("pets/train/a/1.png")
    with pytest.raises(ValueError, match=r"did you mean .*/pets\?"):
        open_dataset(tmp_path, "train")


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere does not exist: give the folder"):
        open_dataset(tmp_path / "nowhere", "train")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file, not a folder"):
        open_dataset(tmp_path / "file", "train")
