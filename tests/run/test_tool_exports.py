"""The exports of annotation tools, from `data check` to one trained step."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run.tool_exports import BOX, BOXES, COUNT, MAPS, NAMES, WITH_SPLITS, label, label_map, labelimg_voc, one_json, xml

from fourstage.cli import main
from fourstage.data.checks.check import check
from fourstage.data.formats import open_dataset
from fourstage.data.objects.dataset import ObjectDataset

STEP = ["length=1it", "warmup=0it", "workers=0", "batch_size=2", "log_every=1", "evaluate_every=1it"]
DETECTOR = [
    "digit_scenes_retinanet",
    "method_args={channels: 16}",
    "augmentation.scale=[32,32]",
    "evaluation.scale=[32,32]",
]
SEGMENTOR = ["digit_scenes_semantic_fpn", "method_args={neck_channels: 16, channels: 16}", "augmentation.crop=[32,32]"]


def number(id: str) -> int:
    """The position of an image among all, from its name."""
    return int(id.split("frame_")[1][:6])


def opened(data: Path) -> list[ObjectDataset]:
    """Both splits, which share no image and hold all of them, but for Roboflow's test split."""
    splits = [open_dataset(data, "train", truth="objects"), open_dataset(data, "val", truth="objects")]
    ids = sorted(number(one.id(i)) for one in splits for i in range(len(one)))
    assert ids == list(range(COUNT))[: len(ids)]
    return splits  # pyright: ignore[reportReturnType]


def label_maps(data: Path) -> list[Any]:
    dataset = open_dataset(data, "train", truth="label_map_HW")
    return [dataset.sample(i).label_map_HW for i in range(len(dataset))]


def trained(data: Path, out: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Train one step; return what was printed."""
    recipe, *more = words
    assert main(["train", recipe, "--data", str(data), "--out", str(out), *STEP, *more]) == 0, capsys.readouterr().err
    assert (out / "checkpoints" / "last.pt").is_file()
    return capsys.readouterr().out


def checked(data: Path, name: str) -> None:
    """The check finds no error and no warning, and says where a tenth is held out."""
    findings, summary = check(str(data))
    assert [str(finding) for finding in findings if finding.severity != "note"] == []
    whole = name.startswith(WITH_SPLITS)
    assert sum(split.images for split in summary.splits.values()) == (10 if name.startswith("Roboflow") else COUNT)
    assert any("held out for validation" in str(finding) for finding in findings) is not whole


@pytest.mark.parametrize("name", BOXES)
def test_boxes_of_a_tool_train(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = BOXES[name](tmp_path / "data")
    checked(data, name)
    left, top, width, height = BOX
    for dataset in opened(data):
        assert dataset.classes == NAMES
        for i in range(len(dataset)):
            objects = dataset.sample(i).objects
            assert objects is not None
            assert objects.labels_N.tolist() == [label(number(dataset.id(i)))]
            expected = torch.tensor([[left, top, left + width, top + height]], dtype=torch.float32)
            close = 3 if name == "labelme" else 1e-3  # a circle is not as wide as the box
            assert torch.allclose(objects.boxes_N4, expected, atol=close)
    said = trained(data, tmp_path / "run", DETECTOR, capsys)
    assert ("held out for validation" in said.replace("\n", " ")) is not name.startswith(WITH_SPLITS)


@pytest.mark.parametrize("name", MAPS)
def test_label_maps_of_a_tool_train(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = MAPS[name](tmp_path / "data")
    checked(data, name)
    for split in ("train", "val"):
        dataset = open_dataset(data, split, truth="label_map_HW")
        assert dataset.classes == ("background", *NAMES)
        for i in range(len(dataset)):
            map_HW = dataset.sample(i).label_map_HW
            assert map_HW is not None
            assert np.array_equal(map_HW.numpy(), label_map(number(dataset.id(i))))
    trained(data, tmp_path / "run", SEGMENTOR, capsys)


@pytest.mark.parametrize("listed", [True, False])
def test_cvat_masks_keep_the_folders_of_the_images(listed: bool, tmp_path: Path) -> None:
    data = MAPS["CVAT Segmentation mask 1.1"](tmp_path / "data")
    for folder in ("JPEGImages", "SegmentationClass"):
        (data / folder).rename(data / "old")
        (data / folder).mkdir()
        (data / "old").rename(data / folder / "camera 1")
    lists = data / "ImageSets/Segmentation/default.txt"
    lists.write_text("".join(f"camera 1/{line}\n" for line in lists.read_text().split()))
    if not listed:
        lists.unlink()
    checked(data, "CVAT Segmentation mask 1.1")
    for map_HW, i in zip(label_maps(data), range(COUNT), strict=False):
        assert map_HW.unique().numel() == 2, i


def test_a_note_of_both_splits_is_printed_once(tmp_path: Path) -> None:
    notes = [str(f) for f in check(one_json(tmp_path / "data")).findings if f.severity == "note"]
    assert sum("held out" in note for note in notes) == 1
    assert len(notes) == len(set(notes))


def test_names_are_resolved_where_exactly_one_file_fits(tmp_path: Path) -> None:
    data = one_json(tmp_path / "data")
    first = next(iter(sorted((tmp_path / "data/photos").iterdir())))
    dataset = open_dataset(data, "train")
    assert "12 names that no file has as it is" in getattr(dataset, "note", "")
    exported = open_dataset(BOXES["Label Studio COCO"](tmp_path / "studio"), "train")
    assert ": images/8f8a1b2c-frame_000000 copy.jpg is read." in getattr(exported, "note", "")
    (tmp_path / "data/b/photos").mkdir(parents=True)
    (tmp_path / "data/b/photos" / first.name).write_bytes(first.read_bytes())
    (tmp_path / "outside.jpg").write_bytes(first.read_bytes())
    errors = [str(f) for f in check(data).findings if f.severity == "error"]  # two files fit the first name
    assert len(errors) == 1
    assert first.name in errors[0]
    content = json.loads(data.read_text())
    content["images"][0]["file_name"] = "../outside.jpg"
    data.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"outside\.jpg, which is not in the data folder"):
        open_dataset(data, "train")


@pytest.mark.parametrize(
    ("mark", "crowd"),
    [("<Difficult>True</Difficult>", True), ("<difficult> 1 </difficult>", True), ("<DIFFICULT>0</DIFFICULT>", False)],
)
def test_difficult_in_any_case(mark: str, crowd: bool, tmp_path: Path) -> None:
    root = labelimg_voc(tmp_path)
    for path in root.glob("*.xml"):
        path.write_text(xml(0, "a.jpg", mark))
    objects = open_dataset(root, "train").sample(0).objects
    assert objects is not None
    assert objects.crowd_N.tolist() == [crowd]


@pytest.mark.parametrize("content", ["Käfer\nHund\n".encode("latin-1"), "Käfer\nHund\n".encode("utf-16")])
def test_class_lists_of_other_encodings_are_read(content: bytes, tmp_path: Path) -> None:
    root = BOXES["Label Studio YOLO"](tmp_path)
    (root / "classes.txt").write_bytes(content)
    assert open_dataset(root, "train").classes == ("Käfer", "Hund")
    said = [str(finding) for finding in check(root).findings if finding.title == "text that is not UTF-8"]
    assert [str(root / "classes.txt") in text for text in said] == [True]


def test_a_yaml_of_another_encoding_is_read(tmp_path: Path) -> None:
    root = BOXES["Roboflow YOLO"](tmp_path)
    text = (root / "data.yaml").read_text().replace("'cat'", "'Kätzchen'")
    for encoding in ("latin-1", "utf-8-sig"):
        (root / "data.yaml").write_bytes(text.encode(encoding))
        assert open_dataset(root, "train").classes == ("Kätzchen", "dog")


def test_a_colour_without_a_class_is_named(tmp_path: Path) -> None:
    root = MAPS["CVAT Segmentation mask 1.1"](tmp_path)
    lines = (root / "labelmap.txt").read_text().splitlines()
    (root / "labelmap.txt").write_text("\n".join(lines[:-1]))
    with pytest.raises(ValueError, match=r"480 pixels have colours such as \(51, 221, 255\), which labelmap\.txt"):
        label_maps(root)
    assert any(finding.severity == "error" for finding in check(root).findings)


def test_one_tenth_is_held_out_alike_on_every_machine(tmp_path: Path) -> None:
    ids = [[one.id(i) for i in range(len(one))] for one in opened(BOXES["CVAT COCO 1.0"](tmp_path))]
    assert (len(ids[0]), ids[1]) == (11, ["frame_000007.PNG"])
