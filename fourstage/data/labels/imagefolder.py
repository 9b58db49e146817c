"""Images for classification in the ImageFolder layout: `train/<class>/*.jpg` and `val/<class>/*.jpg`."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from fourstage.data.findings import Finding
from fourstage.data.images import read_image, read_stored
from fourstage.data.limits import packed_names
from fourstage.data.sample import NoSplitError, Sample, Split
from fourstage.data.splits import SPLIT_NAMES, VAL_SHARE, split_positions
from fourstage.data.walk import has_images, image_files, subfolders

NO_CLASSES = (  # folders in which other formats keep images, masks and boxes
    "image", "images", "img", "imgs", "img_dir", "jpegimages", "rgb", "mask", "masks", "label", "labels", "labelmap",
    "labelmaps", "ann", "ann_dir", "annotation", "annotations", "gt", "groundtruth", "segmentation", "segmentations",
    "segmentationclass", "segmentationobject", "imagesets",
)  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """Where the class folders of a data set are. `val` is None where some images of `train` have to be held out."""

    root: Path
    train: Path | None
    val: Path | None

    def folder(self, split: Split) -> Path:
        """The folder whose sub-folders are the classes of `split`. Raises ValueError when there is none."""
        folder = self.val or self.train if split == "val" else self.train
        if folder is None:
            raise NoSplitError(
                f"{self.root} holds {self.val and self.val.name}/ but no train/: add train/<class>/ to train, "
                "or use this data for evaluation only"
            )
        return folder


class ImageFolder:
    """One split of a folder of images; each sub-folder of `train/` is a class, in sorted order.

    Images may be in folders below their class. `valid/`, `validation/` and `test/` serve as `val/`. Without any of
    them, or with class folders directly below the root, a tenth of each class (at least one image of every class with
    two) is held out for validation, chosen by a hash of the path: the same images on every machine. EXIF orientation is
    not applied, as in torchvision and timm.

    Attributes:
        note: one sentence about what is unusual, such as a split that was held out; empty otherwise.

    Raises:
        ValueError: a missing folder, no classes, no images, a class without images, a class in val/ that train/ lacks.
    """

    def __init__(self, root: str | Path, split: Split) -> None:
        layout = find_layout(Path(root))
        self.folder = layout.folder(split)
        self.classes = tuple(subfolders(layout.train or self.folder))
        self.truths = ("label",)
        files = {name: list(image_files(self.folder / name)) for name in subfolders(self.folder)}
        if broken := layout_problems(layout, split, self.classes, files):
            raise ValueError(str(broken[0]))
        self.note = str(layout_note(layout, split, self.classes, files) or "")
        files = images_of(layout, split, files)
        ids = [f"{name}/{path}" for name, paths in files.items() for path in paths]
        # Arrays, not a million objects: forked loader workers would copy the pages of each object that they touch.
        self._ids = packed_names([os.fsencode(id) for id in ids], self.folder)
        label = {name: position for position, name in enumerate(self.classes)}
        self.labels_N = np.repeat([label[name] for name in files], [len(paths) for paths in files.values()])

    def __len__(self) -> int:
        return len(self._ids)

    def id(self, index: int) -> str:
        return os.fsdecode(self._ids[index])

    def path(self, index: int) -> Path:
        return self.folder / self.id(index)

    def where(self, index: int) -> str:
        return str(self.path(index))

    def raw(self, index: int) -> bytes:
        """The image file's bytes. Raises BadImage when they cannot be read."""
        return read_stored(self.path(index))

    def sample(self, index: int) -> Sample:
        image_HW3 = read_image(self.path(index))
        return Sample(self.id(index), image_HW3, image_HW3.shape[:2], label=int(self.labels_N[index]))


def find_layout(root: Path) -> Layout:
    """Return which folder holds the classes of which split. Raises ValueError when `root` is not a folder."""
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise ValueError(f"{root} {what}: give the folder that holds train/<class>/*.jpg, or the name digits")
    below = {path.name.lower(): path for path in sorted(root.iterdir()) if path.is_dir()}
    train, val = ([below[n] for n in SPLIT_NAMES[s] if n in below] for s in ("train", "val"))
    val = [folder for folder in val if not train or has_images(folder)]
    if not train and not val:
        return Layout(root, train=root, val=None)
    return Layout(root, next(iter(train), None), next(iter(val), None))


def is_imagefolder(root: Path) -> bool:
    """Whether `root` looks like this layout: a split folder, or two folders with images somewhere below.

    Folders that are called `images`, `masks` or the like are no classes: the data is then of another kind.
    """
    layout = find_layout(root)
    folders = subfolders(layout.train or layout.val or root)
    if folders and all(name.lower() in NO_CLASSES for name in folders):
        return False
    if layout.train != root:
        return True
    with_images = (has_images(root / folder) for folder in folders)
    return sum(islice(filter(None, with_images), 2)) == 2


def layout_problems(layout: Layout, split: Split, classes: Sequence[str], files: dict[str, list[str]]) -> list[Finding]:
    """Return why the data cannot be used; `files` are the images of each class folder of `split`."""
    folder = layout.folder(split)
    if not files:
        do = f"every sub-folder is one class, such as {folder}/cat/001.jpg"
        return [Finding("error", "no classes", str(folder), "holds no class folders", do)]
    if not any(files.values()):
        what = f"holds no images in its {len(files)} class folders"
        return [Finding("error", "no images", str(folder), what, "file names must end in .jpg, .png or the like")]
    if len(files) < 2 and len(classes) < 2:
        do = f"give {folder} one sub-folder for each class; perhaps the path is one level too deep or too high"
        return [Finding("error", "one class", str(folder), "holds one class, so there is nothing to classify", do)]
    do = f"rename or delete the folder, or add training images to {layout.train}"
    unknown = [
        Finding("error", "unknown class", str(folder / name), f"is a class that {layout.train} lacks", do)
        for name in files
        if name not in classes
    ]
    do = "add some, or delete the folder"
    empty = [
        Finding("error", "empty class", str(folder / name), "is a class folder without images", do)
        for name, paths in files.items()
        if not paths
    ]
    return unknown + empty


def images_of(layout: Layout, split: Split, files: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return the files that belong to `split`: all of them, unless both splits come from one folder."""
    if layout.val is not None:
        return files
    return {
        name: [paths[i] for i in split_positions([f"{name}/{path}" for path in paths], split)]
        for name, paths in files.items()
    }


def layout_note(layout: Layout, split: Split, classes: Sequence[str], files: dict[str, list[str]]) -> Finding | None:
    """Return what is unusual about `split` but fine; `files` are all images of each class folder."""
    if layout.val is None:
        held_out = sum(len(paths) for paths in images_of(layout, "val", files).values())
        total = sum(len(paths) for paths in files.values())
        if not held_out:
            return None
        do = f"a fixed {VAL_SHARE:.0%} of each class ({held_out:,} of {total:,} images) is held out for validation"
        return Finding("note", "held-out split", str(layout.root), "has no images in a folder val/", do)
    if split == "val" and (lacking := sorted(set(classes) - set(files))):
        what = f"has no images of {len(lacking)} of the {len(classes)} classes, such as {lacking[0]!r}"
        return Finding("note", "classes not validated", str(layout.val), what, "their accuracy is not measured")
    if split == "val" and layout.val.name.lower() == "test":
        return Finding("note", "split", str(layout.root), "has no val/ folder", "test/ is used for validation")
    return None
