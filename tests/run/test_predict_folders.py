"""`fourstage predict` on folders: the places of what it writes, files that are broken, and a classifier's results."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fourstage import create_model
from fourstage.cli import main
from fourstage.predict.files import find_inputs
from fourstage.run import predict

NAMES = ("=1+1", "a, b", "-x", *(f"class {i}" for i in range(7)))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with classes that a spreadsheet would take for something else."""
    torch.manual_seed(0)
    network = create_model("visformer_digits", num_classes=10, img_size=32)
    path = tmp_path_factory.mktemp("weights") / "ten.pth"
    torch.save({"fourstage": 1, "classes": list(NAMES), "model": network.state_dict()}, path)
    return path


def photo(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = np.frombuffer(str(path.name).encode(), np.uint8).sum()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 48, 3), dtype=np.uint8)).save(path)
    return path


def words(weights: Path, out: Path, *given: Path | str) -> list[str]:
    return ["predict", "visformer_digits", *map(str, given), "--weights", str(weights), "--out", str(out)]


def written(out: Path) -> set[str]:
    return {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}


def table(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_files_of_one_name_in_two_folders_do_not_collide(weights: Path, tmp_path: Path) -> None:
    for name in ("cats/1.png", "dogs/1.png", "dogs/old/1.jpg", "2.avif", "@eaDir/3.png"):
        photo(tmp_path / "photos" / name)
    assert main(words(weights, tmp_path / "out", tmp_path / "photos")) == 0
    pictures = {"2.png", "cats/1.png", "dogs/1.png", "dogs/old/1.png"}
    assert written(tmp_path / "out") == {"results.csv", *pictures}
    assert [row["file"] for row in table(tmp_path / "out")] == ["2.avif", "cats/1.png", "dogs/1.png", "dogs/old/1.jpg"]


def test_several_folders_keep_the_names_that_tell_them_apart(weights: Path, tmp_path: Path) -> None:
    for name in ("a/x/1.png", "b/x/1.png", "c/2.png"):
        photo(tmp_path / name)
    given = [tmp_path / "a" / "x", tmp_path / "b" / "x", tmp_path / "c" / "2.png"]
    assert main(words(weights, tmp_path / "out", *given)) == 0
    assert written(tmp_path / "out") == {"results.csv", "a/x/1.png", "b/x/1.png", "2.png"}
    assert [row["file"] for row in table(tmp_path / "out")] == ["a/x/1.png", "b/x/1.png", "2.png"]
    nested = find_inputs([tmp_path / "a", tmp_path / "a" / "x", tmp_path], tmp_path / "out")
    assert [one.name for one in nested] == ["a/x/1.png", "b/x/1.png", "c/2.png"]  # each once


def test_a_link_to_itself_is_a_file_that_cannot_be_read(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo(tmp_path / "photos" / "1.png")
    (tmp_path / "photos" / "loop.png").symlink_to("loop.png")
    assert main(words(weights, tmp_path / "out", tmp_path / "photos")) == 1
    assert "loop.png" in capsys.readouterr().err
    assert written(tmp_path / "out") == {"results.csv", "1.png"}
    assert main(words(weights, tmp_path / "other", tmp_path / "photos" / "loop.png")) == 2
    assert main(words(weights, tmp_path / "photos" / "loop.png", tmp_path / "photos" / "1.png")) == 2  # as --out


def test_earlier_results_are_not_predicted(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo(tmp_path / "here" / "sub" / "1.jpg")
    monkeypatch.chdir(tmp_path / "here")
    for _ in range(2):
        assert main(words(weights, Path("predictions"), ".")) == 0
        assert written(tmp_path / "here" / "predictions") == {"results.csv", "sub/1.png"}


def test_a_classifier_writes_the_best_class_of_each_image(weights: Path, tmp_path: Path) -> None:
    for name in ("=a.png", "b,1.png", "c.png"):
        photo(tmp_path / "photos" / name)
    predictions = predict("visformer_digits", tmp_path / "photos", weights=weights, out=tmp_path / "out", show=False)
    rows = table(tmp_path / "out")
    assert [row["file"] for row in rows] == ["'=a.png", "b,1.png", "c.png"]  # no spreadsheet computes the first one
    for row, one in zip(rows, predictions, strict=True):
        best = one.values["top"][0]
        assert row["class"] == ("'" + best["class"] if best["class"].startswith(("=", "-")) else best["class"])
        assert float(row["score"]) == pytest.approx(best["probability"], abs=1e-6)


def test_one_broken_image_does_not_stop_the_others(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = [photo(tmp_path / "photos" / f"{i}.png") for i in range(4)]
    for broken in (photos[0], photos[2]):
        broken.write_bytes(broken.read_bytes()[:-900])
    assert main(words(weights, tmp_path / "out", tmp_path / "photos")) == 1
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if line.startswith("fourstage: ")]
    assert [str(one) in line for one, line in zip((photos[0], photos[2]), lines, strict=False)] == [True, True]
    assert lines[2:] == [f"fourstage: 2 of 4 files could not be read; the others are in {tmp_path / 'out'}"]
    assert "2 pictures in" in printed.out
    assert written(tmp_path / "out") == {"results.csv", "1.png", "3.png"}
    assert [row["file"] for row in table(tmp_path / "out")] == ["1.png", "3.png"]
    assert main([*words(weights, tmp_path / "out", tmp_path / "photos"), "--json"]) == 1
    content = json.loads(capsys.readouterr().out)
    assert [one["picture"] is None for one in content] == [True, False, True, False]
    assert "truncated" in content[0]["error"]


def test_images_that_are_all_broken_write_nothing(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(2):
        (tmp_path / f"{i}.jpg").write_text("no image")
    for given, start in (
        ([tmp_path / "0.jpg"], f"fourstage: {tmp_path / '0.jpg'} cannot"),
        ([tmp_path], "fourstage: none of the 2"),
    ):
        assert main(words(weights, tmp_path / "out", *given)) == 2
        assert capsys.readouterr().err.startswith(start)
        assert not (tmp_path / "out").exists()


def test_ids_are_for_detectors(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = photo(tmp_path / "1.png")
    content = {"images": [{"id": 1, "file_name": "1.png", "height": 40, "width": 48}]}
    (tmp_path / "a.json").write_text(json.dumps({**content, "categories": [{"id": 1, "name": "cat"}]}))
    assert main([*words(weights, tmp_path / "out", image), "--ids", str(tmp_path / "a.json")]) == 2
    assert "--ids is for the results of a detector" in capsys.readouterr().err


def test_patterns_that_no_shell_has_resolved(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("b.png", "a.png", "c.jpg", "d[1].jpg"):
        photo(tmp_path / "photos" / name)
    given = (tmp_path / "photos" / "*.png", tmp_path / "photos" / "d[1].jpg")  # the second one is the name of a file
    assert main(words(weights, tmp_path / "out", *given)) == 0
    assert [row["file"] for row in table(tmp_path / "out")] == ["a.png", "b.png", "d[1].jpg"]
    capsys.readouterr()
    for image, sentence in (
        (str(tmp_path / "*.gif"), "no file matches"),
        ("http://localhost/x.png", "http://localhost/x.png is an address, and files are needed; download it"),
        ("", "is empty, perhaps because a shell variable is not set"),
    ):
        assert main(words(weights, tmp_path / "none", image)) == 2
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "command",
    [
        ["predict", "visformer_digits", "a.png", "--out="],
        ["predict", "", "a.png"],
        ["analyze", "erf", "visformer_digits", "--data", "a.png", "--images", "1", "--size", "32", "--out", ""],
        ["analyze", "erf", "", "--data", "a.png"],
        ["compare", "digits_visformer", "--vary", "lr=1e-3,2e-3", "--data", "", "--dry-run"],
        ["train", "digits_visformer", "length=1it", "--out", ""],
        ["report", "", "--out", "page.html"],
    ],
)
def test_an_empty_path_is_not_the_folder_of_the_shell(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    photo(Path("a.png"))
    assert main(command) == 2
    assert "empty" in capsys.readouterr().err
    assert written(tmp_path) == {"a.png"}
