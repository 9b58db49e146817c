"""Where data sets for semantic segmentation keep their images, label maps and class names.

A layout is one entry of LAYOUTS; the first that fits a folder is taken.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from fourstage.data.class_names import ADE20K
from fourstage.data.findings import Finding
from fourstage.data.images import is_image_name
from fourstage.data.label_maps.class_list import NAME as CLASSES
from fourstage.data.label_maps.class_list import ClassList, find_class_list
from fourstage.data.limits import (
    LIST_BYTES,
    TEXT_BYTES,
    as_name,
    check_inside,
    leads_away,
    text_lines,
)
from fourstage.data.sample import IGNORE, NoSplitError, Split
from fourstage.data.splits import SPLIT_NAMES, held_out_note, joined_notes, split_positions
from fourstage.data.walk import all_files, has_images, image_files
from fourstage.files import read_bytes

Colour = tuple[int, int, int]

LABELS = ("masks", "labels", "annotations", "ann_dir", "mask")  # the first that is there
IMAGES = ("images", "img_dir", "imgs", "image")
ENDINGS = (".png", ".tif", ".tiff", ".bmp", ".gif")  # of label maps; a JPEG does not keep its numbers
SUFFIXES = ("", "_mask", "_masks", "_label", "_labels", "_gt", "_seg", "-mask", "_L")  # behind the image's name
ADE_CLASSES = 150
ADE_NAMES = "objectInfo150.txt"
CITYSCAPES: tuple[tuple[str, int, Colour], ...] = (  # name, number in labelIds, colour; https://www.cityscapes-dataset.com
    ("road", 7, (128, 64, 128)), ("sidewalk", 8, (244, 35, 232)), ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)), ("fence", 13, (190, 153, 153)), ("pole", 17, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)), ("traffic sign", 20, (220, 220, 0)), ("vegetation", 21, (107, 142, 35)),
    ("terrain", 22, (152, 251, 152)), ("sky", 23, (70, 130, 180)), ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)), ("car", 26, (0, 0, 142)), ("truck", 27, (0, 0, 70)), ("bus", 28, (0, 60, 100)),
    ("train", 31, (0, 80, 100)), ("motorcycle", 32, (0, 0, 230)), ("bicycle", 33, (119, 11, 32)),
)  # fmt: skip
CITYSCAPES_IDS = 34  # labelIds run from 0 to 33; 255 means -1, a license plate
VOC = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


@dataclass(frozen=True)
class Pairs:
    """One split: images and their label maps, in the same order.

    Attributes:
        folder: the samples' ids are paths below it.
        training_maps: the label maps of the training split, which count where classes have no names.
        classes: names; empty where the data has none.
        values: label by stored value, where the two differ; other values should not occur, but for 255, which is
            ignored unless it is among them.
        palette: a colour for each class, where the layout has some.
        colours: label by colour, where label maps may hold colours instead of numbers.
        problems: what is wrong; a data set with an error among them cannot be opened.
        unused: label maps without an image.
        note: one sentence about what is unusual; empty otherwise.
    """

    layout: str
    folder: Path
    images: Sequence[Path]
    maps: Sequence[Path]
    training_maps: Sequence[Path] = ()
    classes: tuple[str, ...] = ()
    values: Mapping[int, int] | None = None
    palette: tuple[Colour, ...] | None = None
    colours: Mapping[Colour, int] | None = None
    problems: list[Finding] = field(default_factory=list)
    unused: Sequence[Path] = ()
    note: str = ""


@dataclass(frozen=True)
class Layout:
    """One way to keep label maps."""

    name: str
    looks: str  # for the sentence that lists what is known
    fits: Callable[[Path], bool]
    find: Callable[[Path, Split], Pairs]


def is_ade20k(root: Path) -> bool:
    return all(
        (root / folder / name).is_dir() for folder in ("images", "annotations") for name in ("training", "validation")
    )


def find_ade20k(root: Path, split: Split) -> Pairs:
    """SceneParsing: 150 classes, stored as 1 to 150; 0 is ignored."""
    held_out = has_images(root / "images" / "training") and not has_images(root / "images" / "validation")
    name = "training" if split == "train" or held_out else "validation"
    images, labels = root / "images" / name, root / "annotations" / name
    values = {0: IGNORE, **{i + 1: i for i in range(ADE_CLASSES)}}
    listed = find_class_list(root / "annotations", root)
    if listed is not None and (listed.names != ADE20K or listed.values is not None):
        pairs = paired("ADE20K's folders", images, labels, listed.names, listed.values)
        return held_apart(pairs, split, root) if held_out else pairs
    names = _ade_names(root / ADE_NAMES)
    note = "" if names or listed else assumed(root, "ADE20K", f"{ADE_CLASSES} classes are assumed, stored from 1 on")
    pairs = replace(paired("ADE20K", images, labels, names or ADE20K, values), note=note)
    return held_apart(pairs, split, root) if held_out else pairs


def assumed(root: Path, layout: str, what: str) -> str:
    """Return the note on classes that a layout has, where the data names none."""
    return f"{root} has the folders of {layout} and no {CLASSES}: its {what}; write {CLASSES} for other classes."


def _ade_names(path: Path) -> tuple[str, ...]:
    """The first of each class's names; the last column of a table with a title line."""
    if not path.is_file():
        return ()
    rows = [line.split("\t") for line in read_bytes(path, TEXT_BYTES).decode("utf-8", "replace").splitlines()[1:]]
    names = tuple(row[-1].split(",")[0].strip() for row in rows if len(row) > 1)
    return names if len(names) == ADE_CLASSES else ()


def is_cityscapes(root: Path) -> bool:
    return (root / "leftImg8bit").is_dir() and (root / "gtFine").is_dir()


def find_cityscapes(root: Path, split: Split) -> Pairs:
    """19 classes; `labelTrainIds` where they are, else `labelIds`.

    Raises:
        NoSplitError: no images of this split.
    """
    above = root / "leftImg8bit"
    held_out = _has_any(above / "train") and not _has_any(above / "val")
    split_name = "train" if held_out else split
    images = above / split_name
    if not images.is_dir():
        raise NoSplitError(f"{images} does not exist; unpack leftImg8bit_trainvaltest.zip there")
    paths = [images / path for path in image_files(images) if path.endswith("_leftImg8bit.png")]
    stems = [root / "gtFine" / split_name / _relative(path, images).removesuffix("_leftImg8bit.png") for path in paths]
    train_ids = bool(stems) and _with(stems[0], "_gtFine_labelTrainIds.png").is_file()
    ending = "_gtFine_labelTrainIds.png" if train_ids else "_gtFine_labelIds.png"
    values = dict.fromkeys(range(0 if train_ids else CITYSCAPES_IDS), IGNORE)
    values |= {i if train_ids else number: i for i, (_, number, _) in enumerate(CITYSCAPES)}
    listed = find_class_list(root / "gtFine", root)
    maps = [_with(stem, ending) for stem in stems]
    pairs = Pairs(
        layout="Cityscapes",
        folder=images,
        images=paths,
        maps=maps,
        classes=listed.names if listed else tuple(name for name, _, _ in CITYSCAPES),
        values=listed.values if listed else values,
        palette=None if listed else tuple(colour for _, _, colour in CITYSCAPES),
        problems=without_maps(images, paths, maps),
    )
    return held_apart(pairs, split, root) if held_out else pairs


def _has_any(folder: Path) -> bool:
    return folder.is_dir() and has_images(folder)


def _with(stem: Path, ending: str) -> Path:
    return stem.with_name(stem.name + ending)


def is_voc(root: Path) -> bool:
    return (root / "SegmentationClass").is_dir() and (root / "ImageSets" / "Segmentation").is_dir()


def find_voc(root: Path, split: Split) -> Pairs:
    """21 classes with the background; what ImageSets/Segmentation lists.

    Raises:
        NoSplitError: no list for this split.
    """
    listed = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    if not listed.is_file():
        raise NoSplitError(f"{listed} does not exist; it lists the images of the split, one name a line")
    names = [as_name(line) for line in text_lines(read_bytes(listed, LIST_BYTES), listed)]
    check_inside(root, (root / "JPEGImages" / name for name in names if leads_away(name)), listed)
    images = [root / "JPEGImages" / f"{name}.jpg" for name in names]
    maps = [root / "SegmentationClass" / f"{name}.png" for name in names]
    problems = without_maps(root / "JPEGImages", images, maps)
    listed = find_class_list(root / "SegmentationClass", root) or ClassList(VOC)
    note = assumed(root, "Pascal VOC", f"{len(VOC)} classes are assumed") if listed == ClassList(VOC) else ""
    return Pairs(
        "Pascal VOC", root / "JPEGImages", images, maps, classes=listed.names, values=listed.values, problems=problems,
        note=note,
    )  # fmt: skip


def is_folder(root: Path) -> bool:
    return _label_folder(root) is not None and any(_image_folder(root, split) for split in ("train", "val"))


def find_folder(root: Path, split: Split) -> Pairs:
    """images/{train,val} with masks/{train,val}, or images with masks.

    A tenth of the training images is held out where there is no val.

    Raises:
        NoSplitError: no training images.
    """
    labels = _label_folder(root)
    assert labels is not None
    train, val = _image_folder(root, "train"), _image_folder(root, "val")
    if split == "train" and train is None:
        raise NoSplitError(f"{root} holds no images/train: add it to train, or use this data for evaluation only")
    listed = find_class_list(labels, root) or ClassList(())
    images = (val or train) if split == "val" else train
    assert images is not None
    pairs = paired("label maps", images, _labels_of(labels, images), listed.names, listed.values)
    training = pairs.maps if train is None or images == train else paired("", train, _labels_of(labels, train)).maps
    pairs = replace(pairs, training_maps=training)
    return held_apart(pairs, split, root) if val is None else pairs


def held_apart(pairs: Pairs, split: Split, source: Path) -> Pairs:
    """Return the pairs that belong to `split`, of which the training pairs give their maps to name the classes."""
    names = [_relative(path, pairs.folder) for path in pairs.images]
    kept = split_positions(names, split)
    training = pairs.training_maps or pairs.maps
    images, maps = ([paths[i] for i in kept] for paths in (pairs.images, pairs.maps))
    note = joined_notes(pairs.note, held_out_note(source, names))
    return replace(pairs, images=images, maps=maps, training_maps=training, note=note)


def _label_folder(root: Path) -> Path | None:
    found = next((root / name for name in LABELS if (root / name).is_dir()), None)
    return None if found is None or _holds_texts(found) else found


def _labels_of(labels: Path, images: Path) -> Path:
    return labels if images.name in IMAGES else labels / images.name


def _holds_texts(folder: Path) -> bool:
    """Whether the files are of a format with boxes: texts, XML or JSON, and no images."""
    names = list(islice((path for path in all_files(folder) if Path(path).name != CLASSES), 100))
    texts = any(name.lower().endswith((".txt", ".xml", ".json")) for name in names)
    return texts and not any(name.lower().endswith(ENDINGS) for name in names)


def _image_folder(root: Path, split: Split) -> Path | None:
    """Return images/<split> or, as in digit scenes, <split>, where there are label maps of that name.

    Images and label maps without folders of splits are all for training.
    """
    labels = _label_folder(root)
    if labels is None:
        return None
    above = [root / name for name in IMAGES if (root / name).is_dir()]
    for name in SPLIT_NAMES[split]:
        for folder in (*(folder / name for folder in above), root / name):
            if folder.is_dir() and (labels / name).is_dir() and (split == "train" or has_images(folder)):
                return folder
    if split == "val" or _splits_below(labels) or not _holds_maps(labels):
        return None
    return next((folder for folder in above if any(map(is_image_name, _names_in(folder)))), None)


def _splits_below(labels: Path) -> bool:
    return any((labels / name).is_dir() for names in SPLIT_NAMES.values() for name in names)


def _holds_maps(labels: Path) -> bool:
    return any(name.lower().endswith(ENDINGS) for name in _names_in(labels))


def _names_in(folder: Path) -> Iterator[str]:
    with os.scandir(folder) as entries:
        yield from (entry.name for entry in entries)


def paired(
    layout: str,
    images: Path,
    labels: Path,
    classes: tuple[str, ...] = (),
    values: Mapping[int, int] | None = None,
) -> Pairs:
    """Return the images and the label maps that have the same names, but for the ending and one of `SUFFIXES`."""
    there = {str(Path(path).with_suffix("")): path for path in _map_files(labels)}
    names = [path for path in image_files(images) if images != labels or not is_map_name(path)]
    paths = [images / name for name in names]
    maps = [labels / _map_of(name, there, SUFFIXES if images != labels else SUFFIXES[1:]) for name in names]
    known = set(maps)
    unused = [labels / path for path in there.values() if labels / path not in known]
    if images == labels:
        unused = [path for path in unused if is_map_name(path.name)]
    problems = without_maps(images, paths, maps)
    return Pairs(
        layout, images, paths, maps, training_maps=maps, classes=classes, values=values, problems=problems,
        unused=unused,
    )  # fmt: skip


def is_map_name(name: str) -> bool:
    """Return whether a file beside images is a label map by the end of its name: `a_mask.png`."""
    path = Path(name)
    return path.suffix.lower() in ENDINGS and path.stem.endswith(SUFFIXES[1:])


def _map_files(labels: Path) -> list[str]:
    """Return the label maps below a folder; of one name, the ending that is first in `ENDINGS` comes last."""
    files = [path for path in (all_files(labels) if labels.is_dir() else ()) if path.lower().endswith(ENDINGS)]
    return sorted(files, key=lambda path: (-ENDINGS.index(Path(path).suffix.lower()), path))


def _map_of(image: str, there: Mapping[str, str], suffixes: Sequence[str]) -> str:
    """Return the label map of an image; a name that no file has where it is missing."""
    stem = str(Path(image).with_suffix(""))
    names = (there.get(stem + suffix) for suffix in suffixes)
    return next((name for name in names if name is not None), f"{stem}{suffixes[0]}.png")


def without_maps(folder: Path, images: Sequence[Path], maps: Sequence[Path]) -> list[Finding]:
    if not images:
        do = "file names must end in .jpg, .png or the like"
        return [Finding("error", "no images", str(folder), "holds no images", do)]
    return [
        Finding("error", "no label map", str(image), f"has no label map {label_map}", "add it, or move the image away")
        for image, label_map in zip(images, maps, strict=True)
        if not label_map.is_file()
    ]


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


LAYOUTS = (
    Layout("ADE20K", "images/training with annotations/training", is_ade20k, find_ade20k),
    Layout("Cityscapes", "leftImg8bit/train with gtFine/train", is_cityscapes, find_cityscapes),
    Layout("Pascal VOC", "JPEGImages with SegmentationClass and ImageSets/Segmentation", is_voc, find_voc),
    Layout("label maps", "images/train/*.jpg with masks/train/*.png, or images with masks", is_folder, find_folder),
)
