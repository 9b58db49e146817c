"""Other test sets for networks that know ImageNet's 1000 classes, by the layouts in which they are published.

ImageNet-A and ImageNet-R have folders of 200 of the classes, ImageNet-Sketch and ImageNet's own validation images of
all 1000, named by their WordNet ids; ImageNetV2 has folders that are named by the classes' numbers. ImageNet-ReaL gives
ImageNet's validation images new labels, in a file.
"""

import os
import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from fourstage.data.images import read_image
from fourstage.data.labels.imagefolder import find_layout
from fourstage.data.sample import Dataset, Sample
from fourstage.data.walk import image_files, subfolders
from fourstage.documents import read_json

CLASSES = 1000
VALIDATION_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.jpe?g", re.IGNORECASE)
REAL_FILE = "real.json"


@lru_cache(maxsize=1)
def wnids() -> tuple[str, ...]:
    """The WordNet ids of ImageNet's 1000 classes, in the order of their labels."""
    return tuple(_info().label_names())


def readable_names(classes: Sequence[str]) -> tuple[str, ...]:
    """Class names for people: what WordNet calls each class that is named by its id; others stay as they are.

    Two classes of one name keep their ids beside it.
    """
    if not classes or not all(map(_is_wnid, classes)):
        return tuple(classes)
    info = _info()
    try:
        names = [info.label_name_to_description(wnid).split(",")[0] for wnid in classes]
    except KeyError:  # an id that no ImageNet has
        return tuple(classes)
    times = Counter(names)
    return tuple(f"{name} ({id})" if times[name] > 1 else name for name, id in zip(names, classes, strict=True))


class Variant:
    """All images of a test set, with labels from 0 to 999 as ImageNet has them.

    Attributes:
        classes: `wnids()`, also where the folders name some of them, or their numbers.
        among: labels of the classes that the data has, ascending; None: all 1000.
        own_validation: whether these are ImageNet's own validation images, by their names.
        note: one sentence about how predictions are made, where that is unusual; empty otherwise.

    Raises:
        ValueError: a class folder without images, or one that is not a class of ImageNet's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.classes, self.truths = folder, wnids(), ("label",)
        folders = subfolders(folder)
        label = {name: i for i, name in enumerate(_numbers() if _numbered(folders) else self.classes)}
        if odd := [name for name in folders if name not in label]:
            raise ValueError(f"{folder / odd[0]} is not a class of ImageNet's, as {self.classes[0]} is; remove it")
        files = {name: list(image_files(folder / name)) for name in sorted(folders, key=label.__getitem__)}
        empty = [name for name, paths in files.items() if not paths]
        if empty:
            raise ValueError(f"{folder / empty[0]} is a class folder without images; add some, or delete the folder")
        self.among = tuple(label[name] for name in files) if len(files) < CLASSES else None
        self.note = among_note(self.among) if self.among else ""
        ids = [f"{name}/{path}" for name, paths in files.items() for path in paths]
        self.own_validation = all(VALIDATION_NAME.fullmatch(id.rsplit("/", 1)[-1]) for id in ids)
        self._ids = np.array([os.fsencode(id) for id in ids])  # an array: forked loader workers copy no objects
        self.labels_N = np.repeat([label[name] for name in files], [len(paths) for paths in files.values()])

    def __len__(self) -> int:
        return len(self._ids)

    def id(self, index: int) -> str:
        return os.fsdecode(self._ids[index])

    def sample(self, index: int) -> Sample:
        image_HW3 = read_image(self.folder / self.id(index))
        return Sample(self.id(index), image_HW3, image_HW3.shape[:2], label=int(self.labels_N[index]))


def among_note(among: Sequence[int]) -> str:
    """Return the sentence on an evaluation that predicts only some of ImageNet's classes."""
    return f"predictions among the {len(among)} classes of the data"


def find_variant(root: Path) -> Path | None:
    """The folder of the class folders, if they are named as a test set for ImageNet's classes; None otherwise.

    They are directly below `root` or in its `val/`. With a `train/` beside it, `val/` is one only if it lacks some of
    the 1000 classes: with all of them it is ImageNet. No image is read, so this does not show what a network was
    trained for.
    """
    if not root.is_dir():
        return None
    layout = find_layout(root)
    folder = layout.val or (root if layout.train == root else None)
    if folder is None:
        return None
    names = subfolders(folder)
    if _numbered(names):
        return folder
    if len(names) < 2 or not all(map(_is_wnid, names)) or not set(names).issubset(wnids()):
        return None
    return folder if len(names) < CLASSES or layout.train in (None, root) else None


def read_real(root: Path, dataset: Dataset) -> dict[str, list[int]] | None:
    """ImageNet-ReaL's valid labels of each sample, by its id.

    They are read from `real.json` in the data's folder, in its `val/` or beside it: a list with the labels of
    ILSVRC2012_val_00000001.JPEG and so on. None without such a file, and for images of other names or classes.

    Raises:
        ValueError: the file is damaged, or too short for the images.
    """
    file = next(
        (path for path in (root / REAL_FILE, root / "val" / REAL_FILE, root.parent / REAL_FILE) if path.is_file()), None
    )
    if file is None or len(dataset.classes) != CLASSES:
        return None
    ids = [dataset.id(index) for index in range(len(dataset))]
    names = [VALIDATION_NAME.fullmatch(id.rsplit("/", 1)[-1]) for id in ids]
    numbers = [int(name[1]) for name in names if name]
    if len(numbers) < len(ids):
        return None
    lists = _lists(file)
    if max(numbers) > len(lists) or min(numbers) < 1:
        raise ValueError(
            f"{file} has labels of {len(lists):,} images and the data an image number {max(numbers):,}; download the "
            f"file again, or remove it"
        )
    return {id: lists[number - 1] for id, number in zip(ids, numbers, strict=True)}


def _lists(file: Path) -> list[list[int]]:
    try:
        content: Any = read_json(file)
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}); download it again, or remove it") from None
    valid = isinstance(content, list) and all(
        isinstance(labels, list) and all(type(label) is int and 0 <= label < CLASSES for label in labels)
        for labels in content
    )
    if not valid:
        raise ValueError(
            f"{file} is not ImageNet-ReaL's list of lists of labels from 0 to 999; download it again, or remove it"
        )
    return content


def _is_wnid(name: str) -> bool:
    return re.fullmatch(r"n\d{8}", name) is not None


def _numbers() -> tuple[str, ...]:
    return tuple(map(str, range(CLASSES)))


def _numbered(names: Sequence[str]) -> bool:
    return len(names) == CLASSES and set(names) == set(_numbers())


def _info() -> Any:
    from timm.data.imagenet_info import ImageNetInfo

    return ImageNetInfo()  # reads its tables when it is constructed
