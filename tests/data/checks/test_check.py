import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fourstage.cli import main
from fourstage.data.checks.check import Finding, Summary, check, render
from fourstage.data.embedded import digit_scenes
from fourstage.data.embedded.digit_scenes import write_digit_scenes
from fourstage.data.findings import SplitSummary
from fourstage.data.formats import FORMATS
from fourstage.data.labels.imagefolder import ImageFolder
from fourstage.data.limits import TEXT_BYTES

Picture = Callable[..., Path]


def kinds(findings: list[Finding]) -> Counter[str]:
    return Counter(f"{finding.severity}: {finding.title}" for finding in findings)


def of_kind(findings: list[Finding], kind: str) -> Finding:
    [finding] = [finding for finding in findings if finding.title == kind]
    return finding


def test_every_format_has_a_checker() -> None:
    assert all(callable(format.checker()) for format in FORMATS)
    assert all(callable(format.writer()) for format in FORMATS if format.write)


def test_the_embedded_data_is_clean() -> None:
    findings, summary = check("digits")
    assert findings == []
    assert [(split.images, len(split.per_class)) for split in summary.splits.values()] == [(1437, 10), (360, 10)]


@pytest.fixture
def photos(picture: Picture, tmp_path: Path) -> Path:
    for split, count in (("train", 3), ("val", 2)):
        for name in ("cat", "dog"):
            for i in range(count):
                picture(f"photos/{split}/{name}/{i}.png")
    return tmp_path / "photos"


MADE = ("@eaDir", "__MACOSX", ".ipynb_checkpoints", "lost+found", "$RECYCLE.BIN", "System Volume Information")


def test_folders_that_systems_make_are_no_class(photos: Path, picture: Picture) -> None:
    for name in MADE:
        for place in ("photos", "photos/train", "photos/val/cat"):
            picture(f"{place}/{name}/cat.png/thumbnail.png")
    findings, summary = check(photos)
    assert [str(finding) for finding in findings] == []
    assert summary.splits["train"].per_class == {"cat": 3, "dog": 3}
    assert ImageFolder(photos, "train").classes == ("cat", "dog")
    assert len(ImageFolder(photos, "val")) == 4


def test_photos_that_exif_turns_are_one_line(photos: Path) -> None:
    exif = Image.Exif()
    for i, turn in enumerate((1, 6, 8, 0, 99)):
        exif[0x0112] = turn
        noise = np.random.default_rng(i).integers(0, 255, (48, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(photos / "train" / "cat" / f"{i}.jpg", exif=exif)
    (photos / "train" / "cat" / "5.jpg").write_bytes(
        (photos / "train" / "cat" / "1.jpg").read_bytes().replace(b"Exif\0\0II", b"Exif\0\0XX").replace(b"MM", b"XX")
    )
    findings, _ = check(photos)
    finding = of_kind(findings, "turned by EXIF")
    assert (finding.severity, finding.what) == ("note", "is one of 2 images that EXIF turns")
    assert "classification reads them as they are stored" in finding.do


def test_boxes_belong_to_the_turned_photo(tmp_path: Path) -> None:
    write_digit_scenes(tmp_path / "scenes", train=2, val=1)
    path = next((tmp_path / "scenes" / "train").glob("*.jpg"))
    exif = Image.Exif()
    exif[0x0112] = 3
    with Image.open(path) as image:
        image.save(path, exif=exif)
    findings, _ = check(tmp_path / "scenes")
    finding = of_kind(findings, "turned by EXIF")
    assert (finding.what, finding.where) == ("is one of 1 image that EXIF turns", str(path))
    assert "they are read turned" in finding.do


def test_a_clean_image_folder(photos: Path) -> None:
    steps: list[tuple[int, int]] = []
    findings, summary = check(photos, lambda done, total: steps.append((done, total)))
    assert findings == []
    assert steps == [(i + 1, 10) for i in range(10)]
    assert summary.splits["train"].per_class == {"cat": 3, "dog": 3}
    assert "train: 6 images of 48 x 40 pixels" in render(findings, summary)
    assert render(findings, summary).endswith("0 errors, 0 warnings, 0 notes")


def test_a_broken_image_folder(photos: Path, picture: Picture) -> None:
    train, val = photos / "train", photos / "val"
    (train / "empty").mkdir()
    (val / "dog").rename(val / "wolf")
    (train / "cat/0.png").write_bytes((train / "cat/0.png").read_bytes()[:300])
    (train / "cat/notes.txt").touch()
    picture("photos/train/loose.png")
    picture("photos/train/dog/tiny.png", 31, 40)
    picture("photos/train/dog/lies.png", format="JPEG")
    shutil.copy(train / "dog/1.png", val / "cat/leak.png")
    shutil.copy(train / "dog/2.png", train / "cat/same.png")
    for i in range(30):
        picture(f"photos/val/wolf/more{i}.png")
    findings, summary = check(photos)
    assert kinds(findings) == {
        "error: empty class": 1, "error: unknown class": 1, "error: unreadable image": 1, "warning: other file": 1,
        "warning: image outside": 1, "warning: tiny image": 1, "warning: wrong extension": 1, "warning: leak": 1,
        "warning: two classes": 1, "note: classes not validated": 1, "note: uneven classes": 1,
    }  # fmt: skip
    assert of_kind(findings, "unreadable image").where == str(train / "cat/0.png")
    assert "truncated" in of_kind(findings, "unreadable image").what
    assert "holds JPEG, not PNG" in of_kind(findings, "wrong extension").what
    assert of_kind(findings, "leak").where == str(val / "cat/leak.png")
    assert "32 images of 'wolf' and 3 of 'cat'" in of_kind(findings, "uneven classes").what
    assert summary.splits["train"].images == 9
    assert render(findings, summary).endswith("3 errors, 6 warnings, 2 notes")


def test_an_image_folder_without_val(photos: Path) -> None:
    shutil.rmtree(photos / "val")
    findings, summary = check(photos)
    assert kinds(findings) == {"note: held-out split": 1}
    assert [split.images for split in summary.splits.values()] == [4, 2]


def test_an_image_folder_without_train(photos: Path) -> None:
    shutil.rmtree(photos / "train")
    findings, summary = check(photos)
    assert kinds(findings) == {"note: no training split": 1, "error: training refuses this data": 1}
    assert "or use this data for evaluation only" in of_kind(findings, "training refuses this data").do
    assert list(summary.splits) == ["val"]


def test_findings_of_one_kind_are_cut_short() -> None:
    many = [Finding("warning", "odd", f"file{i}", "is odd", "look at it") for i in range(1200)]
    text = render([*many, Finding("error", "bad", "x", "is bad", "mend it")], Summary("ImageFolder"))
    assert text.splitlines()[1:] == [
        "error: bad (1)", "  x is bad: mend it", "warning: odd (1,200)",
        *(f"  file{i} is odd: look at it" for i in range(5)), "  ... and 1,195 more",
        "1 error, 1,200 warnings, 0 notes",
    ]  # fmt: skip


def test_one_is_no_plural() -> None:
    summary = Summary("COCO", splits={"train": SplitSummary(1, Counter(cat=1)), "val": SplitSummary(2)})
    lines = render([], summary).splitlines()
    assert lines[1:4] == ["  train: 1 image", "    1 class, images of each: cat 1", "  val: 2 images"]


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    return write_digit_scenes(tmp_path / "scenes", train=40, val=30, size=64)


def change(root: Path, split: str, edit: Callable[[dict[str, Any]], None]) -> None:
    path = root / f"annotations/instances_{split}.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def test_clean_scenes(scenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    findings, summary = check(scenes)
    assert findings == []
    assert summary.counted == "objects"
    assert sorted(summary.splits["train"].per_class) == list("0123456789")
    monkeypatch.setenv("XDG_CACHE_HOME", str(scenes.parent / "cache"))
    monkeypatch.setattr(digit_scenes, "CACHED", {"train": 30, "val": 30, "size": 64, "seed": 1})
    assert check("digit_scenes").summary.splits["train"].images == 30


def test_a_broken_coco_folder(scenes: Path, picture: Picture) -> None:
    def spoil(content: dict[str, Any]) -> None:
        listed = content["annotations"]
        listed[0]["bbox"] = [5, 5, -3, 4]
        listed[1]["bbox"] = [5, 5, 0.5, 4]
        listed[2]["bbox"] = [64, 5, 3, 4]
        listed[3]["bbox"] = [50, 5, 30, 4]
        listed[4]["bbox"] = [1, 2, float("nan"), 3]
        listed[5]["category_id"] = 11
        listed[6]["image_id"] = 999
        listed[7]["id"] = listed[8]["id"]
        listed[9]["segmentation"] = {"size": [32, 32], "counts": [0, 1024]}
        listed[10]["segmentation"] = [[1, 2, 3, 4]]
        del listed[11]["segmentation"]
        content["images"][20]["width"] = 65
        content["images"].append({"id": 41, "file_name": "none.jpg", "height": 64, "width": 64})
        content["categories"][3]["name"] = "drei"

    change(scenes, "train", spoil)
    shutil.copy(scenes / "train/000005.jpg", scenes / "val/000004.jpg")
    (scenes / "train/000007.jpg").write_text("text")
    findings, _ = check(scenes)
    found = kinds(findings)
    assert found.pop("error: broken mask") >= 1  # those of the image that changed its size as well
    assert found.pop("note: image without objects") >= 1
    assert found.pop("warning: box beyond the border", 0) >= 1
    assert found == {
        "warning: inverted box": 1, "warning: empty box": 1, "warning: box outside": 1, "error: broken box": 1,
        "error: unknown category": 1, "error: unknown image": 1, "error: annotations with one id": 1,
        "warning: empty mask": 1, "warning: masks for some": 1, "error: image of another size": 1,
        "error: unreadable image": 2, "error: categories differ": 1, "warning: leak": 1,
        "error: training refuses this data": 1,
    }  # fmt: skip
    assert "(000000.jpg)" in of_kind(findings, "inverted box").where
    assert "has objects of '3', which" in of_kind(findings, "categories differ").what
    assert "'drei'" in of_kind(findings, "categories differ").do


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_json_that_is_not_cocos(text: str, scenes: Path) -> None:
    (scenes / "annotations/instances_val.json").write_text(text)
    findings, summary = check(scenes)
    assert kinds(findings) == {"error: annotations": 1}
    assert list(summary.splits) == ["train"]


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        check(tmp_path / "nowhere")


def test_a_folder_with_boxes_and_label_maps_is_checked_as_both(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is wrong with an image is said once."""
    root = tmp_path / "scenes"
    write_digit_scenes(root, train=20, val=10, size=64)
    assert check(root).findings == []
    (root / "train" / "000001.jpg").write_bytes(b"no image")
    Image.fromarray(np.full((64, 64), 77, np.uint8)).save(root / "masks" / "train" / "000002.png")
    annotations = root / "annotations" / "instances_val.json"
    content = json.loads(annotations.read_text())
    content["annotations"][0]["bbox"] = [900, 900, 5, 5]
    annotations.write_text(json.dumps(content))
    errors = [finding for finding in check(root).findings if finding.severity == "error"]
    assert sum("000001.jpg" in finding.where for finding in errors) == 1
    assert any("000002.png" in finding.where for finding in errors)
    assert any("instances_val.json" in finding.where for finding in check(root).findings)
    assert all("instances" not in str(finding) for finding in check(root, truth="label_map_HW").findings)
    assert main(["data", "check", str(root)]) == 1
    printed = capsys.readouterr().out
    assert "COCO, checked in" in printed
    assert "label maps, in the same folder" in printed
    assert "objects of each" in printed
    assert "images of each" in printed


def test_a_large_file_of_another_program_does_not_end_the_check(picture: Picture, tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            picture(f"data/{split}/{name}/0.png")
    (tmp_path / "data" / "notes.yaml").write_bytes(b"#" * (TEXT_BYTES + 1))
    assert not [one for one in check(tmp_path / "data").findings if one.severity == "error"]
