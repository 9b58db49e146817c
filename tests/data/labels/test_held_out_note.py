"""The note on a held-out validation split; there is none where nothing is held out."""

from collections.abc import Callable
from pathlib import Path

from fourstage.data.checks.check import check
from fourstage.data.formats import open_dataset
from fourstage.data.sample import Split

Picture = Callable[..., Path]


def note(root: Path, split: Split) -> str:
    return getattr(open_dataset(root, split), "note", "missing")


def lists(picture: Picture, root: Path, count: int) -> Path:
    lines = []
    for label, name in enumerate(("n01", "n02")):
        for i in range(count):
            picture(f"set/train/{name}/{i}.png")
            lines.append(f"{name}/{i}.png {label}\n")
    (root / "set/meta").mkdir()
    (root / "set/meta/train.txt").write_text("".join(lines))
    return root / "set"


def test_a_list_says_what_is_held_out(picture: Picture, tmp_path: Path) -> None:
    text = note(lists(picture, tmp_path, 3), "val")
    assert text.endswith(
        "has no validation split: a fixed 10% of each class (2 of 6 images) is held out for validation"
    )
    assert "held-out split" in {finding.title for finding in check(tmp_path / "set")[0]}


def test_a_list_of_single_images_has_no_note(picture: Picture, tmp_path: Path) -> None:
    assert note(lists(picture, tmp_path, 1), "train") == ""
    assert "held-out split" not in {finding.title for finding in check(tmp_path / "set")[0]}


def test_class_folders_of_single_images_have_no_note(picture: Picture, tmp_path: Path) -> None:
    for name in ("a", "b"):
        picture(f"one/{name}/0.png")
        for i in range(2):
            picture(f"two/{name}/{i}.png")
    assert note(tmp_path / "one", "train") == ""
    assert "(2 of 4 images) is held out for validation" in note(tmp_path / "two", "train")
