"""A validation split that is there and has no image: a tenth of the training images is held out, in every format."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data.hostile import sound
from data.hostile.verdicts import refusal_of_training, refusals_of_check
from PIL import Image
from run.tool_exports import BOXES, MAPS, label_map

from fourstage.data.checks.check import check
from fourstage.data.formats import open_dataset
from fourstage.data.sample import Truth

Build = Callable[[Path], object]


def _emptied(folder: Path, endings: tuple[str, ...] = (".png", ".jpg", ".txt", ".xml")) -> None:
    for path in [*folder.rglob("*")]:
        if path.suffix in endings:
            path.unlink()


def _without_images(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"images": [], "annotations": []}))


def _roboflow(name: str, root: Path) -> None:
    """Write an export of which all images are for training; YOLO's has no folder for the others."""
    (BOXES | MAPS)[f"Roboflow {name}"](root)
    shutil.rmtree(root / "test")
    if name == "YOLO":
        shutil.rmtree(root / "valid")
    elif name == "COCO":
        _without_images(root / "valid/_annotations.coco.json")
    _emptied(root / "valid")


def _yolo_of_an_empty_folder(root: Path) -> None:
    sound.yolo(root)
    _emptied(root / "images/val")


def _yolo_of_an_empty_list(root: Path) -> None:
    sound.yolo(root)
    sound.write(root / "data.yaml", "train: images/train\nval: val.txt\nnames: [cat, dog]\n")
    sound.write(root / "val.txt", "\n")


def _coco(root: Path) -> None:
    sound.coco(root)
    _without_images(root / "annotations/instances_val.json")


def _voc(root: Path) -> None:
    sound.voc(root)
    sound.write(root / "ImageSets/Main/val.txt", "")


def _inaturalist(root: Path) -> None:
    sound.inaturalist(root)
    _without_images(root / "val2018.json")


def _labelme(root: Path) -> None:
    BOXES["labelme"](root / "train")
    (root / "val").mkdir()


def _imagefolder(root: Path) -> None:
    sound.imagefolder(root)
    _emptied(root / "val")


def _lists(root: Path) -> None:
    sound.lists(root)
    shutil.rmtree(root / "val")
    sound.write(root / "meta/val.txt", "\n")


def _maps(images: str, maps: str, root: Path, *, suffix: str = "", map_suffix: str = "") -> None:
    """Write twelve pairs; the folders of the validation split are there and empty."""
    for i in range(12):
        name = f"frame_{i:06d}"
        sound.write(root / images.format("train") / f"{name}{suffix}.png", sound.png(i, 64))
        path = root / maps.format("train") / f"{name}{map_suffix}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(label_map(i) + np.uint8(7 * bool(suffix))).save(path)
    for folder in (images, maps):
        (root / folder.format("val")).mkdir(parents=True)


def _label_maps(root: Path) -> None:
    _maps("images/{}", "masks/{}", root)


def _ade20k(root: Path) -> None:
    _maps("images/{}", "annotations/{}", root)
    for folder in ("images", "annotations"):
        for old, new in (("train", "training"), ("val", "validation")):
            (root / folder / old).rename(root / folder / new)


def _cityscapes(root: Path) -> None:
    _maps("leftImg8bit/{}", "gtFine/{}", root, suffix="_leftImg8bit", map_suffix="_gtFine_labelIds")


def _voc_maps(root: Path) -> None:
    for i in range(12):
        sound.write(root / "JPEGImages" / f"{i}.jpg", sound.png(i, 64))
        (root / "SegmentationClass").mkdir(exist_ok=True)
        Image.fromarray(label_map(i)).save(root / "SegmentationClass" / f"{i}.png")
    sound.write(root / "ImageSets/Segmentation/train.txt", "\n".join(map(str, range(12))))
    sound.write(root / "ImageSets/Segmentation/val.txt", "")


EMPTY: dict[str, tuple[Build, Truth]] = {
    **{f"Roboflow {n}": (lambda root, n=n: _roboflow(n, root), "objects") for n in ("COCO", "YOLO", "VOC")},
    "Roboflow masks": (lambda root: _roboflow("masks", root), "label_map_HW"),
    "YOLO, a folder": (_yolo_of_an_empty_folder, "objects"),
    "YOLO, a list": (_yolo_of_an_empty_list, "objects"),
    "COCO": (_coco, "objects"),
    "VOC, a list": (_voc, "objects"),
    "labelme": (_labelme, "objects"),
    "label maps": (_label_maps, "label_map_HW"),
    "ADE20K": (_ade20k, "label_map_HW"),
    "Cityscapes": (_cityscapes, "label_map_HW"),
    "VOC's label maps": (_voc_maps, "label_map_HW"),
    "class folders": (_imagefolder, "label"),
    "lists": (_lists, "label"),
    "iNaturalist": (_inaturalist, "label"),
}


@pytest.mark.parametrize("name", EMPTY)
def test_a_tenth_is_held_out_where_the_validation_split_is_empty(name: str, tmp_path: Path) -> None:
    build, truth = EMPTY[name]
    build(tmp_path / "data")
    assert refusal_of_training(tmp_path / "data", truth) == ""
    assert refusals_of_check(tmp_path / "data", truth) == []
    train, val = (open_dataset(tmp_path / "data", split, truth=truth) for split in ("train", "val"))
    ids = [{one.id(i) for i in range(len(one))} for one in (train, val)]
    assert not ids[0] & ids[1]
    assert len(train) + len(val) in (8, 12)
    assert len(val) == (2 if truth == "label" else 1)  # of each class where there are labels
    assert "held out for validation" in getattr(train, "note", "")
    notes = [finding for finding in check(tmp_path / "data", truth=truth).findings if finding.severity == "note"]
    assert any("held out for validation" in str(note) for note in notes)


@pytest.mark.parametrize("name", ["COCO", "YOLO", "VOC", "masks"])
def test_an_empty_valid_beside_a_test_split_is_passed_over(name: str, tmp_path: Path) -> None:
    builds = BOXES | MAPS
    builds[f"Roboflow {name}"](tmp_path)
    if name == "COCO":
        _without_images(tmp_path / "valid/_annotations.coco.json")
    _emptied(tmp_path / "valid")
    truth: Truth = "label_map_HW" if name == "masks" else "objects"
    val = open_dataset(tmp_path, "val", truth=truth)
    assert sorted(Path(val.id(i)).name.split("_jpg")[0] for i in range(len(val))) == ["frame_000010", "frame_000011"]
    assert len(open_dataset(tmp_path, "train", truth=truth)) == 8


def test_a_misspelled_folder_is_no_empty_split(tmp_path: Path) -> None:
    sound.yolo(tmp_path)
    sound.write(tmp_path / "data.yaml", "train: images/train\nval: images/vall\nnames: [cat, dog]\n")
    for sentence in (refusal_of_training(tmp_path, "objects"), refusals_of_check(tmp_path, "objects")[0]):
        assert "says `val: images/vall`, but there is no" in sentence
        assert "add it, or remove the line `val:`, and a tenth of the training images is held out" in sentence
