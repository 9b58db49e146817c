"""ImageNet as lists, archives, the 22K lists and Kaggle's tree."""

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourstage.data.formats import find_format, open_dataset
from fourstage.data.labels.imagefolder import ImageFolder
from fourstage.data.labels.imagenet import read_lines
from fourstage.data.labels.listing import Listed, class_names, missing_files, numbered_classes
from fourstage.data.labels.zips import ZipStore
from fourstage.data.loader import evaluation_batches
from fourstage.data.sample import BadImage, Sample
from fourstage.data.transforms.classification import eval_transform

Picture = Callable[..., Path]


def ids(dataset: Listed) -> list[str]:
    return [dataset.id(i) for i in range(len(dataset))]


def opened(root: Path, split: str = "train") -> Listed:
    dataset = open_dataset(root, split)  # pyright: ignore[reportArgumentType]
    assert isinstance(dataset, Listed)
    return dataset


@pytest.fixture
def lists(picture: Picture, tmp_path: Path) -> Path:
    """Two classes in folders, and a flat validation folder that only its list tells apart."""
    root = tmp_path / "imagenet"
    for name in ("n01", "n02"):
        for i in range(3):
            picture(f"imagenet/train/{name}/{name}_{i}.JPEG")
    for i in range(4):
        picture(f"imagenet/val/val_{i}.JPEG")
    (root / "meta").mkdir()
    lines = [f"{name}/{name}_{i}.JPEG {label}\n" for label, name in enumerate(("n01", "n02")) for i in range(3)]
    (root / "meta/train.txt").write_text("".join(lines))
    (root / "meta/val.txt").write_text("".join(f"val_{i}.JPEG {i % 2}\n" for i in range(4)))
    return root


@pytest.fixture
def zipped(lists: Path) -> Path:
    """The same in archives: stored below train/, and deflated at the top."""
    root = lists.with_name("zipped")
    root.mkdir()
    for split, inside, how in (("train", "train/", zipfile.ZIP_STORED), ("val", "", zipfile.ZIP_DEFLATED)):
        with zipfile.ZipFile(root / f"{split}.zip", "w", how) as archive:
            for path in sorted((lists / split).rglob("*.JPEG")):
                archive.write(path, inside + str(path.relative_to(lists / split)))
        text = (lists / f"meta/{split}.txt").read_text().replace(" ", "\t")
        (root / f"{split}_map.txt").write_text(text)
    return root


def test_lists_win_over_class_folders_and_know_the_same_classes(lists: Path) -> None:
    assert find_format(lists).name == "ImageNet lists"
    train, val = opened(lists), opened(lists, "val")
    assert train.classes == val.classes == ImageFolder(lists, "train").classes
    assert ids(train) == [f"n0{c}/n0{c}_{i}.JPEG" for c in (1, 2) for i in range(3)]
    assert val.labels_N.tolist() == [0, 1, 0, 1]
    sample = val.sample(3)
    assert (sample.id, sample.label, sample.original_size) == ("val_3.JPEG", 1, (40, 48))
    assert np.array_equal(train.sample(4).image, ImageFolder(lists, "train").sample(4).image)


def test_paths_may_begin_at_the_root(lists: Path) -> None:
    lines = [f"train/{line}" for line in (lists / "meta/train.txt").read_text().splitlines()]
    (lists / "meta/train.txt").write_text("\n".join(lines))
    train = opened(lists)
    assert train.classes == ("n01", "n02")
    assert train.sample(5).id == "train/n02/n02_2.JPEG"


def test_a_zip_holds_the_same_bytes(lists: Path, zipped: Path) -> None:
    assert find_format(zipped).name == "ImageNet zip"
    for split in ("train", "val"):
        plain, packed = opened(lists, split), opened(zipped, split)
        assert ids(plain) == ids(packed)
        assert plain.classes == packed.classes
        assert [plain.raw(i) for i in range(len(plain))] == [packed.raw(i) for i in range(len(packed))]


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_processes_share_a_zip(workers: int, zipped: Path) -> None:
    transform = eval_transform(32, mean=(0.5,) * 3, std=(0.5,) * 3)
    batches = list(evaluation_batches(opened(zipped), transform, batch_size=2, workers=workers))
    assert [id for batch in batches for id in batch.ids] == ids(opened(zipped))
    again = pickle.loads(pickle.dumps(opened(zipped)))  # where processes are spawned
    assert again.raw(0) == opened(zipped).raw(0)


def test_a_damaged_member_is_named(zipped: Path) -> None:
    data = opened(zipped)
    content = bytearray((zipped / "train.zip").read_bytes())
    place = content.find(data.raw(2)) + 100
    content[place] ^= 0xFF
    (zipped / "train.zip").write_bytes(content)
    with pytest.raises(BadImage, match=r"train.zip/n01/n01_2.JPEG cannot .*: the archive is damaged here"):
        data.raw(2)
    assert data.raw(1)


def test_archives_that_cannot_be_used(zipped: Path) -> None:
    whole = (zipped / "train.zip").read_bytes()
    (zipped / "train.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"train.zip is not a complete zip archive \(.*\): download or write it again"):
        opened(zipped)
    (zipped / "train.zip").unlink()
    with pytest.raises(ValueError, match=r"train.zip cannot be read .* download the archive"):
        opened(zipped)
    (zipped / "val_map.txt").unlink()
    with pytest.raises(
        ValueError, match=r"val.zip comes without .*val_map.txt.* write that list, with a path and a label"
    ):
        opened(zipped, "val")


def test_a_zip_beside_what_it_unpacked_into_is_no_matter(lists: Path, tmp_path: Path) -> None:
    (tmp_path / "folders").mkdir()
    (lists / "train").rename(tmp_path / "folders/train")
    (tmp_path / "folders/train.zip").touch()
    assert find_format(tmp_path / "folders").name == "ImageFolder"


def test_missing_files_are_counted_and_the_first_are_named(lists: Path, zipped: Path) -> None:
    for root, mark in ((lists, "meta/train.txt"), (zipped, "train_map.txt")):
        gone = "".join(f"n01/gone_{i}.JPEG\t0\n" for i in range(5))
        (root / mark).write_text((root / mark).read_text().replace(" ", "\t") + gone)
        with pytest.raises(
            ValueError, match=r"lists 5 images that do not exist, such as .*gone_0.*gone_2.JPEG; add them"
        ):
            opened(root)


@given(st.lists(st.sampled_from(["a/1.jpg", "a/2.jpg", "b/1.jpg", "c/1.jpg", "1.jpg", "a/b/1.jpg"]), max_size=8))
@settings(max_examples=30, deadline=None)
def test_missing_is_what_no_file_has(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    root = tmp_path_factory.mktemp("names")
    for name in ("a/1.jpg", "b/1.jpg", "1.jpg"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).touch()
    found = missing_files(root, [name.encode() for name in names])
    assert list(found) == [i for i, name in enumerate(names) if not (root / name).is_file()]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "lists no image: it needs a line with a path and a label"),
        ("n01/n01_0.JPEG\nn01/n01_1.JPEG 0\n", r"line 1: reads 'n01/n01_0.JPEG': it must be a path and a label"),
        (
            "n01/n01_0.JPEG 0\nn02/n02_1.JPEG 1\nn01/n01_1.JPEG -1\n",
            "gives 1 image the label -1, and the classes are 0 to",
        ),
        ("n01/n01_0.JPEG 0\n", "has one class, so there is nothing to classify"),
        ("n01/n01_0.JPEG 0\nn02/n02_0.JPEG 1\nn01/n01_0.JPEG 1\n", "gives n01/n01_0.JPEG the labels 0 and 1"),
    ],
)
def test_lists_that_cannot_be_used(text: str, told: str, lists: Path) -> None:
    (lists / "meta/train.txt").write_text(text)
    with pytest.raises(ValueError, match=told) as caught:
        opened(lists)
    assert "\n" not in str(caught.value)


def test_labels_beyond_the_classes(lists: Path) -> None:
    (lists / "meta/val.txt").write_text("val_0.JPEG 0\nval_1.JPEG 2\nval_2.JPEG 2\n")
    with pytest.raises(
        ValueError, match=r"gives 2 images the label 2, and the classes are 0 to 1: labels count from 0"
    ):
        opened(lists, "val")
    (lists / "classes.txt").write_text("cat\ndog\ncow\n")
    assert opened(lists, "val").classes == ("cat", "dog", "cow")


def test_copies_in_a_list_are_used_once(lists: Path) -> None:
    text = (lists / "meta/train.txt").read_text()
    (lists / "meta/train.txt").write_text(text * 2)
    train = opened(lists)
    assert len(train) == 6
    assert "lists 6 images more than once: each is used once" in train.note


def test_without_a_validation_list_a_tenth_is_held_out(picture: Picture, tmp_path: Path) -> None:
    names = [f"{c}/{i}.png" for c in "ab" for i in range(20)]
    for name in names:
        picture(f"train/{name}", 4, 4)
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta/train.txt").write_text("".join(f"{name} {'ab'.index(name[0])}\n" for name in names))
    train, val = opened(tmp_path), opened(tmp_path, "val")
    assert sorted(ids(train) + ids(val)) == sorted(names)
    assert np.bincount(val.labels_N).tolist() == [2, 2]
    assert "(4 of 40 images)" in train.note == val.note
    assert train.sample(7).id == train.id(7)
    (tmp_path / "val").mkdir()
    with pytest.raises(ValueError, match=r"val comes without .*meta/val.txt"):
        opened(tmp_path, "val")


def test_a_list_reads_paths_with_spaces_and_any_line_end(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfa b/c d.jpg 3\r\n\r\n./e.jpg\t4\nf\xff.jpg  5 \n")
    entries = read_lines(tmp_path / "list.txt")
    assert entries.names == [b"a b/c d.jpg", b"e.jpg", b"f\xff.jpg"]
    assert entries.labels_N.tolist() == [3, 4, 5]
    assert entries.problems == []


def test_names_of_classes() -> None:
    pytest.importorskip("timm")
    flat = [f"{i}.jpg".encode() for i in range(1000)]
    assert class_names(None, flat, np.arange(1000))[:2] == ("n01440764", "n01443537")
    assert numbered_classes(21841)[0] == "n00004475"
    assert numbered_classes(3) == ("0", "1", "2")
    assert class_names(None, [b"x/1", b"y/1", b"y/2"], np.array([1, 0, 0])) == ("y", "x")
    assert class_names(None, [b"x/1", b"x/2", b"y/1"], np.array([0, 1, 1])) == ("0", "1")  # a folder is no class


def test_the_22k_lists(picture: Picture, tmp_path: Path) -> None:
    for name in ("n01", "n02"):
        picture(f"{name}/{name}_1.JPEG")
    pairs = [["n01/n01_1.JPEG", 0], ["n02/n02_1.JPEG", "1"]]
    for split in ("train", "val"):
        (tmp_path / f"ILSVRC2011fall_whole_map_{split}.txt").write_text(json.dumps(pairs))
    train = opened(tmp_path)
    assert find_format(tmp_path).name == "ImageNet-22K"
    assert (train.classes, ids(train)) == (("n01", "n02"), ["n01/n01_1.JPEG", "n02/n02_1.JPEG"])
    assert train.sample(1).label == 1
    (tmp_path / "ILSVRC2011fall_whole_map_train.txt").write_text("n01/n01_1.JPEG 0")
    with pytest.raises(ValueError, match=r"must be JSON such as"):
        opened(tmp_path)


def test_kaggles_tree(picture: Picture, tmp_path: Path) -> None:
    for name in ("n01", "n02"):
        picture(f"ILSVRC/Data/CLS-LOC/train/{name}/{name}_1.JPEG")
    for i in (1, 2):
        picture(f"ILSVRC/Data/CLS-LOC/val/val_{i}.JPEG")
    (tmp_path / "LOC_val_solution.csv").write_text(
        "ImageId,PredictionString\nval_2,n02 1 2 3 4 n02 5 6 7 8\nval_1,n01 1 2 3 4\n"
    )
    train, val = opened(tmp_path), opened(tmp_path, "val")
    assert train.classes == val.classes == ("n01", "n02")
    assert [(val.id(i), int(val.labels_N[i])) for i in range(2)] == [("val_2.JPEG", 1), ("val_1.JPEG", 0)]
    assert isinstance(val.sample(0), Sample)
    (tmp_path / "LOC_val_solution.csv").unlink()
    with pytest.raises(ValueError, match=r"LOC_val_solution.csv, which has its labels"):
        opened(tmp_path, "val")


def test_many_names_take_no_objects(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x.jpg", b"1")
    store, missing = ZipStore.open(tmp_path / "a.zip", [b"x.jpg", b"y.jpg"])
    assert missing == (1,)
    assert {type(value) for value in vars(store).values()} == {np.ndarray, type(tmp_path)}
