"""ImageNet's other test sets are known by their folders, and labelled as ImageNet is."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from fourstage.data.labels.imagefolder import ImageFolder
from fourstage.data.labels.imagenet_variants import Variant, find_variant, read_real, readable_names, wnids


def folders(root: Path, names: Sequence[str], image: str = "0.jpg") -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(root / name / image, "JPEG")
    return root


def test_some_of_the_classes_directly_below_the_root(tmp_path: Path) -> None:
    chosen = [wnids()[i] for i in (6, 11, 999)]
    folder = find_variant(folders(tmp_path / "imagenet-a", chosen))
    assert folder is not None
    assert folder == tmp_path / "imagenet-a"
    data = Variant(folder)
    assert data.classes == wnids()
    assert data.among == (6, 11, 999)
    assert data.note == "predictions among the 3 classes of the data"
    assert [(data.id(i), data.sample(i).label) for i in range(len(data))] == [
        (f"{name}/0.jpg", label) for name, label in zip(chosen, (6, 11, 999), strict=True)
    ]


def test_all_classes_by_their_ids_are_all_tested(tmp_path: Path) -> None:
    root = folders(tmp_path / "sketch", wnids()[::-1], "sketch_0.JPEG")
    data = Variant(find_variant(root) or tmp_path)
    assert (len(data), data.among, data.note) == (1000, None, "")
    assert data.labels_N.tolist() == list(range(1000))
    assert not data.own_validation


def test_classes_by_their_numbers_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    root = folders(tmp_path / "imagenetv2-matched-frequency-format-val", [str(i) for i in range(1000)], "ab.jpeg")
    data = Variant(find_variant(root) or tmp_path)
    assert data.id(2) == "2/ab.jpeg"
    assert data.labels_N.tolist() == list(range(1000))
    assert data.classes == wnids()
    assert data.sample(10).label == 10


def test_a_validation_folder_lacking_classes_beside_training_images(tmp_path: Path) -> None:
    folders(tmp_path / "train", wnids()[:5])
    folders(tmp_path / "val", wnids()[:4])
    assert find_variant(tmp_path) == tmp_path / "val"


@pytest.mark.parametrize(
    "names",
    [
        ["cat", "dog"],
        ["n00000001", "n01440764"],  # the first is no class of the 1000
        [str(i) for i in range(10)],
        ["train/n01440764", "train/n01443537"],
        [*(f"train/{name}" for name in wnids()), *(f"val/{name}" for name in wnids())],  # ImageNet itself
    ],
    ids=["own classes", "other ids", "ten numbers", "training images alone", "ImageNet"],
)
def test_anything_else_is_none(names: list[str], tmp_path: Path) -> None:
    assert find_variant(folders(tmp_path, names)) is None


def test_what_is_no_folder_is_none(tmp_path: Path) -> None:
    assert find_variant(tmp_path / "gone") is None


def test_a_class_without_images_is_told(tmp_path: Path) -> None:
    folders(tmp_path, wnids()[:2])
    (tmp_path / wnids()[2]).mkdir()
    with pytest.raises(ValueError, match=f"{wnids()[2]} is a class folder without images"):
        Variant(tmp_path)


def test_real_labels_are_found_by_the_number_in_the_name(tmp_path: Path) -> None:
    root = folders(tmp_path / "imagenet" / "val", wnids(), "ILSVRC2012_val_00000002.JPEG")
    data = Variant(root)
    assert data.own_validation
    assert read_real(root, data) is None
    for place in (root, root.parent):
        (place / "real.json").write_text(json.dumps([[1], [2, 3]]))
        assert read_real(root, data) == {data.id(i): [2, 3] for i in range(1000)}
        assert read_real(root.parent, data) is not None
        (place / "real.json").unlink()


def test_real_labels_are_left_alone_for_other_images(tmp_path: Path) -> None:
    (tmp_path / "real.json").write_text("damaged")
    assert read_real(tmp_path, Variant(folders(tmp_path / "sketch", wnids()))) is None
    folders(tmp_path / "own", ["cat", "dog"], "ILSVRC2012_val_00000001.JPEG")
    assert read_real(tmp_path / "own", ImageFolder(tmp_path / "own", "val")) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [("[[1]", "is damaged"), ("[[1], [1000]]", "from 0 to 999"), ("{}", "list of lists"), ("[[1]]", "number 2")],
)
def test_damaged_real_labels_are_told(content: str, message: str, tmp_path: Path) -> None:
    root = folders(tmp_path, wnids(), "ILSVRC2012_val_00000002.JPEG")
    (root / "real.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_real(root, Variant(root))


def test_ids_have_readable_names_and_other_names_stay() -> None:
    assert readable_names(["n01440764", "n02012849", "n03126707"]) == (
        "tench",
        "crane (n02012849)",
        "crane (n03126707)",
    )
    assert readable_names(["cat", "n01440764"]) == ("cat", "n01440764")
    assert readable_names(["n01440764", "n99999999"]) == ("n01440764", "n99999999")
    assert len(set(readable_names(wnids()))) == 1000


def test_a_folder_of_other_classes_is_no_variant(tmp_path: Path) -> None:
    """ImageNet-C is known by the names of its corruptions, before its class folders are looked at."""
    with pytest.raises(ValueError, match="airplane is not a class of ImageNet's"):
        Variant(folders(tmp_path / "gaussian_noise" / "1", [wnids()[0], "airplane"]))


def test_labels_that_are_nested_too_deeply_are_a_sentence(tmp_path: Path) -> None:
    root = folders(tmp_path / "val", wnids()[:3], "ILSVRC2012_val_00000001.JPEG")
    (tmp_path / "real.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"real\.json is damaged"):
        read_real(root, Variant(root))
