"""Label maps as annotation tools export them: CVAT's colours in Pascal VOC's folders, and Roboflow's masks."""

import csv
from dataclasses import replace
from pathlib import Path

from fourstage.data.images import EXTENSIONS
from fourstage.data.label_maps.class_list import find_class_list
from fourstage.data.label_maps.layouts import (
    ENDINGS,
    VOC,
    Layout,
    Pairs,
    assumed,
    held_apart,
    paired,
    without_maps,
)
from fourstage.data.limits import (
    LABEL_MAP_CLASSES,
    LIST_BYTES,
    TEXT_BYTES,
    as_name,
    check_inside,
    decoded,
    leads_away,
    read_class_file,
    text_lines,
)
from fourstage.data.sample import IGNORE, NoSplitError, Split
from fourstage.data.splits import EXPORT_SPLIT_NAMES, SPLIT_NAMES, of_split
from fourstage.data.voc_label_map import LABEL_MAP, read_label_map
from fourstage.data.walk import has_images, image_files
from fourstage.files import read_bytes

CLASS_FOLDERS = ("SegmentationClass", "SegmentationClassPNG")  # labelme's script keeps arrays in the first
LISTS = ("class_names.txt", "labels.txt")
ROBOFLOW = "_classes.csv"


def is_voc_export(root: Path) -> bool:
    """Return whether a folder has VOC's folders of label maps, and not the two lists of VOC itself."""
    if _class_folder(root) is None:
        return False
    lists = root / "ImageSets" / "Segmentation"
    complete = all(_lists_any(lists / f"{split}.txt") for split in ("train", "val"))
    return (root / LABEL_MAP).is_file() or not complete


def find_voc_export(root: Path, split: Split) -> Pairs:
    """Read CVAT's "Segmentation mask 1.1", whose `labelmap.txt` gives each class a colour, and its like.

    Raises:
        NoSplitError: no list for this split.
    """
    labels = _class_folder(root)
    assert labels is not None
    lists = sorted((root / "ImageSets" / "Segmentation").glob("*.txt"))
    train = of_split(lists, "train")
    val = of_split([path for path in lists if train is None or _lists_any(path)], "val")
    if split == "train" and train is None and val is not None:
        raise NoSplitError(
            f"{lists[0].parent / 'train.txt'} does not exist; it lists the images of the split, one name a line"
        )
    all_of = lists[0] if len(lists) == 1 and train is val is None else None
    training = _pairs(root, labels, train or all_of)
    if val is None:
        return held_apart(training, split, root)
    return training if split == "train" else replace(_pairs(root, labels, val), training_maps=training.maps)


def _lists_any(path: Path) -> bool:
    return path.is_file() and bool(text_lines(read_bytes(path, LIST_BYTES), path))


def _pairs(root: Path, labels: Path, listed: Path | None) -> Pairs:
    if listed is None:
        names = sorted(Path(name).with_suffix("").as_posix() for name in _maps_below(labels))
    else:
        names = [as_name(line) for line in text_lines(read_bytes(listed, LIST_BYTES), listed)]
        check_inside(root, (labels / name for name in names if leads_away(name)), listed)
    folder = next((root / name for name in ("JPEGImages", "images") if (root / name).is_dir()), root / "JPEGImages")
    images = [_file(folder, name, EXTENSIONS, ".jpg") for name in names]
    maps = [_file(labels, name, ENDINGS, ".png") for name in names]
    problems = without_maps(folder, images, maps)
    pairs = Pairs("Pascal VOC", folder, images, maps, training_maps=maps, problems=problems)
    return _with_classes(root, pairs)


def _with_classes(root: Path, pairs: Pairs) -> Pairs:
    if (root / LABEL_MAP).is_file():
        colour_of = read_label_map(root / LABEL_MAP)
        _check_count(root / LABEL_MAP, len(colour_of))
        colours = {colour: label for label, colour in enumerate(colour_of.values()) if colour is not None}
        palette = tuple(colour or (0, 0, 0) for colour in colour_of.values())
        return replace(pairs, classes=tuple(colour_of), colours=colours, palette=palette)
    listed = find_class_list(pairs.maps[0].parent if pairs.maps else root, root)
    if listed is not None:
        return replace(pairs, classes=listed.names, values=listed.values)
    path = next((root / name for name in LISTS if (root / name).is_file()), None)
    if path is None and (root / "ImageSets" / "Segmentation" / "train.txt").is_file():
        return replace(pairs, classes=VOC, note=assumed(root, "Pascal VOC", f"{len(VOC)} classes are assumed"))
    names = () if path is None else tuple(name for name in read_class_file(path) if name != "__ignore__")
    return replace(pairs, classes=names)


def _class_folder(root: Path) -> Path | None:
    folders = (root / name for name in CLASS_FOLDERS if (root / name).is_dir())
    return next((folder for folder in folders if _has_maps(folder)), None)


def _has_maps(folder: Path) -> bool:
    return any(path.suffix.lower() in ENDINGS for path in folder.iterdir()) or bool(_maps_below(folder))


def _maps_below(folder: Path) -> list[str]:
    """Return the label maps in a folder and all folders in it: CVAT keeps the folders of the images."""
    return [name for name in image_files(folder) if name.lower().endswith(ENDINGS)]


def _file(folder: Path, name: str, endings: tuple[str, ...], usual: str) -> Path:
    paths = (folder / f"{name}{case}" for ending in endings for case in (ending, ending.upper()))
    return next((path for path in paths if path.is_file()), folder / f"{name}{usual}")


def is_roboflow(root: Path) -> bool:
    """Return whether a folder has Roboflow's masks: `train/a.jpg`, `train/a_mask.png`, `train/_classes.csv`."""
    return any(_titles(root / name / ROBOFLOW)[:1] == ["pixel value"] for name in SPLIT_NAMES["train"])


def find_roboflow(root: Path, split: Split) -> Pairs:
    """Read Roboflow's masks, whose values `_classes.csv` names.

    Raises:
        NoSplitError: no folder for this split.
    """
    there = {one: _split_folder(root, one) for one in ("train", "val")}
    folder = there["val"] or there["train"] if split == "val" else there["train"]
    if folder is None:
        raise NoSplitError(f"{root} has no folder {split} with {ROBOFLOW}")
    classes = _classes(folder / ROBOFLOW)
    values = {value: label for label, value in enumerate(classes)}
    pairs = replace(paired("Roboflow masks", folder, folder, tuple(classes.values())), values=values)
    return held_apart(pairs, split, root) if there["val"] is None else pairs


def _split_folder(root: Path, split: Split) -> Path | None:
    folders = [root / name for name in EXPORT_SPLIT_NAMES[split] if (root / name / ROBOFLOW).is_file()]
    return next((folder for folder in folders if split == "train" or has_images(folder)), None)


def _titles(path: Path) -> list[str]:
    try:
        first = decoded(read_bytes(path, TEXT_BYTES), path).partition("\n")[0]
    except (OSError, ValueError):
        return []
    return [title.strip().lower() for title in first.split(",")]


def _classes(path: Path) -> dict[int, str]:
    """Return the name of each value, in the order of the file."""
    rows = list(csv.reader(decoded(read_bytes(path, TEXT_BYTES), path).splitlines()[1:]))
    classes: dict[int, str] = {}
    for row in rows:
        value, name = (row[0].strip(), row[1].strip()) if len(row) > 1 else ("", "")
        if not value.isdecimal() or len(value) > 3 or int(value) >= IGNORE or int(value) in classes or not name:
            raise ValueError(
                f"{path} has the row {row!r:.60}; a row is a value from 0 to {IGNORE - 1}, each once, and the name of "
                "a class"
            )
        classes[int(value)] = name
    _check_count(path, len(classes))
    return classes


def _check_count(path: Path, count: int) -> None:
    if not 0 < count <= LABEL_MAP_CLASSES:
        raise ValueError(f"{path} names {count:,} classes, and a label map has 1 to {LABEL_MAP_CLASSES}; correct it")


EXPORTS = (
    Layout("CVAT masks", "SegmentationClass with labelmap.txt and JPEGImages", is_voc_export, find_voc_export),
    Layout("Roboflow masks", "train/a.jpg, train/a_mask.png and train/_classes.csv", is_roboflow, find_roboflow),
)
