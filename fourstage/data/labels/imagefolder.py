"""Images for classification in the ImageFolder layout: `train/<class>/*.jpg` and `val/<class>/*.jpg`."""

import os
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, cast

import numpy as np

from fourstage.data.findings import CHUNK, Finding, Progress
from fourstage.data.images import is_image_name, read_image
from fourstage.data.objects.views import ObjectData, Part
from fourstage.data.order import by_hash
from fourstage.data.sample import BadImage, Dataset, NoSplitError, Sample

Split = Literal["train", "val"]

SPLIT_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "test"),  # the first that is there
}
VAL_SHARE = 0.1


@dataclass(frozen=True)
class Layout:
    """Where the class folders of a data set are. `val` is None where a part of `train` has to be held out."""

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

    Images may lie in folders below their class. `valid/`, `validation/` and `test/` do as `val/`. Without any of them,
    or with class folders directly below the root, a tenth of each class (at least one image of every class that has
    two) is held out for validation, chosen by a hash of the path: the same images on every machine. EXIF orientation is
    not applied, as in torchvision and timm.

    Attributes:
        note: one sentence about what is unusual, such as a split that was made here; empty otherwise.

    Raises:
        ValueError: a missing folder, no classes, no images, a class without images, a class in val/ that train/ lacks.
    """

    def __init__(self, root: str | Path, split: Split) -> None:
        layout = find_layout(Path(root))
        self.folder = layout.folder(split)
        self.classes = tuple(class_names(layout.train or self.folder))
        self.truths = ("label",)
        files = {name: list(image_files(self.folder / name)) for name in class_names(self.folder)}
        if broken := problems(layout, split, self.classes, files):
            raise ValueError(str(broken[0]))
        self.note = str(note(layout, split, self.classes, files) or "")
        files = held_apart(layout, split, files)
        ids = [f"{name}/{path}" for name, paths in files.items() for path in paths]
        # Arrays, not a million objects: forked loader workers would copy the pages of each object that they touch.
        self._ids = np.array([os.fsencode(id) for id in ids])
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
        try:
            return self.path(index).read_bytes()
        except OSError as error:
            raise BadImage(str(self.path(index)), str(error.strerror).lower()) from error

    def sample(self, index: int) -> Sample:
        image_HW3 = read_image(self.path(index))
        return Sample(self.id(index), image_HW3, image_HW3.shape[:2], label=int(self.labels_N[index]))


def find_layout(root: Path) -> Layout:
    """Which folder holds the classes of which split. Raises ValueError when `root` is no folder."""
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise ValueError(f"{root} {what}: give the folder that holds train/<class>/*.jpg, or the name digits")
    below = {path.name.lower(): path for path in sorted(root.iterdir()) if path.is_dir()}
    train, val = (next((below[n] for n in SPLIT_NAMES[s] if n in below), None) for s in ("train", "val"))
    if train is None and val is None:
        return Layout(root, train=root, val=None)
    return Layout(root, train, val)


def is_imagefolder(root: Path) -> bool:
    """Whether `root` looks like this layout: a split folder, or two folders with images somewhere below."""
    if find_layout(root).train != root:
        return True
    with_images = (
        any(is_image_name(name) for _, _, names in os.walk(root / folder) for name in names)
        for folder in class_names(root)
    )
    return sum(islice(filter(None, with_images), 2)) == 2


def class_names(folder: Path) -> list[str]:
    """Names of the sub-folders, sorted; hidden ones and what macOS adds to archives are none."""
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith((".", "__MACOSX")))


def image_files(folder: Path) -> Iterator[str]:
    """Paths below `folder`, sorted, of all image files in it and in its sub-folders; symbolic links are followed."""
    return (path for path in all_files(folder) if is_image_name(path.rsplit("/", 1)[-1]))


def all_files(folder: Path) -> list[str]:
    """Paths below `folder`, sorted, with `/`, of every file that is not hidden."""
    found: list[str] = []
    seen: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(parent)) in seen:  # a link that leads back up
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = Path(parent).relative_to(folder).as_posix()
        prefix = "" if below == "." else f"{below}/"
        found += [prefix + name for name in names if not name.startswith(".")]
    return sorted(found)


def problems(layout: Layout, split: Split, classes: Sequence[str], files: dict[str, list[str]]) -> list[Finding]:
    """Why the data cannot be used; `files` are the images of each class folder of `split`."""
    folder = layout.folder(split)
    if not files:
        do = f"every sub-folder is one class, such as {folder}/cat/001.jpg"
        return [Finding("error", "no classes", str(folder), "holds no class folders", do)]
    if not any(files.values()):
        what = f"holds no images in its {len(files)} class folders"
        return [Finding("error", "no images", str(folder), what, "file names must end in .jpg, .png or the like")]
    if len(files) < 2 and len(classes) < 2:
        do = f"give {folder} one sub-folder for each class; perhaps the path is one level too deep or too high"
        return [Finding("error", "one class", str(folder), "holds one class, so there is nothing to tell apart", do)]
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


def held_apart(layout: Layout, split: Split, files: dict[str, list[str]]) -> dict[str, list[str]]:
    """What of `files` belongs to `split`: all, unless both splits come from one folder."""
    if layout.val is not None:
        return files
    return {name: [paths[i] for i in _part(name, paths, split)] for name, paths in files.items()}


def note(layout: Layout, split: Split, classes: Sequence[str], files: dict[str, list[str]]) -> Finding | None:
    """What is unusual about `split` and yet fine; `files` are the images of each class folder, whole."""
    if layout.val is None:
        held_out = sum(len(paths) for paths in held_apart(layout, "val", files).values())
        total = sum(len(paths) for paths in files.values())
        do = (
            f"{held_out:,} of its {total:,} images, about {VAL_SHARE:.0%} of each class and always the same ones, "
            "are held out for validation"
        )
        return Finding("note", "held-out split", str(layout.root), "has no val/ folder", do)
    if split == "val" and (lacking := sorted(set(classes) - set(files))):
        what = f"has no images of {len(lacking)} of the {len(classes)} classes, such as {lacking[0]!r}"
        return Finding("note", "classes not validated", str(layout.val), what, "their accuracy is not measured")
    if split == "val" and layout.val.name.lower() == "test":
        return Finding("note", "split", str(layout.root), "has no val/ folder", "test/ is used for validation")
    return None


def _part(name: str, paths: Sequence[str], split: Split) -> list[int]:
    """Positions, ascending, of the images of one class that belong to `split` when a part is held out."""
    count = max(1, round(len(paths) * VAL_SHARE)) if len(paths) > 1 else 0
    order = by_hash([f"{name}/{path}" for path in paths])
    return sorted(order[:count] if split == "val" else order[count:])


def find_bad_images(dataset: Dataset, progress: Progress | None = None) -> dict[str, BadImage]:
    """Decode every image of a data set, in threads, and return what cannot be read by the sample's id, in order."""
    bad: dict[str, BadImage] = {}
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for start in range(0, len(dataset), CHUNK):
            indices = range(start, min(start + CHUNK, len(dataset)))
            for index, error in zip(indices, pool.map(lambda i: _error(dataset, i), indices), strict=True):
                if error is not None:
                    bad[dataset.id(index)] = error
                if progress is not None:
                    progress(index + 1, len(dataset))
    return bad


def _error(dataset: Dataset, index: int) -> BadImage | None:
    try:
        dataset.sample(index)
    except BadImage as error:
        return error
    return None


class Without:
    """A data set less the samples with the given ids, in the same order and with the same classes."""

    def __init__(self, dataset: Dataset, ids: Collection[str]) -> None:
        self._dataset = dataset
        self._indices = np.array([i for i in range(len(dataset)) if dataset.id(i) not in ids], dtype=np.int64)
        self.classes, self.truths = dataset.classes, dataset.truths
        self.note: str = getattr(dataset, "note", "")
        sizes: tuple[int, ...] = getattr(dataset, "shard_sizes", ())
        shards_N = np.searchsorted(np.cumsum(sizes), self._indices, side="right") if sizes else self._indices[:0]
        self.shard_sizes = tuple(np.bincount(shards_N, minlength=len(sizes)).tolist()) if sizes else ()

    def __len__(self) -> int:
        return len(self._indices)

    def id(self, index: int) -> str:
        return self._dataset.id(int(self._indices[index]))

    def sample(self, index: int) -> Sample:
        return self._dataset.sample(int(self._indices[index]))


def without(dataset: Dataset, ids: Collection[str]) -> Dataset:
    """`dataset` less the samples with these ids, such as what `find_bad_images` returns."""
    if hasattr(dataset, "counts"):  # data with objects, which says more of itself
        kept_I = np.array([dataset.id(i) not in ids for i in range(len(dataset))])
        return Part(cast(ObjectData, dataset), kept_I)
    return Without(dataset, ids)
