"""Data sets with objects in their several layouts: the same scenes read alike from all of them."""

import copy
import json
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fourstage.data.checks.check import check
from fourstage.data.formats import find_format, open_dataset
from fourstage.data.loader import TrainPlan, evaluation_batches, train_batches
from fourstage.data.objects import table as object_table
from fourstage.data.objects.coco import Coco
from fourstage.data.objects.dataset import BadObjects, ObjectDataset, ObjectSubset, portrait_flags, trainable
from fourstage.data.objects.rle import decode_mask, encode_mask
from fourstage.data.objects.table import ObjectTable, Row
from fourstage.data.objects.voc import CLASSES, Voc, read_annotation
from fourstage.data.objects.yolo import Yolo, label_file, lines_of, parse_line
from fourstage.data.sample import BadImage, NoSplitError
from fourstage.data.transforms.detection import evaluation_transform, train_transform

Picture = Callable[..., Path]
FOLDER = Path(__file__).parents[2] / "golden" / "pipelines"


def nowhere(name: Any) -> str:
    return f"object {name}"


# The table.

coordinates = st.one_of(
    st.integers(-50, 700).map(float),
    st.integers(0, 65535).map(lambda n: n / 100),
    st.floats(-1e6, 1e6),
    st.sampled_from([float("nan"), -0.0]),
)
polygons = st.lists(st.lists(coordinates, max_size=12), min_size=1, max_size=3)
segmentations = st.one_of(
    st.none(), polygons, st.just({"size": [4, 4], "counts": [3, 13]}), st.just([["a", 1]]), st.just([3, 4])
)


@given(given=st.lists(st.tuples(st.integers(0, 3), segmentations), max_size=12))
@settings(max_examples=60, deadline=None)
def test_a_table_gives_back_every_segmentation(given: list[tuple[int, Any]]) -> None:
    table = ObjectTable.of((Row(image, 0, (0, 0, 5, 5), segmentation=s) for image, s in given), 4)
    table = pickle.loads(pickle.dumps(table))
    assert len(table) == len(given)
    assert table.counts_I.tolist() == [sum(image == i for image, _ in given) for i in range(4)]
    for row, (_, segmentation) in enumerate(given):
        back = table._outlines[row]  # pyright: ignore[reportPrivateUsage]
        assert json.dumps(back) == json.dumps(segmentation)


def test_hundredths_cost_two_bytes_and_other_numbers_stay_as_they_are() -> None:
    plain = [[k / 100 for k in range(60_000, 60_500)]]
    odd = [[1 / 3, 2.0, 5.5, 700.25, 1e9, -4.0]]
    table = ObjectTable.of([Row(0, 0, (0, 0, 1, 1), segmentation=plain), Row(0, 0, (0, 0, 1, 1), segmentation=odd)], 1)
    outlines = table._outlines  # pyright: ignore[reportPrivateUsage]
    assert (outlines.hundredths.dtype, len(outlines.hundredths), len(outlines.numbers)) == (np.uint16, 500, 6)
    assert outlines[0] == plain
    assert outlines[1] == odd


def test_many_polygons_are_packed_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_table, "UNPACKED", 20)
    rng = np.random.default_rng(0)
    given = [[(rng.integers(0, 9000, 8) / (100 if k % 3 else 3)).tolist()] for k in range(40)]
    table = ObjectTable.of((Row(0, 0, (0, 0, 5, 5), segmentation=s) for s in given), 1)
    assert [table._outlines[row] for row in range(40)] == given  # pyright: ignore[reportPrivateUsage]


def test_a_reference_has_what_does_not_train() -> None:
    square = [[1.0, 1, 5, 1, 5, 5, 1, 5]]
    rows = [
        Row(1, 0, (1, 1, 4, 4), 12.5, segmentation=square),
        Row(1, 1, (0, 0, 0.5, 8), segmentation=square),
        Row(0, 2, (1, 1, 4, 4), segmentation=square),
        Row(1, 1, (1, 1, 4, 4), ignored=True, segmentation=square),
        Row(1, 2, (0, 0, 9, 9), crowd=True, segmentation={"size": [9, 10], "counts": [10, 80]}),
    ]
    table = ObjectTable.of(rows, 2)
    objects, reference = table.objects(1, (9, 10), nowhere), table.reference(1, (9, 10), nowhere)
    assert objects.labels_N.tolist() == [0, 2]
    assert objects.crowd_N.tolist() == [False, True]
    assert json.loads(json.dumps(reference)) == reference
    assert reference["labels"] == [0, 1, 1, 2]
    assert reference["crowd"] == [False, False, False, True]
    assert reference["boxes"][0] == [1, 1, 5, 5]
    assert reference["areas"] == [12.5, 16, 16, 80]
    decoded = decode_mask({"size": [9, 10], "counts": reference["masks"][3]}, (9, 10))
    assert decoded is not None
    assert decoded.sum() == 80


# COCO as MMDetection reads it.


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """The recorded json, less the category that was not asked for."""
    content = json.loads((FOLDER / "coco_tiny.json").read_text())
    content["categories"] = [category for category in content["categories"] if category["name"] != "unused"]
    for annotation in content["annotations"]:  # as an object without a mask takes the masks of all
        annotation.setdefault("segmentation", [[1, 2, 11, 2, 11, 13]])
    (tmp_path / "annotations").mkdir()
    for split in ("train", "val"):
        (tmp_path / f"annotations/instances_{split}.json").write_text(json.dumps(content))
    return tmp_path


def test_coco_reads_what_mmdetection_reads(tiny: Path) -> None:
    expected = json.loads((FOLDER / "coco_tiny_expected.json").read_text())
    dataset = Coco(tiny, "train")
    assert list(dataset.category_ids) == expected["cat_ids"]
    assert list(dataset.image_ids) == expected["train_image_ids_none"]
    for index, image in enumerate(expected["test_mode_true_data_list"]):
        objects = dataset.objects(index)
        assert dataset.size(index) == (image["height"], image["width"])
        assert objects.boxes_N4.tolist() == [one["bbox"] for one in image["instances"]]
        assert objects.labels_N.tolist() == [one["bbox_label"] for one in image["instances"]]
        assert objects.crowd_N.int().tolist() == [one["ignore_flag"] for one in image["instances"]]
        assert objects.masks_NHW is not None
        for mask_HW, one in zip(objects.masks_NHW.numpy(), image["instances"], strict=True):
            if "mask" in one:
                assert np.array_equal(mask_HW, decode_mask(one["mask"], dataset.size(index)))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"filter_empty": True, "min_size": 32}, "filter_empty_gt_true_min32"),
        ({"filter_empty": False, "min_size": 32}, "filter_empty_gt_false_min32"),
        ({"filter_empty": True, "min_size": 0}, "filter_empty_gt_true_min0"),
        ({"filter_empty": False, "min_size": 0}, "none"),
    ],
)
def test_the_images_that_mmdetection_trains_on(values: dict[str, Any], name: str, tiny: Path) -> None:
    dataset = Coco(tiny, "train")
    ids = dict(zip(range(len(dataset)), dataset.image_ids, strict=True))
    names = {dataset.id(index): ids[index] for index in range(len(dataset))}
    part = trainable(dataset, **values)
    expected = json.loads((FOLDER / "coco_tiny_expected.json").read_text())[f"train_image_ids_{name}"]
    assert [names[part.id(index)] for index in range(len(part))] == expected
    assert len(part.sizes()) == len(part.counts()) == len(part) == len(portrait_flags(part))
    assert torch.equal(part.objects(0).boxes_N4, dataset.objects(0).boxes_N4)


def test_nothing_left_to_train_on_is_told(tiny: Path) -> None:
    with pytest.raises(ValueError, match="none of the 7 images is left to train on"):
        trainable(Coco(tiny, "train"), min_size=1000)


# The same scenes in three layouts.

NAMES = ("cat", "dog")
SIZES = ((40, 48), (60, 30))
SQUARES = [[(0, (8, 4, 16, 10)), (1, (24, 20, 12, 16))], [(1, (6, 6, 15, 30))]]  # label, (x, y, width, height)


def as_polygon(box: tuple[int, ...]) -> list[float]:
    x, y, width, height = box
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def write_coco(root: Path) -> None:
    images = [{"id": i, "file_name": f"{i}.png", "height": h, "width": w} for i, (h, w) in enumerate(SIZES)]
    annotations = [
        {"id": 10 * i + k, "image_id": i, "category_id": label, "bbox": list(box), "segmentation": [as_polygon(box)]}
        for i, of_image in enumerate(SQUARES)
        for k, (label, box) in enumerate(of_image)
    ]
    categories = [{"id": label, "name": name} for label, name in enumerate(NAMES)]
    for split in ("train", "valid"):
        text = json.dumps({"images": images, "annotations": annotations, "categories": categories})
        (root / split / "_annotations.coco.json").write_text(text)


def write_yolo(root: Path, *, boxes: bool = False, yaml: str = "train: images/train\nval: images/val\n") -> None:
    (root / "data.yaml").write_text(f"{yaml}nc: 2\nnames: [cat, dog]\n")
    for split in ("train", "val"):
        (root / "labels" / split).mkdir(parents=True)
        for i, ((height, width), of_image) in enumerate(zip(SIZES, SQUARES, strict=True)):
            lines = []
            for label, (x, y, w, h) in of_image:
                numbers = [v / side for v, side in zip(as_polygon((x, y, w, h)), (width, height) * 4, strict=True)]
                if boxes:
                    numbers = [(x + w / 2) / width, (y + h / 2) / height, w / width, h / height]
                lines.append(" ".join([str(label), *(f"{number:.8f}" for number in numbers)]))
            (root / "labels" / split / f"{i}.txt").write_text("\n".join(lines) + "\n\n")


def voc_text(i: int, *, name: str | None = None, head: str = "") -> str:
    height, width = SIZES[i]
    objects = "".join(
        f"<object><name>{name or NAMES[label]}</name><difficult>{int(k == 1)}</difficult><bndbox><xmin>{x + 1}</xmin>"
        f"<ymin>{y + 1}</ymin><xmax>{x + w}</xmax><ymax>{y + h}.0</ymax></bndbox></object>"
        for k, (label, (x, y, w, h)) in enumerate(SQUARES[i])
    )
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<?xml version='1.0'?>{head}<annotation><filename>{i}.png</filename>{size}{objects}</annotation>"


def write_voc(root: Path) -> None:
    (root / "Annotations").mkdir(parents=True)
    (root / "ImageSets/Main").mkdir(parents=True)
    for i in range(2):
        (root / f"Annotations/{i}.xml").write_text(voc_text(i))
    for split in ("train", "val"):
        (root / f"ImageSets/Main/{split}.txt").write_text("0\n1\n\n")


@pytest.fixture
def layouts(tmp_path: Path, picture: Picture) -> dict[str, Path]:
    roots = {name: tmp_path / name for name in ("coco", "yolo", "voc")}
    for i, size in enumerate(SIZES):
        for place in ("coco/train", "coco/valid", "yolo/images/train", "yolo/images/val", "voc/JPEGImages"):
            picture(f"{place}/{i}.png", *size)
    write_coco(roots["coco"])
    write_yolo(roots["yolo"])
    write_voc(roots["voc"])
    return roots


def opened(root: Path, split: Any) -> ObjectDataset:
    dataset = open_dataset(root, split)
    assert isinstance(dataset, Coco | Yolo | Voc)
    return dataset


@pytest.mark.parametrize("split", ["train", "val"])
def test_three_layouts_say_the_same(split: str, layouts: dict[str, Path]) -> None:
    for name, root in layouts.items():
        dataset = opened(root, split)
        assert dataset.classes == (NAMES if name != "voc" else CLASSES)
        assert (dataset.truths, len(dataset), dataset.note) == (("objects",), 2, "")
        assert dataset.sizes().tolist() == [list(size) for size in SIZES]
        assert dataset.counts().tolist() == [2, 1]
        assert dataset.has_masks == (name != "voc")
        assert portrait_flags(dataset) == b"\0\1"
        for i, of_image in enumerate(SQUARES):
            sample = pickle.loads(pickle.dumps(dataset)).sample(i)
            assert (sample.original_size, sample.image.shape) == (SIZES[i], (*SIZES[i], 3))
            objects, again = sample.objects, dataset.objects(i)
            assert objects is not None
            boxes = torch.tensor([[x, y, x + w, y + h] for _, (x, y, w, h) in of_image]).float()
            torch.testing.assert_close(objects.boxes_N4, boxes, atol=1e-4, rtol=0)
            assert [dataset.classes[k] for k in objects.labels_N.tolist()] == [NAMES[k] for k, _ in of_image]
            assert objects.crowd_N.tolist() == [name == "voc" and k == 1 for k in range(len(of_image))]
            assert torch.equal(objects.boxes_N4, again.boxes_N4)
            if objects.masks_NHW is not None:
                areas = objects.masks_NHW.sum(dim=(1, 2)).tolist()
                assert areas == [w * h for _, (_, _, w, h) in of_image]
            assert (sample.reference is not None) == (split == "val")
            reference = dataset.reference(i)
            assert sample.reference in (None, reference)
            np.testing.assert_allclose(reference["areas"], [w * h for _, (_, _, w, h) in of_image], rtol=1e-5)


def test_three_layouts_are_clean(layouts: dict[str, Path]) -> None:
    for name, root in layouts.items():
        findings, summary = check(root)
        assert {one.title for one in findings} == {"tiny image"} | ({"leak"} if name == "voc" else set()), findings
        assert summary.splits["train"].per_class == {"cat": 1, "dog": 2}
        assert summary.splits["val"].images == 2


# YOLO.


@pytest.mark.parametrize(
    "yaml",
    [
        "path: .\ntrain: [images/train]\nval: images/val\n",
        "path: /nowhere/else\ntrain: ../images/train\nvalid: ../images/val\n",
        "train: train.txt\ntest: images/val\n",
    ],
)
def test_where_a_data_yaml_finds_images(yaml: str, tmp_path: Path, picture: Picture) -> None:
    for split in ("train", "val"):
        for i, size in enumerate(SIZES):
            picture(f"images/{split}/{i}.png", *size)
    write_yolo(tmp_path, boxes=True, yaml=yaml)
    (tmp_path / "train.txt").write_text("./images/train/0.png\nimages/train/1.png\n")
    for split in ("train", "val"):
        dataset = Yolo(tmp_path, split)
        assert [dataset.id(i) for i in range(2)] == [f"images/{split}/0.png", f"images/{split}/1.png"]
        assert not dataset.has_masks
        boxes = [[x, y, x + w, y + h] for _, (x, y, w, h) in SQUARES[0]]
        torch.testing.assert_close(dataset.objects(0).boxes_N4, torch.tensor(boxes).float(), atol=1e-4, rtol=0)


def test_images_without_a_file_hold_nothing(layouts: dict[str, Path]) -> None:
    (layouts["yolo"] / "labels/train/0.txt").unlink()
    (layouts["yolo"] / "labels/train/1.txt").write_text("")
    dataset = Yolo(layouts["yolo"], "train")
    assert dataset.counts().tolist() == [0, 0]
    objects = dataset.sample(0).objects
    assert objects is not None
    assert objects.boxes_N4.shape == (0, 4)


def test_polygons_train_where_they_are(layouts: dict[str, Path]) -> None:
    before = Yolo(layouts["yolo"], "train").objects(1).masks_NHW
    (layouts["yolo"] / "labels/train/0.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    dataset = Yolo(layouts["yolo"], "train")
    first, second = dataset.objects(0), dataset.objects(1)
    assert first.masked_N is not None
    assert second.masks_NHW is not None
    assert before is not None
    assert first.masked_N.tolist() == [False]
    assert torch.equal(second.masks_NHW, before)
    assert "1 object of the train split" in dataset.note


def test_objects_that_are_all_difficult_are_refused(layouts: dict[str, Path]) -> None:
    for path in layouts["voc"].rglob("*.xml"):
        text = path.read_text().replace("<difficult>0</difficult>", "")
        path.write_text(text.replace("<bndbox>", "<difficult>1</difficult><bndbox>"))
    with pytest.raises(ValueError, match=r"objects? of the val split of .* is marked difficult"):
        Voc(layouts["voc"], "val").refuse_unlearnable("val")


def test_lines_of_yolo() -> None:
    assert parse_line("1 0.5 0.5 0.5 0.25", 2) == (1, (0.25, 0.375, 0.5, 0.25), None)
    assert parse_line("0.0 .1 .2 .3 .2 .3 .6", 2) == (
        0,
        (0.1, 0.2, 0.3 - 0.1, 0.6 - 0.2),
        [0.1, 0.2, 0.3, 0.2, 0.3, 0.6],
    )
    for text, sentence in (
        ("2 .5 .5 .5 .5", "the class 2 is not one of the 2"),
        ("-1 .5 .5 .5 .5", "the class -1"),
        ("1 .5 .5 .5", "3 numbers behind its class"),
        ("1 .5 .5 .5 .5 .5", "5 numbers"),
        ("cat .5 .5 .5 .5", "is not a class and numbers"),
        ("1 .5 nan .5 .5", "has a number that is not finite"),
        ("1 .5 .5 inf", "has a number that is not finite"),
    ):
        with pytest.raises(ValueError, match=sentence):
            parse_line(text, 2)
    assert label_file(Path("a/images/b/images/c.d.jpg")) == Path("a/images/b/labels/c.d.txt")
    assert label_file(Path("a/c.jpg")) == Path("a/c.txt")


def test_a_broken_yolo_folder_is_told(layouts: dict[str, Path]) -> None:
    root = layouts["yolo"]
    (root / "labels/train/0.txt").write_text(
        "0 0.5 0.5 0.2 0.2\n7 0.5 0.5 0.2 0.2\n0 0.5\n1 2.5 2.5 0.2 0.2\n1 0.5 0.5 -0.2 0.2\n1 0.5 0.5 0.001 0.2\n"
    )
    (root / "labels/val/1.txt").unlink()
    (root / "images/val/0.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"labels/train/0\.txt, line 2: the class 7"):
        Yolo(root, "train")
    kinds = Counter(f"{finding.severity}: {finding.title}" for finding in check(root).findings)
    assert kinds == {
        "error: unknown category": 1, "error: broken line": 1, "warning: box outside": 1, "warning: inverted box": 1,
        "warning: empty box": 1, "error: unreadable image": 1, "note: image without objects": 1,
        "warning: masks for some": 1, "warning: tiny image": 2, "error: training refuses this data": 1,
    }  # fmt: skip


def test_a_validation_split_of_yolo_without_a_folder_says_how_to_go_on(tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text("train: .\nval: nowhere\nnames: [a]\n")
    with pytest.raises(ValueError, match="remove the line `val:`, and a tenth of the training images is held out"):
        Yolo(tmp_path, "val")


@pytest.mark.parametrize(
    ("yaml", "sentence"),
    [
        ("train: nowhere\nval: nowhere\nnames: [a]\n", "says `train: nowhere`, but there is no"),
        ("train: .\nval: .\nnames: [a]\n", "holds no images"),
        ("val: .\nnames: [a]\n", "names no images for train"),
        ("train: .\nval: .\nnames: {0: a, 2: b}\n", "names is a list, or a mapping"),
        ("train: .\nval: .\nnc: 3\nnames: [a]\n", "as many as nc says"),
        ("train: 3\nval: .\nnames: [a]\n", "train is a folder or a list"),
    ],
)
def test_a_data_yaml_that_does_not_fit_is_told(yaml: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text(yaml)
    with pytest.raises(ValueError, match=sentence) as caught:
        Yolo(tmp_path, "train")
    assert "\n" not in str(caught.value)
    assert check(tmp_path).findings[0].severity == "error"


def test_label_files_without_image_are_told(layouts: dict[str, Path]) -> None:
    """Other texts may lie among them, and images of no split beside those of one."""
    labels = layouts["yolo"] / "labels/train"
    (labels / "99.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (labels / "classes.txt").write_text("cat\ndog\n")
    (labels / "empty.txt").write_text("")
    (layouts["yolo"] / "list.txt").write_text("images/train/0.png\n")
    yaml = layouts["yolo"] / "data.yaml"
    for train in ("images/train", "list.txt"):
        yaml.write_text(f"train: {train}\nval: images/val\nnames: [cat, dog]\n")
        [finding] = [one for one in check(layouts["yolo"]).findings if one.title == "label file without image"]
        assert (finding.severity, finding.where) == ("warning", str(labels / "99.txt"))


# Pascal VOC.


def test_several_years_are_read_together(tmp_path: Path, picture: Picture) -> None:
    for year in ("VOC2007", "VOC2012"):
        write_voc(tmp_path / "VOCdevkit" / year)
        for i, size in enumerate(SIZES):
            picture(f"VOCdevkit/{year}/JPEGImages/{i}.jpg", *size)
    for root in (tmp_path, tmp_path / "VOCdevkit"):
        dataset = Voc(root, "train")
        assert len(dataset) == 4
        assert len({dataset.id(i) for i in range(4)}) == 4
        assert dataset.sample(3).original_size == SIZES[1]


def test_trainval_belongs_to_test(layouts: dict[str, Path]) -> None:
    lists = layouts["voc"] / "ImageSets/Main"
    (lists / "val.txt").rename(lists / "test.txt")
    (lists / "trainval.txt").write_text("1\n")
    assert (len(Voc(layouts["voc"], "train")), len(Voc(layouts["voc"], "val"))) == (1, 2)
    (lists / "test.txt").unlink()
    stems = sorted(path.stem for path in (layouts["voc"] / "Annotations").iterdir())
    (lists / "trainval.txt").write_text("\n".join(stems))
    train, val = Voc(layouts["voc"], "train"), Voc(layouts["voc"], "val")
    ids = sorted(one.id(i) for one in (train, val) for i in range(len(one)))
    assert ids == [f"Annotations/{stem}" for stem in stems]
    assert (
        f"trainval.txt has no validation split: a fixed 10% of the images (1 of {len(stems)}) is held out" in val.note
    )
    for name in ("train.txt", "trainval.txt"):
        (lists / name).rename(lists / "val.txt")
    with pytest.raises(NoSplitError, match=r"ImageSets/Main/train\.txt is needed"):
        Voc(layouts["voc"], "train")


def test_xml_beside_the_images(tmp_path: Path, picture: Picture) -> None:
    for split in ("train", "valid"):
        for i, size in enumerate(SIZES):
            picture(f"{split}/{i}.png", *size)
            (tmp_path / split / f"{i}.xml").write_text(voc_text(i, name=f"thing {i}"))
    assert find_format(tmp_path).name == "Pascal VOC"
    dataset = Voc(tmp_path, "val")
    assert dataset.classes == ("thing 0", "thing 1")
    (tmp_path / "classes.txt").write_text("thing 1\nthing 0\n")
    assert Voc(tmp_path, "val").classes == ("thing 1", "thing 0")
    (tmp_path / "classes.txt").write_text("thing 1\n")
    with pytest.raises(ValueError, match="has a 'thing 0', which is not a class of thing 1"):
        Voc(tmp_path, "val")
    assert "unknown category" in {finding.title for finding in check(tmp_path).findings}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("<annotation>", "not an annotation of Pascal VOC"),
        (voc_text(0, head='<!DOCTYPE a [<!ENTITY b "cc">]>'), "a document type or entities"),
        (voc_text(0, head='<!DOCTYPE a SYSTEM "file:///etc/passwd">').encode("utf-16"), "a document type or entities"),
        ("<annotation><object><name>cat</name></object></annotation>", "needs <name> and <bndbox>"),
        (voc_text(0).replace("<xmin>9</xmin>", ""), "it must be xmin, ymin, xmax, ymax"),
        (b"\xff\xfe\x00", "not an annotation of Pascal VOC"),
    ],
)
def test_xml_that_is_not_vocs_is_told(text: str | bytes, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    path.write_bytes(text.replace("version='1.0'", "version='1.0'").encode() if isinstance(text, str) else text)
    with pytest.raises(ValueError, match=sentence) as caught:
        read_annotation(path)
    assert "\n" not in str(caught.value)


def test_a_broken_voc_folder_is_told(layouts: dict[str, Path], picture: Picture) -> None:
    root = layouts["voc"]
    (root / "Annotations/0.xml").write_text(voc_text(0).replace("<xmax>24</xmax>", "<xmax>4</xmax>"))
    picture("voc/JPEGImages/1.png", 50, 50)
    with pytest.raises(BadImage, match=r"it is 50 x 50, but .*1\.xml says 30 x 60"):
        Voc(root, "val").sample(1)
    (root / "ImageSets/Main/train.txt").write_text("0\n1\nmissing\n")
    with pytest.raises(ValueError, match=r"missing\.xml is listed, but there is no such file"):
        Voc(root, "train")
    kinds = Counter(f"{finding.severity}: {finding.title}" for finding in check(root).findings)
    assert kinds == {
        "error: unreadable image": 1, "error: broken annotation": 1, "error: image of another size": 2,
        "warning: inverted box": 2, "warning: leak": 2,
    }  # fmt: skip


def test_a_broken_annotation_is_named_once(layouts: dict[str, Path]) -> None:
    path = layouts["voc"] / "Annotations/0.xml"
    for text, what in (
        ("<annotation>", "is not an annotation of Pascal VOC: no element found"),
        (None, "is listed, but"),
    ):
        path.write_text(text) if text else path.unlink()
        [told] = {str(one) for one in check(layouts["voc"]).findings if one.title == "broken annotation"}
        assert told.startswith(f"{path} {what}")
        assert told.count("0.xml") == 1


def test_classes_of_val_that_train_has_not_are_told(tmp_path: Path, picture: Picture) -> None:
    for split, name in (("train", "cat"), ("val", "kitten")):
        for i, size in enumerate(SIZES):
            picture(f"{split}/{i}.png", *size)
            (tmp_path / split / f"{i}.xml").write_text(voc_text(i, name=name))
    [finding] = [one for one in check(tmp_path).findings if one.title == "categories differ"]
    assert finding.severity == "warning"
    assert "'kitten' for val and none of them for train" in finding.what
    [refused] = [one for one in check(tmp_path).findings if one.title == "training refuses this data"]
    assert "class 'kitten', which the training split lacks" in refused.do
    (tmp_path / "classes.txt").write_text("cat\n")  # now no label is one of them
    titles = {"unknown category", "tiny image", "training refuses this data"}
    assert {one.title for one in check(tmp_path).findings} == titles


# From disk to batch.


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_of_objects(workers: int, layouts: dict[str, Path]) -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    train, val = opened(layouts["coco"], "train"), opened(layouts["coco"], "val")
    plan = TrainPlan(len(train), 2, groups=portrait_flags(train))
    transform = train_transform("resize", mean=mean, std=std, scale=(120, 64), paste_from=train)
    [[batch]] = train_batches(train, plan, transform, first_step=3, last_step=4, divisor=32, workers=workers)
    assert batch.images_BCHW.shape in ((2, 3, 128, 96), (2, 3, 128, 128))
    assert batch.objects is not None
    assert batch.references is None
    for objects in batch.objects:
        assert objects.masks_NHW is not None
        assert objects.masks_NHW.shape[1:] == batch.images_BCHW.shape[2:]
    test = evaluation_transform((120, 64), mean=mean, std=std)
    [first, second] = evaluation_batches(val, test, batch_size=1, workers=workers)
    assert (first.images_BCHW.shape, second.images_BCHW.shape) == ((1, 3, 64, 77), (1, 3, 120, 60))
    assert (first.sizes, first.original_sizes) == (((64, 77),), ((40, 48),))
    assert first.references == (val.reference(0),)
    assert second.objects is None


# Views and recognition.


def test_a_part_reads_the_right_images(layouts: dict[str, Path]) -> None:
    whole = opened(layouts["coco"], "val")
    part = ObjectSubset(whole, np.array([1]))
    assert (len(part), part.id(0), part.path(0).name) == (1, "1.png", "1.png")
    assert part.sample(0).id == "1.png"
    assert part.reference(0) == whole.reference(1)


def test_a_folder_that_can_be_read_in_two_ways(tmp_path: Path, picture: Picture) -> None:
    for name in ("cat", "dog"):
        picture(f"train/{name}/0.png")
    (tmp_path / "data.yaml").write_text("train: train\nval: train\nnames: [cat, dog]\n")
    assert find_format(tmp_path).name == "YOLO"
    assert find_format(tmp_path, "objects").name == "YOLO"
    assert find_format(tmp_path, "label").name == "YOLO"  # else boxes would train a classifier by their folders
    assert find_format(tmp_path, "label_map_HW").name == "YOLO"
    (tmp_path / "data.yaml").write_text("learning_rate: 3\n")
    assert find_format(tmp_path).name == "ImageFolder"


def test_turned_photographs_have_the_size_that_is_shown(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "images").mkdir()
    Image.new("RGB", (60, 40)).save(tmp_path / "images/a.jpg", exif=exif)
    (tmp_path / "data.yaml").write_text("train: images\nval: images\nnames: [a]\n")
    dataset = Yolo(tmp_path, "train")
    assert dataset.sizes().tolist() == [[60, 40]]
    assert dataset.sample(0).original_size == (60, 40)


def test_a_mask_encodes_and_decodes() -> None:
    mask_HW = np.random.default_rng(0).random((7, 9)) < 0.5
    assert np.array_equal(decode_mask(encode_mask(mask_HW), (7, 9)), mask_HW)  # pyright: ignore[reportArgumentType]


def test_a_part_does_not_ask_for_the_headers_of_others(tmp_path: Path, picture: Picture) -> None:
    """An image that is skipped because it is broken is not asked for its size."""
    picture("images/a.png", 60, 40)
    picture("images/b.png", 50, 70)
    (tmp_path / "images/c.png").write_bytes(b"no image")
    (tmp_path / "data.yaml").write_text("train: images\nval: images\nnames: [a]\n")
    dataset = Yolo(tmp_path, "train")
    part = ObjectSubset(dataset, np.array([1]))
    assert part.sizes().tolist() == [list(dataset.sample(1).original_size)]
    assert len(trainable(part, filter_empty=False)) == 1
    with pytest.raises(BadImage, match=r"c\.png"):
        dataset.sizes()


def test_an_image_without_a_header_is_kept_only_where_another_takes_its_place(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name, sides in (("a", (48, 40)), ("b", (40, 48)), ("c", (16, 16))):
        Image.new("RGB", sides).save(tmp_path / f"images/{name}.png")
    (tmp_path / "images/d.png").write_bytes(b"no image")
    (tmp_path / "data.yaml").write_text("train: images\nval: images\nnames: [a]\n")
    dataset = Yolo(tmp_path, "train")
    with pytest.raises(BadImage, match=r"d\.png"):
        trainable(dataset, filter_empty=False)
    with pytest.raises(BadImage, match=r"d\.png"):
        portrait_flags(dataset)
    kept = trainable(dataset, filter_empty=False, skip_bad_images=True)
    assert [kept.id(i) for i in range(len(kept))] == [dataset.id(i) for i in (0, 1, 3)]
    assert portrait_flags(dataset, skip_bad_images=True) == bytes([0, 1, 0, 0])


def test_what_is_wrong_with_an_object_passes_out_of_a_loader_process() -> None:
    error = copy.copy(BadObjects("a.jpg", "annotation 3: its mask is broken"))
    assert (str(error), error.path, error.reason) == ("annotation 3: its mask is broken", "a.jpg", str(error))


def write_pose(root: Path, picture: Picture, line: str, shape: str = "[2, 3]") -> Path:
    for split in ("train", "val"):
        picture(f"images/{split}/a.png")
        (root / "labels" / split).mkdir(parents=True)
        (root / "labels" / split / "a.txt").write_text(line)
    (root / "data.yaml").write_text(f"train: images/train\nval: images/val\nnames: [person]\nkpt_shape: {shape}\n")
    return root


def test_keypoints_of_yolo_are_left_out_aloud(tmp_path: Path, picture: Picture) -> None:
    root = write_pose(tmp_path, picture, "0 0.5 0.5 0.5 0.25 0.1 0.1 2 0.9 0.9 1\n")
    dataset = Yolo(root, "train")
    height, width = dataset.sizes([0])[0].tolist()
    expected = torch.tensor([[0.25 * width, 0.375 * height, 0.75 * width, 0.625 * height]])
    torch.testing.assert_close(dataset.objects(0).boxes_N4, expected.float())
    assert not dataset.has_masks
    assert "the keypoints of its objects are left out, and their boxes are used" in dataset.note
    findings = check(root).findings
    assert not [one for one in findings if one.severity == "error"]
    [note] = [str(one) for one in findings if one.title == "keypoints"]
    assert note.startswith(f"{root / 'data.yaml'} has kpt_shape: the keypoints of its objects")
    assert note.count("data.yaml") == 1


@pytest.mark.parametrize(
    ("line", "shape", "said"),
    [
        ("0 0.5 0.5 0.5 0.25 0.1 0.1 2", "[2, 3]", "has 7 numbers behind its class, and kpt_shape asks for 10"),
        ("0 0.5 0.5 0.5 0.25", "[2, 3]", "asks for 10"),
        ("0 0.5 0.5 0.5 0.25", "[2, 4]", r"kpt_shape is the number of keypoints and 2 or 3, as \[17, 3\]"),
        ("0 0.5 0.5 0.5 0.25", "many", "kpt_shape is the number"),
    ],
)
def test_poses_that_do_not_fit_are_told(line: str, shape: str, said: str, tmp_path: Path, picture: Picture) -> None:
    with pytest.raises(ValueError, match=said):
        Yolo(write_pose(tmp_path, picture, line, shape), "train")


@pytest.mark.parametrize("word", ["1e8", "20", "-11", "٠.٥", "0_1", "0x1", "1,5"])
def test_numbers_that_are_no_units_of_the_image_are_refused(word: str) -> None:
    with pytest.raises(ValueError, match=r"units of the image|is not a class and numbers"):
        parse_line(f"0 0.5 {word} 0.5 0.5", 1)


def test_the_remedy_fits_the_reason_why_nothing_is_left(tiny: Path) -> None:
    for filter_empty in (True, False):
        with pytest.raises(ValueError, match="below 1000 pixels; give larger ones"):
            trainable(Coco(tiny, "train"), min_size=1000, filter_empty=filter_empty)


def test_sizes_are_those_of_a_png_that_exif_turns(picture: Picture, tmp_path: Path) -> None:
    for split in ("train", "val"):
        path = picture(f"images/{split}/a.png", 40, 60)
        turned = Image.Exif()
        turned[0x112] = 6
        Image.open(path).save(path, exif=turned)
        (tmp_path / "labels" / split).mkdir(parents=True)
        (tmp_path / "labels" / split / "a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "data.yaml").write_text("names: [cat]\ntrain: images/train\nval: images/val\n")
    dataset = Yolo(tmp_path, "train")
    assert dataset.sample(0).original_size == (60, 40)
    assert dataset.sizes().tolist() == [[60, 40]]
    assert portrait_flags(dataset) == b"\1"


def test_a_label_file_of_windows_may_begin_with_its_mark(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf0 0.5 0.5 0.5 0.5\n")
    assert lines_of(tmp_path / "a.txt") == [(1, "0 0.5 0.5 0.5 0.5")]
