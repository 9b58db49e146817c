"""A class means the same in both splits: labels are matched by the names of their classes."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data.hostile import sound

from fourstage.data.formats import open_dataset
from fourstage.data.mapped_classes import KnownClasses, map_classes
from fourstage.data.sample import IGNORE, Dataset, Sample
from fourstage.recipe import resolve
from fourstage.run.splits import Splits, open_splits
from fourstage.run.task_protocol import protocol_of
from fourstage.tasks.detection import coco_ap

KNOWN = KnownClasses(("cat", "cow", "dog"), "the training split")


def coco(root: Path, listed: list[tuple[int, str]], *, used: tuple[str, ...]) -> Path:
    """Write COCO folders of three classes, with another list of categories for validation."""
    sound.coco(root, lambda c: c.update(categories=[{"id": i, "name": n} for i, n in enumerate(KNOWN.names, 1)]))
    path = root / "annotations" / "instances_val.json"
    content = json.loads(path.read_text())
    content["categories"] = [{"id": i, "name": name} for i, name in listed]
    number = {name: i for i, name in listed}
    for i, annotation in enumerate(content["annotations"]):
        annotation["category_id"] = number[used[i % len(used)]]
    path.write_text(json.dumps(content))
    return root


def splits(root: Path, recipe: str = "digit_scenes_mask_rcnn") -> Splits:
    return open_splits(protocol_of(resolve(recipe, ["num_classes=null"], {"data": str(root)}).recipe), show=False)


def perfect_score(val: Dataset, names: list[str]) -> float:
    """Return the average precision of a detector of the training split's classes that finds these objects."""
    records: dict[str, Any] = {}
    for i, name in enumerate(names):
        truth = val.sample(i).reference
        assert truth is not None
        guess = {"boxes": truth["boxes"], "labels": [KNOWN.names.index(name)], "scores": [1.0]}
        records[val.id(i)] = {**guess, "masks": truth["masks"], "truth": truth}
    return coco_ap.score(records, KNOWN.names)["box_map"]


@pytest.mark.parametrize(
    ("listed", "used", "said"),
    [
        ([(3, "dog"), (1, "cat"), (2, "cow")], ("dog", "cat", "cow", "cow"), "(in another order)"),
        ([(7, "dog")], ("dog",), "(1 of 3)"),
        ([(9, "dog"), (4, "bird"), (5, "cat")], ("cat", "dog"), "(in another order, 2 of 3, 1 more without a label)"),
    ],
)
def test_a_perfect_detector_scores_100_whatever_order_the_validation_json_has(
    listed: list[tuple[int, str]], used: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    opened = splits(coco(tmp_path / "data", listed, used=used))
    assert opened.val.classes == opened.train.classes == KNOWN.names
    assert perfect_score(opened.val, [used[i % len(used)] for i in range(4)]) == pytest.approx(100)
    [first, *_] = (opened.val.sample(i) for i in range(4))
    assert first.objects is not None
    assert first.objects.labels_N.tolist() == [KNOWN.names.index(used[0])]
    assert said in opened.val.note  # pyright: ignore[reportAttributeAccessIssue]


def test_the_same_list_is_left_alone(tmp_path: Path) -> None:
    opened = splits(coco(tmp_path / "data", list(enumerate(KNOWN.names, 1)), used=("dog", "cat")))
    assert not opened.val.note  # pyright: ignore[reportAttributeAccessIssue]
    assert type(opened.val) is type(opened.train)


def test_a_class_that_training_lacks_is_refused_where_it_has_objects(tmp_path: Path) -> None:
    root = coco(tmp_path / "data", [(1, "cat"), (2, "dgo")], used=("cat", "dgo"))
    with pytest.raises(ValueError, match=r"validation split of .* class 'dgo', .*training split lacks: .*mean 'dog'"):
        splits(root)


def test_two_classes_of_one_name_cannot_be_matched(tmp_path: Path) -> None:
    root = coco(tmp_path / "data", [(1, "cat"), (2, "cat")], used=("cat",))
    with pytest.raises(ValueError, match="two classes called 'cat'"):
        splits(root)


class Maps:
    """Two label maps whose classes are named in an order of their own."""

    classes, truths, note = ("dog", "cat"), ("label_map_HW",), "a note."
    palette = ((1, 1, 1), (2, 2, 2))

    def __len__(self) -> int:
        return 2

    def id(self, index: int) -> str:
        return str(index)

    def sample(self, index: int) -> Sample:
        values_HW = torch.tensor([[0, 1], [IGNORE, 0]], dtype=torch.uint8)
        return Sample("a", np.zeros((2, 2, 3), np.uint8), (2, 2), label_map_HW=values_HW)


def test_label_maps_keep_what_is_ignored() -> None:
    mapped = pickle.loads(pickle.dumps(map_classes(Maps(), "the data", KNOWN)))
    label_map_HW = mapped.sample(0).label_map_HW
    assert label_map_HW.tolist() == [[2, 0], [IGNORE, 2]]
    assert label_map_HW.dtype == torch.uint8
    assert mapped.note.startswith("a note. the data lists the classes")
    assert mapped.palette is None
    exact = map_classes(Maps(), "the data", KnownClasses(("cat", "dog"), "the run"))
    assert exact.palette == ((2, 2, 2), (1, 1, 1))  # pyright: ignore[reportAttributeAccessIssue]


def test_tables_of_hugging_face_may_name_their_classes_in_different_orders(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    sound.write(tmp_path / "dataset_dict.json", {"splits": ["train", "validation"]})
    for split, names in (("train", ["cat", "dog", "cow"]), ("validation", ["cow", "bird", "cat"])):
        features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
        sound.write_arrow(tmp_path / split, sound.arrow_table([0, 2] * 4, features=features))
    val: Any = open_dataset(tmp_path, "val")
    assert val.classes == ("cat", "dog", "cow")
    assert val.labels_N[:2].tolist() == [2, 0]
    sound.write_arrow(tmp_path / "validation", sound.arrow_table([0, 1] * 4, features=features))
    with pytest.raises(ValueError, match="class 'bird', which the training split lacks"):
        open_dataset(tmp_path, "val")


@pytest.mark.parametrize("format", ["lists", "zips", "fall"])
def test_a_validation_list_may_number_its_folders_differently(format: str, tmp_path: Path) -> None:
    sound.SOUND[format](tmp_path)
    names = {"lists": "meta/val.txt", "zips": "val_map.txt", "fall": "ILSVRC2011fall_whole_map_val.txt"}
    path = tmp_path / names[format]
    before: Any = open_dataset(tmp_path, "val")
    if format == "fall":
        content = json.dumps([[name, 1 - label] for name, label in json.loads(path.read_text())])
    else:
        lines = [line.rsplit(maxsplit=1) for line in path.read_text().splitlines()]
        content = "".join(f"{name}\t{1 - int(label)}\n" for name, label in lines)
    path.write_text(content)
    after: Any = open_dataset(tmp_path, "val")
    assert after.labels_N.tolist() == before.labels_N.tolist()
    assert "matched by the folders" in after.note


def test_flat_validation_folders_keep_the_numbers_of_their_list(tmp_path: Path) -> None:
    sound.lists(tmp_path)
    flat = sound.write(tmp_path / "val" / "flat.png", sound.png(7)).name
    sound.write(tmp_path / "meta" / "val.txt", f"{flat} 1\n")
    val: Any = open_dataset(tmp_path, "val")
    assert val.labels_N.tolist() == [1]


def test_categories_of_inaturalist_are_matched_by_name(tmp_path: Path) -> None:
    sound.inaturalist(tmp_path)
    path = tmp_path / "val2018.json"
    content = json.loads(path.read_text())
    before: Any = open_dataset(tmp_path, "val")
    content["categories"] = [{"id": 5, "name": "dog"}, {"id": 6, "name": "cat"}]
    for annotation in content["annotations"]:
        annotation["category_id"] = {0: 6, 1: 5}[annotation["category_id"]]
    path.write_text(json.dumps(content))
    after: Any = open_dataset(tmp_path, "val")
    assert after.labels_N.tolist() == before.labels_N.tolist()
    content["categories"][0]["name"] = "bird"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="class 'bird', which the training split lacks"):
        open_dataset(tmp_path, "val")


@pytest.mark.parametrize("format", ["yolo", "voc", "label_maps", "imagefolder", "shards", "cifar", "kaggle"])
def test_both_splits_of_the_other_formats_have_one_list(format: str, tmp_path: Path) -> None:
    build: Callable[[Path], None] = sound.SOUND[format]
    build(tmp_path)
    train, val = open_dataset(tmp_path, "train"), open_dataset(tmp_path, "val")
    assert map_classes(val, "val", KnownClasses(tuple(train.classes), "train")) is val


def test_labels_of_all_samples_are_those_of_each(tmp_path: Path) -> None:
    sound.imagefolder(tmp_path / "data")
    own = open_dataset(tmp_path / "data", "val", truth="label")
    mapped = map_classes(own, "the data", KnownClasses((*reversed(own.classes), "bird"), "the training split"))
    labels = [mapped.sample(i).label for i in range(len(mapped))]
    assert mapped.labels_N.tolist() == labels  # pyright: ignore[reportAttributeAccessIssue]
    assert [mapped.classes[label] for label in labels if label is not None] == [
        own.classes[label] for i in range(len(own)) if (label := own.sample(i).label) is not None
    ]
