"""labelme's json files in another folder than their images."""

import json
from pathlib import Path

import pytest
from data.hostile import sound
from data.hostile.verdicts import refusal_of_training, refusals_of_check

from fourstage.data.formats import find_format
from fourstage.data.objects.labelme import FOLDERS, Labelme

LAYOUTS = [  # the folder of the json files, that of the images, what imagePath begins with
    *((folder, "images", "../images/") for folder in FOLDERS),
    ("json", "photos/2026", "../photos/2026/"),
    ("json", "images", ""),  # a path of another machine
    ("json", "images", "C:\\photos\\"),
    ("train/json", "train/images", "../images/"),
    ("annotations/train", "images/train", ""),
    ("train", "pictures", "../pictures/"),
]


def write(root: Path, jsons: str, images: str, begin: str) -> None:
    for i in range(10):
        sound.write(root / images / f"{i}.png", sound.png(i))
        sound.write(root / jsons / f"{i}.json", sound.labelme_json(f"{i}", i % 2, f"{begin}{i}.png"))


@pytest.mark.parametrize(("jsons", "images", "begin"), LAYOUTS)
def test_images_are_where_image_path_says_or_in_the_folder_of_images(
    jsons: str, images: str, begin: str, tmp_path: Path
) -> None:
    write(tmp_path, jsons, images, begin)
    assert find_format(tmp_path, "objects").name == "labelme"
    assert refusal_of_training(tmp_path, "objects") == ""
    assert refusals_of_check(tmp_path, "objects") == []
    train, val = Labelme(tmp_path, "train"), Labelme(tmp_path, "val")
    assert (len(train), len(val)) == (9, 1)
    for dataset in (train, val):
        for i in range(len(dataset)):
            assert dataset.path(i) == tmp_path / images / f"{Path(dataset.id(i)).name}.png"


def test_a_missing_image_is_named_where_it_should_be(tmp_path: Path) -> None:
    write(tmp_path, "json", "images", "../images/")
    (tmp_path / "images/3.png").unlink()
    for sentence in (refusal_of_training(tmp_path, "objects"), refusals_of_check(tmp_path, "objects")[0]):
        assert str(tmp_path / "images/3.png") in sentence


def test_no_image_outside_of_the_data_is_read(tmp_path: Path) -> None:
    write(tmp_path / "data", "json", "images", "../images/")
    sound.write(tmp_path / "secret.png", sound.png(99))
    path = tmp_path / "data/json/3.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"imagePath": "../../secret.png"}))
    paths = [
        one.path(i)
        for split in ("train", "val")
        for one in [Labelme(tmp_path / "data", split)]
        for i in range(len(one))
    ]
    assert tmp_path / "data/images/3.png" in paths  # called as the json is
    assert not [one for one in paths if "secret" in one.name]


def test_a_name_that_no_file_has_names_the_json(tmp_path: Path) -> None:
    write(tmp_path, "json", "images", "a\0")
    assert f"{tmp_path}/json/" in refusal_of_training(tmp_path, "objects")
