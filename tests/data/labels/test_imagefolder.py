import os
import shutil
import string
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourstage.data.bad_images import find_bad_images, without
from fourstage.data.embedded.digits import Digits
from fourstage.data.labels.imagefolder import ImageFolder
from fourstage.data.order import hash_order

Picture = Callable[..., Path]


@pytest.fixture
def folder(picture: Picture, tmp_path: Path) -> Path:
    for split, count in (("train", 4), ("val", 2)):
        for name in ("dog", "cat"):
            for i in range(count):
                picture(f"{split}/{name}/{i}.png")
    return tmp_path


def test_classes_are_sorted_and_samples_carry_their_label(folder: Path) -> None:
    dataset = ImageFolder(folder, "train")
    assert dataset.classes == ("cat", "dog")
    assert [dataset.id(i) for i in range(len(dataset))] == [f"{c}/{i}.png" for c in ("cat", "dog") for i in range(4)]
    sample = dataset.sample(5)
    assert (sample.id, sample.label, sample.original_size) == ("dog/1.png", 1, (40, 48))
    assert isinstance(sample.image, np.ndarray)
    assert sample.image.shape == (40, 48, 3)
    assert dataset.note == ""


def test_images_are_found_below_their_class_whatever_the_case_of_the_ending(folder: Path, picture: Picture) -> None:
    for name in ("deep/er/1.JPG", "2.Jpeg", "ä ö.webp", "3.tiff", "4.bmp"):
        picture(f"train/cat/{name}")
    (folder / "train/cat/._0.png").write_text("macOS")
    (folder / "train/cat/list.txt").write_text("no image")
    (folder / "train/.cache").mkdir()
    dataset = ImageFolder(folder, "train")
    assert len(dataset) == 13
    assert "cat/deep/er/1.JPG" in {dataset.id(i) for i in range(len(dataset))}
    assert dataset.sample([dataset.id(i) for i in range(9)].index("cat/ä ö.webp")).label == 0


def test_a_link_back_up_is_followed_once(folder: Path) -> None:
    (folder / "train/cat/loop").symlink_to(folder / "train" / "cat")
    assert len(ImageFolder(folder, "train")) == 8


@pytest.mark.parametrize("name", ["valid", "validation", "Val", "test"])
def test_other_names_of_the_validation_folder(name: str, folder: Path) -> None:
    (folder / "val").rename(folder / name)
    dataset = ImageFolder(folder, "val")
    assert len(dataset) == 4
    assert ("test/ is used for validation" in dataset.note) == (name == "test")


@pytest.mark.parametrize("below_root", [False, True])
def test_without_val_a_tenth_of_each_class_is_held_out(below_root: bool, tmp_path: Path, picture: Picture) -> None:
    counts = {"a": 40, "b": 15, "c": 2, "d": 1}
    for name, count in counts.items():
        for i in range(count):
            picture(f"{'' if below_root else 'train/'}{name}/{i}.png", 4, 4)
    train, val = ImageFolder(tmp_path, "train"), ImageFolder(tmp_path, "val")
    assert np.bincount(val.labels_N, minlength=4).tolist() == [4, 2, 1, 0]
    ids = [[dataset.id(i) for i in range(len(dataset))] for dataset in (train, val)]
    assert len(set(ids[0]) | set(ids[1])) == sum(map(len, ids)) == 58
    assert "(7 of 58 images)" in train.note == val.note
    assert val.sample(0).label == 0


@given(
    names=st.lists(st.text(string.ascii_lowercase, min_size=1), unique=True), added=st.text(string.digits, min_size=1)
)
def test_the_order_of_a_split_depends_on_names_alone(names: list[str], added: str) -> None:
    ranked = [names[i] for i in hash_order(names)]
    assert ranked == [names[::-1][i] for i in hash_order(names[::-1])]
    longer = [*names, added]
    assert [name for name in (longer[i] for i in hash_order(longer)) if name != added] == ranked


def test_the_order_is_the_same_on_every_machine() -> None:
    assert hash_order(list("abcdefgh")) == [6, 5, 2, 1, 4, 3, 0, 7]


def empty_class(folder: Path) -> None:
    (folder / "train/emu").mkdir()


def unknown_class(folder: Path) -> None:
    (folder / "val/cat").rename(folder / "val/wolf")


def no_classes(folder: Path) -> None:
    for name in ("cat", "dog"):
        shutil.rmtree(folder / "train" / name)


def no_images(folder: Path) -> None:
    for path in folder.glob("train/*/*.png"):
        path.unlink()


def no_train(folder: Path) -> None:
    shutil.rmtree(folder / "train")


@pytest.mark.parametrize(
    ("change", "split", "sentence"),
    [
        (empty_class, "train", r"train/emu is a class folder without images: add some, or delete the folder"),
        (unknown_class, "val", r"val/wolf is a class that .*train lacks: rename or delete"),
        (no_classes, "train", r"train holds no class folders: every sub-folder is one class"),
        (no_images, "train", r"train holds no images in its 2 class folders"),
        (no_train, "train", r"holds val/ but no train/"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_sentence(
    change: Callable[[Path], None], split: str, sentence: str, folder: Path
) -> None:
    change(folder)
    with pytest.raises(ValueError, match=sentence) as caught:
        ImageFolder(folder, "train" if split == "train" else "val")
    assert "\n" not in str(caught.value)


def test_evaluation_needs_no_training_folder(folder: Path) -> None:
    no_train(folder)
    assert ImageFolder(folder, "val").classes == ("cat", "dog")


def test_a_class_without_validation_images_is_noted(folder: Path) -> None:
    shutil.rmtree(folder / "val/dog")
    dataset = ImageFolder(folder, "val")
    assert dataset.classes == ("cat", "dog")
    assert "no images of 1 of the 2 classes, such as 'dog'" in dataset.note


def test_bad_images_are_found_and_left_out_in_order(folder: Path) -> None:
    whole = (folder / "train/cat/2.png").read_bytes()
    (folder / "train/cat/2.png").write_bytes(whole[: len(whole) // 2])
    (folder / "train/dog/0.png").write_text("text")
    dataset, steps = ImageFolder(folder, "train"), []
    bad = find_bad_images(dataset, lambda done, total: steps.append((done, total)))
    assert list(bad) == ["cat/2.png", "dog/0.png"]
    assert "truncated" in bad["cat/2.png"].reason
    assert steps == [(i + 1, 8) for i in range(8)]
    rest = without(dataset, bad)
    assert [rest.id(i) for i in range(len(rest))] == [dataset.id(i) for i in (0, 1, 3, 5, 6, 7)]
    assert [rest.sample(i).label for i in range(len(rest))] == [0, 0, 0, 1, 1, 1]
    assert rest.classes == dataset.classes
    assert not find_bad_images(rest)


def test_any_data_set_can_be_searched() -> None:
    assert find_bad_images(Digits("val")) == {}


def test_names_that_are_no_text_survive(folder: Path) -> None:
    odd = os.fsdecode(b"\xff.png")
    shutil.copy(folder / "train/cat/0.png", folder / "train/cat" / odd)
    dataset = ImageFolder(folder, "train")
    assert dataset.sample(len(dataset) - 5).label == 0
