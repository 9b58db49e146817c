import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fourstage.data.formats import find_format, open_dataset
from fourstage.data.labels.listing import Listed

Picture = Callable[..., Path]


@pytest.fixture
def root(picture: Picture, tmp_path: Path) -> Path:
    categories = [{"id": 7, "name": "Puma"}, {"id": 3, "name": "Aster"}, {"id": 9, "name": "Aster"}]
    for split, label in (("train", (3, 7, 9)), ("val", (9,))):
        images, annotations = [], []
        for i, category in enumerate(label):
            name = f"train_val2018/Kind/{category}/{split}{i}.jpg"
            picture(name)
            images.append({"id": 100 + i, "file_name": name})
            annotations.append({"id": i, "image_id": 100 + i, "category_id": category})
        content = {"images": images, "annotations": annotations, "categories": categories}
        (tmp_path / f"{split}2018.json").write_text(json.dumps(content))
    return tmp_path


def test_classes_are_the_categories_by_their_ids(root: Path) -> None:
    assert find_format(root).name == "iNaturalist"
    train, val = open_dataset(root, "train"), open_dataset(root, "val")
    assert isinstance(val, Listed)
    assert train.classes == val.classes == ("Aster (3)", "Puma", "Aster (9)")
    assert [train.sample(i).label for i in range(3)] == [0, 1, 2]
    assert (val.id(0), val.labels_N.tolist()) == ("train_val2018/Kind/9/val0.jpg", [2])


def test_what_cannot_be_used(root: Path) -> None:
    (root / "train_val2018/Kind/7/train1.jpg").unlink()
    with pytest.raises(
        ValueError, match=r"train2018.json lists 1 image that does not exist, such as .*train1.jpg; add it"
    ):
        open_dataset(root, "train")
    (root / "train2018.json").write_text('{"images": [{}], "annotations": [], "categories": []}')
    with pytest.raises(ValueError, match=r"an entry of 'images' lacks one of id, file_name"):
        open_dataset(root, "train")
    (root / "train2018.json").write_text("{")
    with pytest.raises(ValueError, match=r"is not a list of iNaturalist"):
        open_dataset(root, "train")
