"""Images with one label each, whose bytes are in files, archives or tables. N images, C classes."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import numpy as np

from fourstage.data.findings import Finding
from fourstage.data.images import decode_image, read_stored
from fourstage.data.limits import check_classes, packed_names, read_class_file
from fourstage.data.sample import Sample, Split
from fourstage.data.splits import VAL_SHARE, split_positions

SYNSETS = {  # classes -> timm's table with the folder of each, in the order that published labels count
    1000: "imagenet_synsets.txt",
    21841: "imagenet21k_goog_synsets.txt",  # its last two rows are classes a second time, and lists leave them out
}


class Store(Protocol):
    """Where the bytes of images are. A row is a position among all images of a split."""

    def id(self, row: int) -> str:
        """The sample's id."""
        ...

    def where(self, row: int) -> str:
        """The file, or the archive and the path in it, for messages."""
        ...

    def read(self, row: int) -> bytes:
        """The image file's bytes, as they were stored. Raises BadImage."""
        ...


@dataclass(frozen=True)
class Listing:
    """What is known of one split before an image is opened.

    Attributes:
        source: the list, archive or folder, for messages.
        rows_N: which rows of the store belong to the split, in the order of the samples.
        problems: what is wrong; a data set with an error among them cannot be opened.
        missing: positions of the samples whose image is listed but does not exist.
        shards_N: the shard of each image, ascending; None where any order reads equally fast.
        note: one sentence about what is unusual; empty otherwise.
        held_out: whether the validation split consists of images that were held out.
    """

    source: str
    classes: tuple[str, ...]
    labels_N: np.ndarray
    store: Store
    rows_N: np.ndarray
    problems: list[Finding] = field(default_factory=list)
    missing: tuple[int, ...] = ()
    shards_N: np.ndarray | None = None
    note: str = ""
    held_out: bool = False

    def take(self, places: np.ndarray) -> "Listing":
        """Return the listing of the images at these positions."""
        kept = {int(place): i for i, place in enumerate(places)} if self.missing else {}
        return replace(
            self,
            labels_N=self.labels_N[places],
            rows_N=self.rows_N[places],
            shards_N=None if self.shards_N is None else self.shards_N[places],
            missing=tuple(kept[place] for place in self.missing if place in kept),
        )


Survey = Callable[[Path, Split], Listing]  # of a folder, which lists the images of one split


class Listed:
    """One split of a data set, from its listing.

    Attributes:
        note: one sentence about what is unusual; empty otherwise.
        shard_sizes: images in each shard, in the order of the samples; empty where any order reads equally fast.

    Raises:
        ValueError: the listing has an error; its sentence.
    """

    truths = ("label",)

    def __init__(self, listing: Listing) -> None:
        if errors := [problem for problem in listing.problems if problem.severity == "error"]:
            more = f" (and {len(errors) - 1:,} more errors; `fourstage data check` lists them)" if errors[1:] else ""
            raise ValueError(f"{errors[0]}{more}")
        self._store, self._rows_N = listing.store, listing.rows_N
        _refuse_missing(listing)
        self.classes, self.labels_N, self.note = listing.classes, listing.labels_N, listing.note
        self.shard_sizes: tuple[int, ...] = ()
        if listing.shards_N is not None and len(listing.shards_N):
            self.shard_sizes = tuple(np.bincount(listing.shards_N).tolist())

    def __len__(self) -> int:
        return len(self.labels_N)

    def id(self, index: int) -> str:
        return self._store.id(int(self._rows_N[index]))

    def where(self, index: int) -> str:
        return self._store.where(int(self._rows_N[index]))

    def raw(self, index: int) -> bytes:
        """The image file's bytes. Raises BadImage when they cannot be read."""
        return self._store.read(int(self._rows_N[index]))

    def sample(self, index: int) -> Sample:
        image_HW3 = decode_image(self.raw(index), self.where(index))
        return Sample(self.id(index), image_HW3, image_HW3.shape[:2], label=int(self.labels_N[index]))


def _refuse_missing(listing: Listing) -> None:
    if listing.missing:
        first = [listing.store.where(int(listing.rows_N[place])) for place in listing.missing[:3]]
        count = len(listing.missing)
        raise ValueError(
            f"{listing.source} lists {count:,} image{'s' * (count > 1)} that {'do' if count > 1 else 'does'} not "
            f"exist, such as {', '.join(first)}; add {'them' if count > 1 else 'it'}, or remove the lines from the list"
        )


class FileStore:
    """Image files below a folder. `names` are their paths below it; `source` lists them, for messages."""

    def __init__(self, folder: Path, names: Sequence[bytes], source: str | Path) -> None:
        self.folder, self.names_N = folder, packed_names(names, source)

    def id(self, row: int) -> str:
        return os.fsdecode(self.names_N[row])

    def where(self, row: int) -> str:
        return str(self.folder / self.id(row))

    def read(self, row: int) -> bytes:
        return read_stored(self.where(row))


def missing_files(folder: Path, names: Sequence[bytes]) -> tuple[int, ...]:
    """Return the positions of the names that no file below `folder` has.

    Each folder is listed once: a look-up for each name would take minutes.
    """
    root, there = os.fsencode(folder), dict[bytes, frozenset[bytes]]()
    missing: list[int] = []
    for place, name in enumerate(names):
        parent, _, file = name.rpartition(b"/")
        if parent not in there:
            there[parent] = _files_in(os.path.join(root, parent))  # noqa: PTH118 - paths as bytes
        if file not in there[parent]:
            missing.append(place)
    return tuple(missing)


def _files_in(folder: bytes) -> frozenset[bytes]:
    try:
        return frozenset(os.listdir(folder))  # noqa: PTH208 - names as bytes
    except OSError:
        return frozenset()


def hold_out(listing: Listing, split: Split) -> Listing:
    """Return the images of `split` from a listing without a validation split.

    A tenth of each class, at least one image of every class that has two, is held out; a hash of the ids decides.
    """
    held = np.zeros(len(listing.labels_N), dtype=bool)
    order = np.argsort(listing.labels_N, kind="stable")
    _, starts = np.unique(listing.labels_N[order], return_index=True)
    for places in np.split(order, starts[1:]) if len(order) else []:
        ids = [listing.store.id(int(listing.rows_N[place])) for place in places]
        held[places[split_positions(ids, "val")]] = True
    note = (
        f"{listing.source} has no validation split: a fixed {VAL_SHARE:.0%} of each class ({held.sum():,} of "
        f"{len(held):,} images) is held out for validation"
    )
    return replace(
        listing.take(np.flatnonzero(held if split == "val" else ~held)), note=note if held.any() else "", held_out=True
    )


def label_problems(source: str, labels_N: np.ndarray, classes: Sequence[str]) -> list[Finding]:
    """Return findings for a list without images, with one class, or with labels that are out of range."""
    if not len(labels_N):
        return [
            Finding(
                "error",
                "empty list",
                source,
                "lists no image",
                "it needs a line with a path and a label for each image",
            )
        ]
    if len(classes) < 2:
        what = "has one class, so there is nothing to classify"
        return [Finding("error", "one class", source, what, "give images of two classes or more")]
    found: list[Finding] = []
    values, counts = np.unique(labels_N, return_counts=True)
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        if not 0 <= value < len(classes):
            what = f"gives {count:,} image{'s' * (count > 1)} the label {value}, and the classes are 0 to "
            do = "labels count from 0, and training and validation data share their classes; correct them"
            found.append(Finding("error", "label out of range", source, f"{what}{len(classes) - 1}", do))
    return found


def empty_classes(source: str, labels_N: np.ndarray, classes: Sequence[str]) -> list[Finding]:
    """Return findings for classes without a training image."""
    counts = np.bincount(labels_N[(labels_N >= 0) & (labels_N < len(classes))], minlength=len(classes))
    empty = np.flatnonzero(counts == 0).tolist()
    do = "add some; where labels begin with 1, subtract one" if empty[:1] == [0] else "add some"
    return [Finding("warning", "empty class", source, f"has no image of class {i} ({classes[i]})", do) for i in empty]


def class_names(
    root: Path | None, names: Sequence[bytes], labels_N: np.ndarray, source: str | Path = "the list"
) -> tuple[str, ...]:
    """Return names for classes that a list gives as numbers.

    The first that exists: the lines of `classes.txt` or `meta/classes.txt` in `root`; the folders of the images,
    where each class has one of its own; ImageNet's folders (`n01440764`, ...) where the labels are 0 to 999 or 0 to
    21840; the numbers themselves. A network that was trained from class folders therefore fits the list.
    """
    for path in (root / "classes.txt", root / "meta" / "classes.txt") if root is not None else ():
        if path.is_file():
            return read_class_file(path)
    count = int(labels_N.max()) + 1 if len(labels_N) else 0
    return _folder_names(names, labels_N) or numbered_classes(count, source)


def numbered_classes(count: int, source: str | Path = "the data") -> tuple[str, ...]:
    """Return ImageNet's folders where the number of classes is ImageNet's, else the numbers from 0 on.

    Raises:
        ValueError: there are more classes than data may have; `source` is what says so.
    """
    check_classes(count, source)
    spec = find_spec("timm") if count in SYNSETS else None  # only its table is read: importing timm takes seconds
    for place in spec.submodule_search_locations or () if spec is not None else ():
        path = Path(place) / "data" / "_info" / SYNSETS[count]
        if path.is_file():
            return tuple(path.read_text().split()[:count])
    return tuple(map(str, range(count)))


def folder_labels(names: Sequence[bytes], labels_N: np.ndarray) -> dict[bytes, int]:
    """Return the label of each folder, where every label has exactly one folder of its own; else nothing."""
    of_label: dict[int, bytes] = {}
    for name, label in zip(names, labels_N.tolist(), strict=True):
        folder = name.rpartition(b"/")[0].rpartition(b"/")[2]
        if not folder or of_label.setdefault(label, folder) != folder:
            return {}
    labels = {folder: label for label, folder in of_label.items()}
    return labels if len(labels) == len(of_label) else {}


def _folder_names(names: Sequence[bytes], labels_N: np.ndarray) -> tuple[str, ...]:
    """Return the folder of each class where every label from 0 on has exactly one of its own; else nothing."""
    folders = {label: folder for folder, label in folder_labels(names, labels_N).items()}
    complete = sorted(folders) == list(range(len(folders)))
    return tuple(os.fsdecode(folders[label]) for label in sorted(folders)) if complete else ()
