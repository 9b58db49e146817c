"""Images with label maps, in every layout that is known."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fourstage.data.class_names import ADE20K
from fourstage.data.embedded.digit_scenes import BACKGROUND, COLOURS, write_digit_scenes
from fourstage.data.label_maps.folders import BadLabelMap, LabelMaps, generated_colours, is_label_maps
from fourstage.data.label_maps.layouts import CITYSCAPES, VOC
from fourstage.data.loader import TrainPlan, train_batches
from fourstage.data.sample import IGNORE, BadImage, NoSplitError, Split
from fourstage.data.transforms.segmentation import train_transform

Pair = Callable[..., np.ndarray]
SIDES = (40, 48)


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    """Writes an image and a label map of some values; returns these."""
    rng = np.random.default_rng(0)

    def write(image: str, labels: str, values: list[int], palette: bool = False) -> np.ndarray:
        values_HW = rng.choice(np.array(values, np.uint8), SIDES)
        values_HW[0, : len(values)] = values  # each at least once
        pictures = (Image.fromarray(rng.integers(0, 255, (*SIDES, 3), dtype=np.uint8)), Image.fromarray(values_HW))
        for path, picture in zip((image, labels), pictures, strict=True):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            if palette and path == labels:
                picture = picture.convert("P")  # noqa: PLW2901
                picture.putpalette([channel for i in range(256) for channel in (i, 255 - i, 7)])
            picture.save(tmp_path / path)
        return values_HW

    return write


def labels_of(dataset: LabelMaps, index: int = 0) -> Tensor:
    labels = dataset.sample(index).label_map_HW
    assert labels is not None
    return labels


@pytest.fixture
def folder(pair: Pair, tmp_path: Path) -> Path:
    for split, count in (("train", 3), ("val", 2)):
        for i in range(count):
            pair(f"images/{split}/a/{i}.png", f"masks/{split}/a/{i}.png", [0, 1, 2, IGNORE])
    (tmp_path / "masks/classes.txt").write_text("sky\nsea\nsand\n")
    return tmp_path


def test_a_folder_of_images_and_masks(folder: Path) -> None:
    assert is_label_maps(folder)
    train, val = LabelMaps(folder, "train"), LabelMaps(folder, "val")
    assert train.classes == ("sky", "sea", "sand")
    assert train.truths == ("label_map_HW",)
    assert [train.id(i) for i in range(len(train))] == ["a/0.png", "a/1.png", "a/2.png"]
    assert len(val) == 2
    assert train.note == val.note == ""
    sample = train.sample(1)
    stored = np.asarray(Image.open(folder / "masks/train/a/1.png"))
    assert sample.label_map_HW is not None
    np.testing.assert_array_equal(sample.label_map_HW.numpy(), stored)
    assert sample.label_map_HW.dtype == torch.uint8
    np.testing.assert_array_equal(sample.image, np.asarray(Image.open(folder / "images/train/a/1.png")))
    assert sample.original_size == SIDES
    assert train.palette == generated_colours(3) == ((0, 0, 0), (128, 0, 0), (0, 128, 0))


@pytest.mark.parametrize("value", ["training", "validation"])
def test_other_names_of_splits(value: str, folder: Path) -> None:
    split = "train" if value == "training" else "val"
    for part in ("images", "masks"):
        (folder / part / split).rename(folder / part / value)
    assert len(LabelMaps(folder, split)) == (3 if split == "train" else 2)


def test_digit_scenes_have_their_names_and_colours(tmp_path: Path) -> None:
    write_digit_scenes(tmp_path / "scenes", train=3, val=2, size=64)
    dataset = LabelMaps(tmp_path / "scenes", "train")
    assert dataset.classes == ("background", *"0123456789")
    assert dataset.palette == (BACKGROUND, *COLOURS)
    assert len(dataset) == 3
    assert labels_of(dataset).max() > 0
    assert len(LabelMaps(tmp_path / "scenes", "val")) == 2


def test_classes_that_nobody_named_are_counted(folder: Path, pair: Pair) -> None:
    (folder / "masks/classes.txt").unlink()
    pair("images/train/b.png", "masks/train/b.png", [0, 5])
    pair("images/val/b.png", "masks/val/b.png", [0, 4])
    for split in ("train", "val"):
        assert LabelMaps(folder, split).classes == tuple(f"class {i}" for i in range(6))


def test_a_part_is_held_out_where_there_is_no_val(pair: Pair, tmp_path: Path) -> None:
    for i in range(20):
        pair(f"images/train/{i}.png", f"masks/train/{i}.png", [0, 1])
    train, val = LabelMaps(tmp_path, "train"), LabelMaps(tmp_path, "val")
    assert (len(train), len(val)) == (18, 2)
    assert not {train.id(i) for i in range(18)} & {val.id(i) for i in range(2)}
    assert "a fixed 10% of the images (2 of 20) is held out" in train.note


def test_only_a_validation_split(pair: Pair, tmp_path: Path) -> None:
    pair("images/val/a.png", "masks/val/a.png", [0, 1])
    assert len(LabelMaps(tmp_path, "val")) == 1
    with pytest.raises(NoSplitError, match="evaluation only"):
        LabelMaps(tmp_path, "train")


def test_ade20k(pair: Pair, tmp_path: Path) -> None:
    stored = pair("images/training/x.jpg", "annotations/training/x.png", [0, 1, 2, 150])
    pair("images/validation/y.jpg", "annotations/validation/y.png", [0, 7])
    dataset = LabelMaps(tmp_path, "train")
    assert len(dataset.classes) == len(dataset.palette) == 150
    assert (dataset.classes[:2], dataset.classes[-1]) == (("wall", "building"), "flag")  # known without its table
    expected = np.where(stored == 0, IGNORE, stored.astype(int) - 1)
    np.testing.assert_array_equal(labels_of(dataset).numpy(), expected)
    rows = [f"{i}\t0.1\t5\t5\tthing {i}, other name" for i in range(1, 151)]
    (tmp_path / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tTrain\tVal\tStuff", *rows]))
    named = LabelMaps(tmp_path, "val")
    assert named.classes[:2] == ("thing 1", "thing 2")
    assert named.note == ""
    pair("images/training/x.jpg", "annotations/training/x.png", [0, 151])
    with pytest.raises(
        BadLabelMap, match="it holds 151, and the 150 classes are stored as 1 to 150, and 0, 255 are ignored"
    ):
        labels_of(dataset)


@pytest.mark.parametrize("train_ids", [False, True])
def test_cityscapes(train_ids: bool, pair: Pair, tmp_path: Path) -> None:
    kind, values = ("labelTrainIds", [0, 18, 255]) if train_ids else ("labelIds", [0, 7, 33, 4, 255])
    for split in ("train", "val"):
        stem = f"{split}/ulm/ulm_000000_000019"
        stored = pair(f"leftImg8bit/{stem}_leftImg8bit.png", f"gtFine/{stem}_gtFine_{kind}.png", values)
    dataset = LabelMaps(tmp_path, "val")
    assert dataset.id(0) == "ulm/ulm_000000_000019_leftImg8bit.png"
    assert dataset.classes[0] == "road"
    assert dataset.palette == tuple(colour for _, _, colour in CITYSCAPES)
    of = {0: 0, 18: 18, 255: 255} if train_ids else {0: 255, 7: 0, 33: 18, 4: 255, 255: 255}
    np.testing.assert_array_equal(labels_of(dataset).numpy(), np.vectorize(of.get)(stored))


def test_the_numbers_and_colours_of_cityscapes() -> None:
    from torchvision.datasets import Cityscapes

    theirs = [c for c in Cityscapes.classes if 0 <= c.train_id < 19]
    assert [(c.name, c.id, c.color) for c in sorted(theirs, key=lambda c: c.train_id)] == list(CITYSCAPES)


def test_pascal_voc(pair: Pair, tmp_path: Path) -> None:
    for name in ("2007_000032", "2007_000039", "2008_000001"):
        stored = pair(f"JPEGImages/{name}.jpg", f"SegmentationClass/{name}.png", [0, 15, 20, IGNORE], palette=True)
    lists = tmp_path / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_000032\n2007_000039\n")
    (lists / "val.txt").write_text("2008_000001\n")
    train, val = LabelMaps(tmp_path, "train"), LabelMaps(tmp_path, "val")
    assert (len(train), len(val)) == (2, 1)
    assert train.classes == VOC
    assert train.palette[20] == (20, 235, 7)
    np.testing.assert_array_equal(labels_of(val).numpy(), stored)
    (lists / "train.txt").unlink()
    with pytest.raises(NoSplitError, match=r"train\.txt does not exist"):
        LabelMaps(tmp_path, "train")


def test_label_maps_that_cannot_be_used(folder: Path) -> None:
    path = folder / "masks/train/a/0.png"
    stored = np.asarray(Image.open(path))
    dataset = LabelMaps(folder, "train")
    broken = {
        "holds colours .RGB.": lambda: Image.fromarray(stored).convert("RGB").save(path),
        "it is 24 x 20 and its image 48 x 40": lambda: Image.fromarray(stored[::2, ::2].copy()).save(path),
        "it holds 3, and the 3 classes are stored as 0 to 2, and 255 is ignored": lambda: Image.fromarray(
            stored % 4
        ).save(path),
        "holds the value 3000": lambda: Image.fromarray(np.full(SIDES, 3000, np.uint16)).save(path),
        "not recognise the image format": lambda: path.write_bytes(b"text") and None,
        "there is no such file": path.unlink,
    }
    for sentence, spoil in broken.items():
        spoil()
        with pytest.raises(BadLabelMap, match=rf"0\.png cannot be used as a label map: .*{sentence}") as caught:
            dataset.sample(0)
        assert isinstance(caught.value, BadImage)
        again = pickle.loads(pickle.dumps(caught.value))
        assert (str(again), again.path) == (str(caught.value), str(path))


@pytest.mark.parametrize("mode", ["P", "1", "I;16"])
def test_numbers_are_read_in_every_mode_that_holds_them(mode: str, folder: Path) -> None:
    path = folder / "masks/train/a/0.png"
    values = np.random.default_rng(0).integers(0, 2, SIDES, dtype=np.uint8)
    image = Image.fromarray(
        values.astype(bool) if mode == "1" else values.astype(np.uint16 if ";" in mode else np.uint8)
    )
    if mode == "P":
        image = image.convert("L")
        image.putpalette([0, 0, 0, 250, 0, 0])
    image.save(path)
    np.testing.assert_array_equal(labels_of(LabelMaps(folder, "train")).numpy(), values)


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ([0, 0, 0, 128, 0, 0], [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)]),  # two colours for four classes
        ([9, 9, 9, 0, 128, 0, 9, 9, 9], [(9, 9, 9), (0, 128, 0), (0, 0, 0), (128, 0, 0)]),  # one colour twice
    ],
)
def test_every_class_has_a_colour_of_its_own(
    stored: list[int], expected: list[tuple[int, int, int]], pair: Pair, tmp_path: Path
) -> None:
    pair("images/train/0.png", "masks/train/0.png", [0, 1])
    (tmp_path / "classes.txt").write_text("a\nb\nc\nd\n")
    image = Image.fromarray(np.zeros(SIDES, np.uint8))
    image.putpalette(stored)
    image.save(tmp_path / "masks/train/0.png", bits=4)
    assert list(LabelMaps(tmp_path, "train").palette) == expected


def test_an_image_turned_by_exif_fits_its_upright_label_map(folder: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6  # a quarter to the right
    pixels = np.zeros((*SIDES[::-1], 3), np.uint8)
    Image.fromarray(pixels).save(folder / "images/train/a/0.png", exif=exif)
    assert LabelMaps(folder, "train").sample(0).original_size == SIDES


def test_what_is_missing_is_said(folder: Path) -> None:
    (folder / "masks/val/a/1.png").unlink()
    with pytest.raises(ValueError, match=r"1\.png has no label map .*: add it, or move the image away"):
        LabelMaps(folder, "val")
    with pytest.raises(ValueError, match="does not exist"):
        LabelMaps(folder / "nowhere", "val")
    with pytest.raises(ValueError, match=r"no label maps in a known layout: ADE20K .*; Cityscapes"):
        LabelMaps(folder / "images", "val")
    assert not is_label_maps(folder / "images")
    for i in range(3):
        (folder / f"images/train/a/{i}.png").unlink()
    with pytest.raises(ValueError, match="holds no images"):
        LabelMaps(folder, "train")


def test_made_up_colours_differ() -> None:
    assert len(set(generated_colours(256))) == 256


@pytest.mark.parametrize("workers", [0, 1])
def test_batches(workers: int, folder: Path) -> None:
    transform = train_transform((64, 64), mean=(0.5,) * 3, std=(0.2,) * 3, scale=(96, 64))
    plan = TrainPlan(length=3, batch_size=2)
    [[batch]] = train_batches(LabelMaps(folder, "train"), plan, transform, first_step=0, last_step=1, workers=workers)
    assert batch.images_BCHW.shape == (2, 3, 64, 64)
    assert batch.label_maps_BHW is not None
    assert batch.label_maps_BHW.shape == (2, 64, 64)


@pytest.mark.parametrize("place", ["annotations", "."])
def test_own_classes_in_the_folders_of_ade20k(place: str, pair: Pair, tmp_path: Path) -> None:
    stored = pair("images/training/x.jpg", "annotations/training/x.png", [0, 1, 2, 255])
    pair("images/validation/y.jpg", "annotations/validation/y.png", [0, 1])
    assumed = LabelMaps(tmp_path, "train")
    assert "no classes.txt: its 150 classes are assumed, stored from 1 on; write classes.txt" in assumed.note
    (tmp_path / place / "classes.txt").write_text("soil\ncrop\nweed\n")
    dataset = LabelMaps(tmp_path, "train")
    assert dataset.classes == ("soil", "crop", "weed")
    np.testing.assert_array_equal(labels_of(dataset).numpy(), stored)
    assert dataset.note == ""
    (tmp_path / place / "classes.txt").write_text("\n".join(ADE20K))
    assert labels_of(LabelMaps(tmp_path, "train")).max() == IGNORE
    assert labels_of(LabelMaps(tmp_path, "train")).eq(0).sum() == (stored == 1).sum()


@pytest.mark.parametrize("place", ["SegmentationClass", "."])
def test_own_classes_in_the_folders_of_voc(place: str, pair: Pair, tmp_path: Path) -> None:
    for split in ("train", "val"):
        pair(f"JPEGImages/{split}.jpg", f"SegmentationClass/{split}.png", [0, 1, 255])
        (tmp_path / "ImageSets/Segmentation").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"ImageSets/Segmentation/{split}.txt").write_text(split)
    assert "its 21 classes are assumed" in LabelMaps(tmp_path, "train").note
    (tmp_path / place / "classes.txt").write_text("soil\ncrop\n")
    dataset = LabelMaps(tmp_path, "val")
    assert (dataset.classes, dataset.note) == (("soil", "crop"), "")


def test_a_list_of_classes_may_say_the_value_of_each(pair: Pair, tmp_path: Path) -> None:
    stored = pair("images/train/a.png", "masks/train/a.png", [0, 7, 255])
    pair("images/val/a.png", "masks/val/a.png", [0, 255])
    (tmp_path / "classes.txt").write_text("0: background\n255: road\n7:\n")
    dataset = LabelMaps(tmp_path, "train")
    assert dataset.classes == ("background", "road")
    expected = np.select([stored == 0, stored == 255], [0, 1], IGNORE)
    np.testing.assert_array_equal(labels_of(dataset).numpy(), expected)
    pair("images/train/a.png", "masks/train/a.png", [0, 1, 255])
    with pytest.raises(BadLabelMap, match="it holds 1, and the 2 classes are stored as 0, 255, and 7 is ignored"):
        labels_of(dataset)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0: a\nb\n", "gives some classes a stored value and not 'b'"),
        ("0: a\n256: b\n", "a number from 0 to 255, each in one line"),
        ("0: a\n0: b\n", "a number from 0 to 255, each in one line"),
        ("0: a\n1: a\n", "has the class 'a' twice"),
        ("0:\n1:\n", "ignores every value"),
    ],
)
def test_lists_that_say_nothing_clear(text: str, said: str, folder: Path) -> None:
    (folder / "masks/classes.txt").write_text(text)
    with pytest.raises(ValueError, match=said):
        LabelMaps(folder, "train")


@pytest.mark.parametrize(
    ("values", "split", "said"),
    [
        (
            [0, 255],
            "train",
            r"hold only 0 and 255, and 255 means ignored: .*`0: background` and `255: foreground` into",
        ),
        ([0, 255], "val", None),
        ([255], "val", r"every pixel .* is ignored \(they hold 255\)"),
        ([255], "train", "is ignored"),
        ([1, 255], "train", r"is of the class 'b' or ignored \(they hold 1, 255\)"),
        ([0, 1], "train", None),
        ([0], "val", None),
        ([0, 9], "train", None),  # the image's own error says more
    ],
)
def test_maps_that_leave_nothing_to_learn_are_refused(
    values: list[int], split: Split, said: str | None, pair: Pair, tmp_path: Path
) -> None:
    for i in range(3):
        pair(f"images/{split}/{i}.png", f"masks/{split}/{i}.png", values)
    pair("images/val/9.png" if split == "train" else "images/train/9.png", "masks/train/9.png", [0, 1])
    (tmp_path / "masks/val").mkdir(exist_ok=True)
    (tmp_path / "classes.txt").write_text("a\nb\n")
    dataset = LabelMaps(tmp_path, split)
    if said is None:
        dataset.refuse_unlearnable(split)
        return
    with pytest.raises(ValueError, match=said):
        dataset.refuse_unlearnable(split)


def test_binary_masks_train_after_what_the_message_says(pair: Pair, tmp_path: Path) -> None:
    for split in ("train", "val"):
        pair(f"images/{split}/a.png", f"masks/{split}/a.png", [0, 255])
    with pytest.raises(ValueError, match="hold only 0 and 255") as error:
        LabelMaps(tmp_path, "train").refuse_unlearnable("train")
    folder = Path(str(error.value).rpartition(" into ")[2])
    (folder / "classes.txt").write_text("0: background\n255: foreground\n")
    dataset = LabelMaps(tmp_path, "train")
    dataset.refuse_unlearnable("train")
    assert labels_of(dataset).unique().tolist() == [0, 1]


def cvat(root: Path, colours: list[tuple[int, int, int]], mode: str) -> Path:
    """Two images for each split; the label map of each has one colour, in a palette of its own in mode P."""
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    for folder in ("JPEGImages", "SegmentationClass"):
        (root / folder).mkdir()
    (root / "labelmap.txt").write_text("road:255,0,0::\nsea:0,255,0::\n")
    for i, colour in enumerate(colours * 2):
        Image.new("RGB", SIDES).save(root / "JPEGImages" / f"{i}.jpg")
        picture = Image.new(mode, SIDES, 0 if mode == "P" else colour)
        if mode == "P":
            picture.putpalette([*colour, *[0] * 765])
        picture.save(root / "SegmentationClass" / f"{i}.png")
    for split, names in (("train", "0\n1\n"), ("val", "2\n3\n")):
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text(names)
    return root


@pytest.mark.parametrize("mode", ["RGB", "P"])
def test_maps_of_colours_are_refused_by_what_the_colours_mean(mode: str, tmp_path: Path) -> None:
    red, green = (255, 0, 0), (0, 255, 0)
    both = LabelMaps(cvat(tmp_path / "both", [red, green], mode), "train")
    both.refuse_unlearnable("train")
    assert [labels_of(both, i).unique().tolist() for i in range(2)] == [[0], [1]]
    alone = LabelMaps(cvat(tmp_path / "one", [green, green], mode), "train")
    with pytest.raises(ValueError, match=r"is of the class 'sea' or ignored, so that nothing can be learnt"):
        alone.refuse_unlearnable("train")


def test_names_in_the_lists_of_voc_may_have_spaces(pair: Pair, tmp_path: Path) -> None:
    for split in ("train", "val"):
        pair(f"JPEGImages/my {split} photo.jpg", f"SegmentationClass/my {split} photo.png", [0, 1])
        (tmp_path / "ImageSets" / "Segmentation").mkdir(parents=True, exist_ok=True)
        (tmp_path / "ImageSets" / "Segmentation" / f"{split}.txt").write_text(f"my {split} photo\n")
    assert LabelMaps(tmp_path, "train").id(0) == "my train photo.jpg"


def test_stored_values_of_ade20k_are_those_of_the_class_list(pair: Pair, tmp_path: Path) -> None:
    for split in ("training", "validation"):
        stored = pair(f"images/{split}/a.jpg", f"annotations/{split}/a.png", [0, 1, 149])
    (tmp_path / "classes.txt").write_text("".join(f"{value}: {name}\n" for value, name in enumerate(ADE20K)))
    assert torch.equal(labels_of(LabelMaps(tmp_path, "val")), torch.from_numpy(stored))
    (tmp_path / "classes.txt").write_text("\n".join(ADE20K))
    assert labels_of(LabelMaps(tmp_path, "val")).unique().tolist() == [0, 148, IGNORE]
