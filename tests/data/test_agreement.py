"""What `data check` passes, trains, and what training refuses, `data check` refuses: for every fault that is planted.

`make test` compares some of the faults, `make torture` all of them. The slow ones are in `test_hostile.py`.
"""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data.hostile import sound
from data.hostile.cases import Case, all_cases
from data.hostile.verdicts import disagreement, refusal_of_training, refusals_of_check
from PIL import Image

from fourstage.cli import main
from fourstage.data.sample import Truth

Build = Callable[[Path], object]
SLOW = (  # seconds or gigabytes each
    "terabyte", "gigabyte", "million", "bomb", "huge", "large", "sparse", "zeros of", "members", "thousand", "collide",
    ".png", ".bmp", ".jpg", ".gif", ".tif", ".webp", "megabyte", "pipe", "device", "server", "laughs", "deep", "often",
    "keys", "endings", "nested", "itself", "index of zeros", "names to", "top", "terabytes", "1e7", "in a row", "memo",
)  # fmt: skip
CASES = {name: case for name, case in all_cases().items() if not any(word in name for word in SLOW)}
FEW = [name for i, name in enumerate(CASES) if i % 3 == 0]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def disagreements(cases: list[Case], top: Path) -> list[str]:
    found: list[str] = []
    for number, case in enumerate(cases):
        folder = top / str(number)
        (folder / "outside").mkdir(parents=True)
        if words := disagreement(case.build, folder / "data", case.task):
            found.append(f"{case.name}: {words}")
    return found


@pytest.mark.parametrize("format", sorted(sound.SOUND))
def test_some_planted_faults_have_one_verdict(format: str, tmp_path: Path) -> None:
    assert disagreements([CASES[name] for name in FEW if CASES[name].format == format], tmp_path) == []


@pytest.mark.torture
def test_all_planted_faults_have_one_verdict(tmp_path: Path) -> None:
    assert disagreements(list(CASES.values()), tmp_path) == []


def _replace(path: Path, old: str, new: str, count: int = 1) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, count))


def _segmentation_mask_of_cvat(root: Path) -> None:
    """Colour masks with a labelmap.txt, and no list that other programs know."""
    write = sound.write
    write(root / "labelmap.txt", "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:250,50,83::\n")
    write(root / "ImageSets" / "Segmentation" / "default.txt", "a\nb\n")
    for name in ("a", "b"):
        write(root / "JPEGImages" / f"{name}.jpg", sound.png(1))
        write(root / "SegmentationClass" / f"{name}.png", sound.png(2))


def _two_folders(first: str, second: str, root: Path) -> None:
    for folder in (first, second):
        for i in range(3):
            sound.write(root / folder / f"{i}.png", sound.png(i))


def _broken_yaml(name: str, root: Path) -> None:
    """Every folder of YOLO, which could be taken for class folders, and a description with a syntax error."""
    sound.yolo(root)
    for split in ("train", "val"):
        for folder in ("images", "labels"):
            (root / split).mkdir(exist_ok=True)
            (root / folder / split).rename(root / split / folder)
    (root / "data.yaml").unlink()
    sound.write(root / name, "train: train/images\nval: val/images\nnames: [cat, dog\n")


def _yolo_line(line: str, root: Path) -> None:
    sound.yolo(root)
    sound.write(root / "labels" / "val" / "000.txt", line)


def _boxes_as_text(root: Path) -> None:
    sound.coco(root)
    _replace(root / "annotations" / "instances_val.json", "[4, 4, 20, 20]", '["4", "4", "20", "20"]')


def _short_run_lengths(root: Path) -> None:
    sound.coco(root)
    path = root / "annotations" / "instances_val.json"
    _replace(path, "[[4, 4, 24, 4, 24, 24, 4, 24]]", '{"size": [40, 40], "counts": [1, 2]}')


def _long_polygon_of_one(root: Path) -> None:
    """A polygon of millions of pixels beside objects without masks."""
    sound.coco(root)
    path = root / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        del annotation["segmentation"]
    content["annotations"][0]["segmentation"] = [[0, 0, 4e6, 0, 4e6, 4e6]]
    path.write_text(json.dumps(content))


def _class_of_validation_alone(root: Path) -> None:
    sound.coco(root)
    _replace(root / "annotations" / "instances_val.json", '"dog"', '"bird"')


def _no_object(split: str, root: Path) -> None:
    sound.coco(root)
    path = root / "annotations" / f"instances_{split}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"annotations": []}))


def _crowds(root: Path) -> None:
    sound.coco(root, lambda content: [one.update(iscrowd=1) for one in content["annotations"]] and None)


def _binary(root: Path) -> None:
    sound.label_maps(root)
    (root / "classes.txt").unlink()
    for path in (root / "masks").rglob("*.png"):
        with Image.open(path) as image:
            Image.fromarray(np.asarray(image) * 255).save(path)


def _binary_as_colours(root: Path) -> None:
    _binary(root)
    for path in (root / "masks").rglob("*.png"):
        with Image.open(path) as image:
            image.convert("RGB").save(path)


def _validation_alone(root: Path) -> None:
    sound.imagefolder(root)
    shutil.rmtree(root / "train")


def _keys(root: Path) -> None:
    sound.yolo(root)
    with (root / "data.yaml").open("a") as file:
        file.writelines(f"k{i}: 1\n" for i in range(150_000))


REFUSED: dict[str, tuple[Build, Truth]] = {
    "CVAT's segmentation mask 1.1": (_segmentation_mask_of_cvat, "label_map_HW"),
    "img_dir and ann_dir": (partial(_two_folders, "img_dir", "ann_dir"), "label_map_HW"),
    "images and masks": (partial(_two_folders, "images", "masks"), "label_map_HW"),
    "masks of 0 and 255 as RGB": (_binary_as_colours, "label_map_HW"),
    "images and masks in train": (partial(_two_folders, "train/images", "train/masks"), "label"),
    "data.yaml with a syntax error": (partial(_broken_yaml, "data.yaml"), "objects"),
    "another yaml with a syntax error": (partial(_broken_yaml, "pets.yaml"), "objects"),
    "yaml of many keys": (_keys, "objects"),
    "boxes as text": (_boxes_as_text, "objects"),
    "YOLO's box of 1e8": (partial(_yolo_line, "0 1e8 0.5 0.5 0.5"), "objects"),
    "YOLO's box in pixels": (partial(_yolo_line, "0 20 20 10 10"), "objects"),
    "YOLO's box in Arabic digits": (partial(_yolo_line, "0 ٠.٥ 0.5 0.5 0.5"), "objects"),
    "YOLO's class in Arabic digits": (partial(_yolo_line, "١ 0.5 0.5 0.5 0.5"), "objects"),
    "YOLO's number with an underscore": (partial(_yolo_line, "0 0.5 0.5 0.5 0_1"), "objects"),
    "a long polygon": (_long_polygon_of_one, "objects"),
    "short run lengths": (_short_run_lengths, "objects"),
    "a class of validation alone": (_class_of_validation_alone, "objects"),
    "no object in train": (partial(_no_object, "train"), "objects"),
    "no object in val": (partial(_no_object, "val"), "objects"),
    "crowd regions alone": (_crowds, "objects"),
    "masks of 0 and 255": (_binary, "label_map_HW"),
    "validation alone": (_validation_alone, "label"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_training_refuses_check_refuses_with_its_sentence(name: str, tmp_path: Path) -> None:
    build, truth = REFUSED[name]
    build(tmp_path / "data")
    sentence = refusal_of_training(tmp_path / "data", truth)
    assert sentence
    assert any(sentence in refusal for refusal in refusals_of_check(tmp_path / "data", truth))


def _categories_in_another_order(root: Path) -> None:
    sound.coco(root)
    path = root / "annotations" / "instances_val.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"categories": content["categories"][::-1]}))


def _annotations_of_nothing(root: Path) -> None:
    """What training leaves out: annotations of an image and of a category that are not listed, and an id twice."""

    def change(content: dict[str, Any]) -> None:
        first = content["annotations"][0]
        content["annotations"] += [{**first, "image_id": 999, "id": 900}, {**first, "category_id": 99}]

    sound.coco(root, change)


def _broken_mask_of_what_does_not_train(root: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        broken = {"bbox": [4, 4, 0.2, 20], "segmentation": {"size": [40, 40], "counts": [1]}, "id": 900}
        content["annotations"].append({**content["annotations"][0], **broken})

    sound.coco(root, change)


@pytest.mark.parametrize(
    "build", [_categories_in_another_order, _annotations_of_nothing, _broken_mask_of_what_does_not_train]
)
def test_what_check_passes_trains(build: Build, tmp_path: Path) -> None:
    build(tmp_path / "data")
    assert refusals_of_check(tmp_path / "data", "objects") == []
    assert refusal_of_training(tmp_path / "data", "objects") == ""


@pytest.mark.parametrize(
    "name", ["crowd regions alone", "no object in val", "YOLO's box in pixels", "images and masks in train"]
)
def test_both_commands_end_with_the_sentence(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build, truth = REFUSED[name]
    build(tmp_path / "data")
    assert main(["data", "check", str(tmp_path / "data")]) != 0
    checked = capsys.readouterr()
    recipe = "digits_visformer" if truth == "label" else "digit_scenes_mask_rcnn"
    words = ["train", recipe, "--data", str(tmp_path / "data"), "--dry-run", "num_classes=null", "workers=0"]
    assert main(words) == 2
    sentence = capsys.readouterr().err.strip().splitlines()[-1].removeprefix("fourstage: ")
    assert sentence in checked.out + checked.err
