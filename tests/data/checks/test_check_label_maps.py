"""What a check finds in images and label maps."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fourstage.data.checks.label_maps import check_label_maps
from fourstage.data.embedded.digit_scenes import write_digit_scenes
from fourstage.data.findings import Checked, Finding, render
from fourstage.data.sample import IGNORE


def check(root: Path) -> Checked:
    return check_label_maps(root, lambda done, total: None)


def kinds(findings: list[Finding]) -> Counter[str]:
    return Counter(f"{finding.severity}: {finding.title}" for finding in findings)


def of_kind(findings: list[Finding], kind: str) -> Finding:
    [finding] = [finding for finding in findings if finding.title == kind]
    return finding


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 3)):
        for i in range(count):
            save(tmp_path / f"images/{split}/{i}.png", rng.integers(0, 255, (40, 48, 3), dtype=np.uint8))
            save(tmp_path / f"masks/{split}/{i}.png", rng.choice(np.array([0, 1, 2, IGNORE], np.uint8), (40, 48)))
    (tmp_path / "classes.txt").write_text("sky\nsea\nsand\n")
    return tmp_path


def test_clean(folder: Path) -> None:
    findings, summary = check(folder)
    assert findings == []
    assert summary.splits["train"].per_class == {"sky": 8, "sea": 8, "sand": 8}
    assert "train: 8 images of 48 x 40 pixels" in render(findings, summary)


def test_digit_scenes_are_clean(tmp_path: Path) -> None:
    write_digit_scenes(tmp_path / "scenes", train=40, val=30, size=64)
    findings, summary = check(tmp_path / "scenes")
    assert findings == []
    assert summary.splits["val"].per_class["background"] == 30


def test_broken(folder: Path) -> None:
    masks, images = folder / "masks/train", folder / "images/train"
    stored = np.asarray(Image.open(masks / "0.png"))
    strange = stored.copy()
    strange[:3, :2] = 9
    save(masks / "0.png", strange)
    Image.fromarray(np.where(stored == IGNORE, 0, stored)).convert("RGB").save(masks / "1.png")
    save(masks / "2.png", stored[:20])
    (masks / "3.png").unlink()
    (masks / "4.png").write_bytes((masks / "4.png").read_bytes()[:80])
    save(masks / "5.png", np.full((40, 48), IGNORE, np.uint8))
    (images / "6.png").write_text("text")
    save(masks / "more.png", stored)
    shutil.copy(images / "7.png", folder / "images/val/0.png")
    findings, _ = check(folder)
    assert kinds(findings) == {
        "error: label out of range": 1, "error: label map saved as colours": 1, "error: label map of another size": 1,
        "error: no label map": 1, "error: unreadable label map": 1, "warning: nothing labelled": 1,
        "error: unreadable image": 1, "warning: label map without image": 1, "warning: leak": 1,
    }  # fmt: skip
    assert "6 pixels of no class: it holds 9" in str(of_kind(findings, "label out of range"))
    assert "it holds colours (RGB), 3 of them and all grey, where" in str(
        of_kind(findings, "label map saved as colours")
    )
    assert "it is 48 x 20 and its image 48 x 40" in of_kind(findings, "label map of another size").do
    assert of_kind(findings, "no label map").where == str(images / "3.png")
    assert of_kind(findings, "unreadable label map").where == str(masks / "4.png")
    assert of_kind(findings, "label map without image").where == str(masks / "more.png")


LEARN, SCORE = "the network cannot learn them", "they are not scored"


def test_classes_that_are_rare_missing_or_without_names(folder: Path) -> None:
    (folder / "classes.txt").unlink()
    for i in range(8):
        labels = np.zeros((40, 48), np.uint8)
        labels[0, 0] = 3 if i == 0 else 0
        labels[20:] = 1
        save(folder / f"masks/train/{i}.png", labels)
    findings, summary = check(folder)
    assert kinds(findings) == {
        "note: classes without names": 1, "note: class that does not occur": 2, "note: rare class": 1,
    }  # fmt: skip
    lacking = [(one.what, one.do) for one in findings if one.title == "class that does not occur"]
    assert ("has 1 of 4 classes that do not occur in any label map, such as 'class 2'", LEARN) in lacking
    assert [do for _, do in lacking] == [LEARN, SCORE]
    assert "has 1 pixel of 'class 3'" in of_kind(findings, "rare class").what
    assert summary.splits["train"].per_class == {"class 0": 8, "class 1": 8, "class 2": 0, "class 3": 1}


def test_one_split_alone(folder: Path) -> None:
    for part in ("images", "masks"):
        shutil.rmtree(folder / part / "train")
    findings, summary = check(folder)
    assert kinds(findings) == {"note: no train split": 1}
    assert list(summary.splits) == ["val"]


def test_one_folder_for_both_splits_is_told_once(folder: Path) -> None:
    for part in ("images", "masks"):
        shutil.rmtree(folder / part / "val")
    (folder / "classes.txt").unlink()
    save(folder / "masks/train/9.png", np.zeros((40, 48), np.uint8))
    (folder / "masks/train/3.png").unlink()
    expected = {"warning: label map without image": 1, "error: no label map": 1, "note: classes without names": 1}
    found = kinds(check(folder).findings)
    assert {kind: found[kind] for kind in expected} == expected
    assert found["note: layout"] == 1


def in_colours(path: Path) -> None:
    Image.fromarray(np.asarray(Image.open(path))).convert("RGB").save(path)


@pytest.mark.parametrize("named", [True, False])
def test_nothing_is_said_of_classes_where_no_label_map_can_be_read(folder: Path, named: bool) -> None:
    """The errors on the maps are enough: notes on classes would be guesses."""
    if not named:
        (folder / "classes.txt").unlink()
    for split in ("train", "val"):
        for path in (folder / "masks" / split).iterdir():
            in_colours(path)
    findings, summary = check(folder)
    assert {*kinds(findings)} == {"error: label map saved as colours"}
    assert {*summary.splits["train"].per_class.values()} == ({0} if named else set())


def test_classes_without_names_are_those_of_the_maps_that_can_be_read(folder: Path) -> None:
    (folder / "classes.txt").unlink()
    for path in (folder / "masks/train").iterdir():
        in_colours(path)
    findings, _ = check(folder)
    assert "error: label out of range" not in kinds(findings)


def test_a_class_that_does_not_occur_in_the_maps_that_can_be_read(folder: Path) -> None:
    for i in range(8):
        save(folder / f"masks/train/{i}.png", np.zeros((40, 48), np.uint8))
    in_colours(folder / "masks/train/0.png")
    findings, _ = check(folder)
    what = [one.what for one in findings if one.title == "class that does not occur"]
    assert any("do not occur in the 7 of 8 label maps that are read, such as" in one for one in what)
