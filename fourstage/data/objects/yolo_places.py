"""What describes a data set in YOLO's layout: `data.yaml`, Darknet's `obj.data` and `obj.names`, or `classes.txt`."""

import os
import re
import reprlib
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from fourstage.data.file_names import found_names, found_note, resolved
from fourstage.data.images import EXTENSIONS
from fourstage.data.limits import (
    LIST_BYTES,
    TEXT_BYTES,
    as_name,
    check_classes,
    check_inside,
    decoded,
    is_inside,
    leads_away,
    read_class_file,
    text_lines,
)
from fourstage.data.sample import NoSplitError, Split
from fourstage.data.splits import EXPORT_SPLIT_NAMES, held_out_note, joined_notes, split_positions
from fourstage.data.walk import has_images, image_files
from fourstage.documents import YAML_BYTES, in_file, parse_yaml
from fourstage.files import read_bytes

NAMES = ("data.yaml", "data.yml", "dataset.yaml")  # looked at first; then any other
DARKNET = ("obj.names", "obj.data")
CLASSES = "classes.txt"
LOOKED_AT = 100  # texts of a folder
LEFT_OUT = "the keypoints of its objects are left out, and their boxes are used"
EXPORTED = re.compile(r"(\.\./)?(valid|test)/images/?")  # Roboflow's validation splits


@dataclass(frozen=True)
class Description:
    """What the describing file says."""

    path: Path
    classes: tuple[str, ...]
    folders: dict[str, tuple[str, ...]]  # by the key of the split: folders of images, or text files that list them
    base: Path  # where relative paths start
    root: Path  # the data folder, in which all of them are
    keypoints: int = 0  # numbers behind each box that describe its keypoints

    def find(self, split: Split) -> tuple[list[Path], str]:
        """Return the images of one split, in the order of their names or of the list, and a note for the user.

        Raises:
            NoSplitError: there is no such split.
            ValueError: a folder or list is missing, or has no images.
        """
        train = next((key for key in EXPORT_SPLIT_NAMES["train"] if key in self.folders), None)
        listed = self._images_of(train) if split == "train" and train is not None else None  # its errors come first
        val = self._validation()
        key = (val or train) if split == "val" else train
        if key is None:
            raise NoSplitError(
                f"{self.path} names no images for {split}: a line `{EXPORT_SPLIT_NAMES[split][0]}: FOLDER` is needed"
            )
        images, notes = listed or self._images_of(key)
        if not images:
            raise ValueError(f"{self.path}: {', '.join(self.folders[key])} ({key}) holds no images; add them")
        if val is None:
            names = [Path(os.path.relpath(path, self.base)).as_posix() for path in images]
            notes.append(held_out_note(self.path, names))
            images = [images[i] for i in split_positions(names, split)]
        return images, joined_notes(*notes)

    def _validation(self) -> str | None:
        """Return the key of the validation split, the first that has images; exports name one even without any."""
        keys = [key for key in EXPORT_SPLIT_NAMES["val"] if key in self.folders]
        return next((key for key in keys if not self._is_left_empty(key) and self._has_images(key)), None)

    def _is_left_empty(self, key: str) -> bool:
        """Return whether a split is a folder that Roboflow names and does not write: it has no images."""
        texts = self.folders[key]
        return all(EXPORTED.fullmatch(text) and not any(map(Path.exists, self._places(text))) for text in texts)

    def _has_images(self, key: str) -> bool:
        places = [self._place(key, text) for text in self.folders[key]]
        return any(has_images(place) if place.is_dir() else bool(self._images_of(key)[0]) for place in places)

    def _images_of(self, key: str) -> tuple[list[Path], list[str]]:
        listed = [self._listed(key, text) for text in self.folders[key]]
        return [path for images, _ in listed for path in images], [note for _, note in listed]

    def _listed(self, key: str, text: str) -> tuple[list[Path], str]:
        place = self._place(key, text)
        if place.is_dir():
            return sorted(place / name for name in image_files(place)), ""
        names = [as_name(line) for line in text_lines(read_bytes(place, LIST_BYTES), place)]
        found = found_names(self.root, self.base, names)
        away = (self.base / name for i, name in enumerate(names) if leads_away(name) and i not in found)
        check_inside(self.root, away, place)
        return [self._below(name) for name in resolved(names, found)], found_note(place, names, found)

    def _place(self, key: str, text: str) -> Path:
        there = [place for place in self._places(text) if place.exists()]
        if not there:
            remedy = f"; add it, or remove the line `{key}:`, and a tenth of the training images is held out"
            raise ValueError(
                f"{self.path} says `{key}: {text}`, but there is no {self._below(text)}"
                f"{remedy if key in EXPORT_SPLIT_NAMES['val'] else ''}"
            )
        place = next((place for place in there if is_inside(self.root, place)), there[0])
        check_inside(self.root, [place], self.path)
        return place

    def _places(self, text: str) -> list[Path]:
        """Exports often have `../train/images` or `data/train.txt` for what is next to the file."""
        shorter = (self._below(text.removeprefix(start)) for start in ("../", "data/"))
        return [self._below(text), *shorter, self.path.parent / text]

    def _below(self, text: str) -> Path:
        return self.base / text  # an absolute path stays what it is


def is_yolo(root: Path) -> bool:
    """Whether `root` has a yaml file with names and images, Darknet's lists, or `classes.txt` and label files."""
    return find_yaml(root) is not None or _is_darknet(root) or bool(_plain_folders(root))


def find_yaml(root: Path) -> Path | None:
    """Return the file that describes the data, if there is one."""
    first = [root / name for name in NAMES if (root / name).is_file()]
    others = sorted(
        path for pattern in ("*.yaml", "*.yml") for path in root.glob(pattern) if path not in first and path.is_file()
    )
    for path in (*first, *others):
        content = _mapping(path) if path in first else _mapping_or_none(path)
        if "names" in content and _split_keys(content):
            return path
    for path in others:
        if _seems_description(path):
            _mapping(path)  # raises the error of a file that describes data and is no YAML
    return None


def describe(root: Path) -> Description:
    """Return what a folder says about itself. Raises ValueError where it names no classes."""
    path = find_yaml(root)
    if path is None and _is_darknet(root):
        return _darknet(root)
    if path is None and (folders := _plain_folders(root)):
        return Description(root / CLASSES, read_class_file(root / CLASSES), folders, root, root)
    if path is None:
        raise ValueError(f"{root} has no data.yaml with the keys names, train and val")
    content = _mapping(path)
    with in_file(path):
        folders = {key: _texts(path, key, content[key]) for key in _split_keys(content)}
        base = path.parent / _path(path, content.get("path"))
        base = base if base.is_dir() else path.parent
        return Description(path, _classes(path, content), folders, base, root, _keypoints(path, content))


def left_out(description: Description) -> str:
    """Return the sentence on keypoints."""
    return f"{description.path} has kpt_shape: {LEFT_OUT}."


def _keypoints(path: Path, content: dict[str, Any]) -> int:
    """Return how many numbers describe the keypoints of an object."""
    shape = content.get("kpt_shape")
    if shape is None:
        return 0
    counts = shape if isinstance(shape, list) and all(type(n) is int for n in shape) else []
    if len(counts) != 2 or not 0 < counts[0] <= 1000 or counts[1] not in (2, 3):
        raise ValueError(
            f"{path}: kpt_shape is the number of keypoints and 2 or 3, as [17, 3]; got {reprlib.repr(shape)}"
        )
    return counts[0] * counts[1]


def _is_darknet(root: Path) -> bool:
    return all((root / name).is_file() for name in DARKNET)


def _darknet(root: Path) -> Description:
    """Read lines such as `train = data/train.txt`; https://docs.cvat.ai/docs/dataset_management/formats/format-yolo."""
    path = root / DARKNET[1]
    pairs = (line.partition("=") for line in text_lines(read_bytes(path, TEXT_BYTES), path))
    entries = {key.strip().lower(): value.strip() for key, _, value in pairs}
    folders = {key: (_path(path, entries[key]),) for key in ("train", "valid", "val") if entries.get(key)}
    there = {key: texts for key, texts in folders.items() if key == "train" or _is_listed(root, texts[0])}
    return Description(path, read_class_file(root / DARKNET[0]), there, root, root)


def _is_listed(root: Path, text: str) -> bool:
    return any((root / name).exists() for name in (text, text.removeprefix("data/")))


def _plain_folders(root: Path) -> dict[str, tuple[str, ...]]:
    """Return the image folders of a folder with `classes.txt`, as Label Studio and labelImg write it; else nothing."""
    if not (root / CLASSES).is_file():
        return {}
    names = [name for names in EXPORT_SPLIT_NAMES.values() for name in names]
    for images, labels in (("images/{}", "labels/{}"), ("{}/images", "{}/labels")):
        found = {n: (images.format(n),) for n in names if _pairs(root / images.format(n), root / labels.format(n))}
        if found:
            return found
    if _pairs(root / "images", root / "labels"):
        return {"train": ("images",)}
    return {"train": (".",)} if _pairs(root, root) else {}


def _pairs(images: Path, labels: Path) -> bool:
    """Return whether label files are there, and the image of one of the first."""
    if not (images.is_dir() and labels.is_dir()):
        return False
    texts = islice((path for path in labels.glob("*.txt") if path.name != CLASSES), LOOKED_AT)
    endings = (*EXTENSIONS, *(ending.upper() for ending in EXTENSIONS))
    return any((images / f"{path.stem}{ending}").is_file() for path in texts for ending in endings)


def _mapping(path: Path) -> dict[str, Any]:
    """Return the content of a YAML file, or nothing where it is no mapping. Raises ValueError where it is no YAML."""
    try:
        content = parse_yaml(decoded(read_bytes(path, YAML_BYTES), path), path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); correct it") from error
    return content if isinstance(content, dict) else {}


def _seems_description(path: Path) -> bool:
    """Return whether a file has lines that begin with `names:` and with `train:` or `val:`."""
    try:
        text = read_bytes(path, YAML_BYTES)
    except (OSError, ValueError):
        return False
    return all(re.search(key, text, re.MULTILINE) for key in (rb"^\s*names\s*:", rb"^\s*(train|val)\s*:"))


def _mapping_or_none(path: Path) -> dict[str, Any]:
    """Return the content of a YAML file that may be of another program; nothing where it cannot be read."""
    try:
        return _mapping(path)
    except ValueError:
        return {}


def _split_keys(content: dict[str, Any]) -> list[str]:
    return [key for keys in EXPORT_SPLIT_NAMES.values() for key in keys if content.get(key)]


def _texts(path: Path, key: str, value: Any) -> tuple[str, ...]:
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{path}: {key} is a folder or a list of folders, got {reprlib.repr(value)}")
    return tuple(_path(path, text) for text in texts)


def _path(path: Path, text: Any) -> str:
    try:
        return as_name(text or ".")
    except ValueError as error:
        raise ValueError(f"{path}: {error}; correct it") from error


def _classes(path: Path, content: dict[str, Any]) -> tuple[str, ...]:
    names = content["names"]
    if isinstance(names, dict) and all(type(key) in (int, str) for key in names):
        by_number = {str(key): name for key, name in names.items()}
        ordered = [by_number.get(str(i)) for i in range(len(names))]
        names = ordered if len(by_number) == len(names) and None not in ordered else names
    named = isinstance(names, list) and bool(names) and all(_is_name(name) for name in names)
    if not named or content.get("nc", len(names)) != len(names):
        raise ValueError(
            f"{path}: names is a list, or a mapping from 0, 1, ... to class names, as many as nc says; got "
            f"{reprlib.repr(names)}"
        )
    check_classes(len(names), path)
    return tuple(str(name) for name in names)


def _is_name(name: object) -> bool:
    """Return whether a value may be the name of a class; YAML reads some names as numbers or as yes and no."""
    return isinstance(name, str | int | float)
