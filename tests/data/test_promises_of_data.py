"""Values that no data set and no loader can have are refused, not read as others, and results belong to the caller."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fourstage.data.formats import open_dataset
from fourstage.data.loader import TrainPlan, epoch_order, evaluation_batches
from fourstage.data.opening import open_usable
from fourstage.data.shards.write import write_shards

Picture = Callable[..., Path]


@pytest.mark.parametrize("split", ["test", "validation", "Train", "", None, 0])
@pytest.mark.parametrize("data", ["digits", "digit_scenes", "folder"])
def test_no_other_split_is_read_as_one_of_the_two(data: str, split: Any, tmp_path: Path, picture: Picture) -> None:
    for name in ("a", "b"):
        picture(f"{name}/1.png")
    for opened in (open_dataset, open_usable):
        with pytest.raises(ValueError, match="the split of a data set is one of train, val; got"):
            opened(tmp_path if data == "folder" else data, split)


def test_no_other_truth_is_left_out(tmp_path: Path, picture: Picture) -> None:
    for name in ("a", "b"):
        picture(f"{name}/1.png")
    truth: Any = "boxes"
    with pytest.raises(ValueError, match="truth is one of label, objects, label_map_HW; got 'boxes'"):
        open_dataset(tmp_path, "train", truth=truth)


def test_an_order_that_is_changed_stays_as_it_was_for_others() -> None:
    for groups in (b"", bytes([0, 1] * 5)):
        first = epoch_order(3, 1, 10, (), groups)
        kept = first.clone()
        first[:] = 0
        assert torch.equal(epoch_order(3, 1, 10, (), groups), kept)
        assert set(TrainPlan(10, 10, seed=3, groups=groups).request(1, 0).indices) == set(range(10))


@pytest.mark.parametrize(
    "wrong",
    [
        *(
            {name: value}
            for name in ("batch_size", "accumulation", "ranks", "repeats", "group_size")
            for value in (0, -2)
        ),
        *({"rank": rank} for rank in (-1, 1)),
    ],
)
def test_numbers_of_a_plan_are_checked(wrong: dict[str, int]) -> None:
    numbers: Any = {"length": 10, "batch_size": 2, **wrong}
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TrainPlan(**numbers)


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"batch_size": -1}, {"workers": -1}])
def test_numbers_of_an_evaluation_are_checked(wrong: dict[str, int]) -> None:
    numbers: Any = {"batch_size": 2, **wrong}
    with pytest.raises(ValueError, match=next(iter(wrong))):
        list(evaluation_batches(open_dataset("digits", "val"), lambda sample: sample, **numbers))


@pytest.mark.parametrize("form", ["coco", "yolo"])
def test_sizes_and_counts_of_objects_belong_to_the_caller(form: str, tmp_path: Path, picture: Picture) -> None:
    for i in range(2):
        picture(f"images/train/{i}.png", width=40, height=30)
    if form == "yolo":
        (tmp_path / "labels/train").mkdir(parents=True)
        for i in range(2):
            (tmp_path / f"labels/train/{i}.txt").write_text("0 .5 .5 .2 .2\n")
        (tmp_path / "data.yaml").write_text("train: images/train\nval: images/train\nnames: [a]\n")
    else:
        images = [{"id": i, "file_name": f"images/train/{i}.png", "width": 40, "height": 30} for i in range(2)]
        box = {"category_id": 1, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0}
        objects = [{"id": i + 1, "image_id": i, **box} for i in range(2)]
        content = {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "a"}]}
        (tmp_path / "train.json").write_text(json.dumps(content))
    dataset: Any = open_dataset(tmp_path, "train")
    before = dataset.reference(0)
    for _ in range(2):
        sizes_I2, counts_I = dataset.sizes(), dataset.counts()
        assert sizes_I2.tolist() == [[30, 40]] * len(dataset)
        assert counts_I.tolist() == [1] * len(dataset)
        sizes_I2[:], counts_I[:] = 0, 9
    assert dataset.reference(0) == before
    assert dataset.label_counts().tolist() == [len(dataset)]


@pytest.mark.parametrize("wrong", [{"count": 2.5}, {"count": "3"}, {"count": True}, {"max_size": 1e6}, {"max_size": 0}])
def test_limits_of_shards_are_whole_numbers(wrong: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be 1 or more, without a fraction"):
        write_shards("digits", tmp_path / "shards", **wrong)
    assert not (tmp_path / "shards").exists()


def test_limits_of_shards_may_be_of_numpy(tmp_path: Path, picture: Picture) -> None:
    for name in ("train/a/1.png", "train/b/1.png", "val/a/1.png", "val/b/1.png"):
        picture(f"source/{name}")
    count: Any = np.int64(1)
    assert write_shards(tmp_path / "source", tmp_path / "shards", count=count).shards == {"train": 2, "val": 2}


@pytest.mark.parametrize("form", ["folder", "json", "shards", "pattern"])
def test_samples_are_read_after_the_working_directory_has_changed(
    form: str, tmp_path: Path, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("train/a/1.png", "train/b/1.png", "val/a/1.png", "val/b/1.png"):
        picture(f"source/{name}", width=40, height=30)
    monkeypatch.chdir(tmp_path)
    data = "source"
    if form == "json":
        data = "source/train.json"
        image = {"id": 1, "file_name": "train/a/1.png", "width": 40, "height": 30}
        box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0}
        content = {"images": [image], "annotations": [box], "categories": [{"id": 1, "name": "a"}]}
        Path(data).write_text(json.dumps(content))
    elif form != "folder":
        write_shards("source", "shards")
        data = "shards" if form == "shards" else "shards/{train,val}-{000000..000000}.tar"
    dataset = open_dataset(data, "train")
    before = dataset.sample(0)
    monkeypatch.chdir("/")
    after = dataset.sample(0)
    assert after.id == before.id
    assert np.array_equal(after.image, before.image)
