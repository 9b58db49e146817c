"""Data sets with COCO json: boxes, crowd regions, and masks as polygons or in either run-length form.

Annotations count as in MMDetection's CocoDataset, with which the published results were measured. H x W pixels,
N objects.
"""

import json
import reprlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from fourstage.data.file_names import found_note
from fourstage.data.images import read_image
from fourstage.data.limits import CLASSES, PATH_BYTES, as_id, as_name, colliding
from fourstage.data.objects.coco_places import find_images, find_split
from fourstage.data.objects.dataset import as_bad_objects
from fourstage.data.objects.json_scan import entries
from fourstage.data.objects.table import (
    FARTHEST,
    ObjectTable,
    ObjectWriter,
    Row,
    box_of,
    refuse_unlearnable,
    without_mask,
)
from fourstage.data.sample import BadImage, Objects, Sample, Split
from fourstage.data.splits import held_out_note, joined_notes, split_positions
from fourstage.documents import in_file
from fourstage.files import RAISE, limit, read_bytes

BYTES = 2**30  # of a json; that of COCO's training images has 450 MB
MOST = {"images": 5_000_000, "annotations": 10_000_000}  # entries; COCO has 118,000 and 860,000
VALUES = 20_000_000  # lists and mappings, and keys, in a json; COCO has four and seven million
SMALL = 2**24  # characters
KEYS = 1000  # of the json itself; COCO has five
CROWDED = (  # {}: the json
    "is marked iscrowd=1, which CVAT's brush writes: such a region of many objects neither trains nor scores; where "
    'each is one object, write 0 instead: sed -i -E \'s/"iscrowd": *1/"iscrowd": 0/g\' {}'
)
NEEDED = {
    "images": ("id", "file_name", "height", "width"),
    "annotations": ("image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}


class Coco:
    """One split of a folder in COCO layout, images in the order of the json.

    Annotations do not train when they are marked `ignore`, do not meet their image, or have no area or a side below one
    pixel. The other boxes are as written, not clipped to the image. Crowd regions, and objects whose polygons are all
    too short to enclose anything, are flagged in `crowd_N`. Masks are decoded when a sample is read. Labels are
    positions in the `categories` list.

    Attributes:
        image_ids: the json's id of each image, for results in COCO's format.
        category_ids: the json's id of each class.
        has_masks: whether any object that is no crowd region has a mask; if none has, samples carry boxes only.
        with_reference: whether samples carry their ground truth for scoring; only in the validation split.
        note: one sentence about what is unusual; empty otherwise.

    Raises:
        ValueError: no annotations for this split, json that cannot be read or is not COCO's.
    """

    def __init__(self, root: str | Path, split: Split) -> None:
        place = find_split(Path(root), split)
        content = _read(place.annotations)
        self.place, self._found = find_images(place, content.names)
        self.classes, self.category_ids, self.truths = content.classes, content.category_ids, ("objects",)
        self.image_ids, self._names = content.image_ids, content.names
        self._sizes_I2, self._table, self.has_masks = content.sizes_I2, content.table, content.table.has_masks
        self.with_reference = split == "val"
        self.note = found_note(place.annotations, content.names, self._found)
        if self.has_masks and (lacking := self._table.without_mask):
            self.note = joined_notes(self.note, without_mask(lacking, str(place.annotations)))
        if place.held_out:
            self.note = joined_notes(self.note, held_out_note(place.annotations, content.names))
            self._keep(split_positions(content.names, split))

    def _keep(self, positions: Sequence[int]) -> None:
        """Leave out all images but those at these positions."""
        self.image_ids = tuple(self.image_ids[i] for i in positions)
        self._names = tuple(self._names[i] for i in positions)
        self._found = {new: self._found[old] for new, old in enumerate(positions) if old in self._found}
        self._sizes_I2, self._table = self._sizes_I2[list(positions)], self._table.take(positions)

    def __len__(self) -> int:
        return len(self._names)

    def id(self, index: int) -> str:
        return self._names[index]

    def path(self, index: int) -> Path:
        return self.place.images / self._found.get(index, self.id(index))

    def sizes(self, indices: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """(I, 2) int64: height and width of these images (None: of all), as the json says."""
        return self._sizes_I2[slice(None) if indices is None else np.asarray(indices, dtype=np.int64)].copy()

    def counts(self) -> np.ndarray:
        """(I,) int64: annotations of each image, those that do not train too."""
        return self._table.counts_I.copy()

    def refuse_unlearnable(self, split: Split) -> None:
        """Raise ValueError where no object trains, or none counts in a score."""
        refuse_unlearnable(self._table, split, str(self.place.annotations), CROWDED.format(self.place.annotations))

    def label_counts(self) -> np.ndarray:
        """(C,) int64: objects of each class, those that do not train too."""
        return self._table.label_counts(len(self.classes))

    def size(self, index: int) -> tuple[int, int]:
        """(H, W), as the json says."""
        height, width = self._sizes_I2[index].tolist()
        return height, width

    def sample(self, index: int) -> Sample:
        """Read one image and its objects. Raises BadImage, also for a size that is not the json's and broken masks."""
        image_HW3 = read_image(self.path(index), orient=True)
        (height, width), stated = image_HW3.shape[:2], self.size(index)
        if stated != (height, width):
            reason = f"it is {width} x {height}, but {self.place.annotations} says {stated[1]} x {stated[0]}"
            raise BadImage(str(self.path(index)), reason)
        with as_bad_objects(self.path(index)):
            reference = self.reference(index) if self.with_reference else None
            return Sample(self.id(index), image_HW3, stated, objects=self.objects(index), reference=reference)

    def objects(self, index: int) -> Objects:
        """Return the objects of one image without reading it. Raises ValueError for a mask that cannot be decoded."""
        return self._table.objects(index, self.size(index), partial(self._where, index))

    def reference(self, index: int) -> dict[str, Any]:
        """Return the ground truth of an image, see `ObjectTable.reference`, with the json's `image_id`."""
        reference = self._table.reference(index, self.size(index), partial(self._where, index))
        return {"image_id": self.image_ids[index]} | reference

    def _where(self, index: int, name: Any) -> str:
        return f"{self.place.annotations}: annotation {name} of image {self.image_ids[index]}"


def read_json(path: Path) -> dict[str, list[Any]]:
    """Return the lists images, annotations and categories of a COCO json.

    Raises:
        ValueError: the file cannot be read, or an entry is not COCO's; boxes, masks and repeated ids are not checked.
    """
    entries: dict[str, list[Any]] = {key: [] for key in NEEDED}
    with in_file(path):
        _Content(path, entries)
    return entries


def read_ids(path: Path) -> tuple[dict[str, int | str], dict[str, int | str]]:
    """Return the id of each image by its file name, and of each category by its name; annotations are not needed.

    Raises:
        ValueError: as `read_json`; ids or names that are there twice.
    """
    with in_file(path):
        content = _Content(path, needed=("images", "categories"))
        content.check_ids()
    categories = {name: id for id, name in content.categories}
    if len(categories) < len(content.categories):
        raise ValueError(f"{path} has several categories of one name; give each its own")
    return dict(zip(content.names, content.image_ids, strict=True)), categories


@dataclass(frozen=True, eq=False)
class _Annotations:
    """The content of a json in a compact form."""

    classes: tuple[str, ...]
    category_ids: tuple[Any, ...]
    image_ids: tuple[Any, ...]
    names: tuple[str, ...]  # of the image files
    sizes_I2: np.ndarray
    table: ObjectTable


def _read(path: Path) -> _Annotations:
    """Read a json. The same file is not read twice in a row: a large one takes half a minute."""
    try:
        state = path.stat()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    return _read_once(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=2)
def _read_once(path: Path, changed: int, size: int) -> _Annotations:
    with in_file(path):
        content = _Content(path)
        content.check_ids()
        sizes_I2 = content.sizes()
        table = content.table(sizes_I2)
    return _Annotations(
        classes=tuple(name for _, name in content.categories),
        category_ids=tuple(id for id, _ in content.categories),
        image_ids=tuple(content.image_ids),
        names=tuple(content.names),
        sizes_I2=sizes_I2,
        table=table,
    )


class _Content:
    """The content of a json while it is read, one entry at a time: as Python objects, a large one takes gigabytes.

    Args:
        entries: lists that take the entries as they are, by their key; None: they are dropped.
        needed: the keys that must be there.
    """

    def __init__(
        self, path: Path, entries: dict[str, list[Any]] | None = None, needed: Sequence[str] = tuple(NEEDED)
    ) -> None:
        self.path, self.names, self.image_ids = path, list[str](), list[int | str]()
        self.categories: list[tuple[int | str, str]] = []
        self._above: list[object] = []  # the supercategory of each category
        self._sides: list[tuple[int, int]] = []
        self._written, self._broken = ObjectWriter(), dict[int, str]()
        self._images, self._labels = (
            dict[int | str, int](),
            dict[int | str, int](),
        )  # ids that annotations name, numbered
        known: dict[str, bool] = {}  # every key -> whether it is a list
        for key, position, entry in self._entries():
            if position < 0:
                if key in known or len(known) == KEYS:
                    fault = f"has the key {key[:40]!r} twice" if key in known else f"has more than {KEYS:,} keys"
                    raise ValueError(f"{path} {fault}; correct it")
                known[key] = isinstance(entry, list)
            elif key in NEEDED:
                self._checked(key, position, entry)
                if entries is not None:
                    entries[key].append(entry)
        for key in needed:
            if not known.get(key):
                raise _missing(path, key)
        if "annotations" in needed and (root := self._root()) is not None:
            del self.categories[root]
            if entries is not None:
                del entries["categories"][root]

    def sizes(self) -> np.ndarray:
        """(I, 2) int64: height and width of each image."""
        return np.array(self._sides, dtype=np.int64).reshape(-1, 2)

    def _root(self) -> int | None:
        """Return the position of a category without objects that is above all others, as Roboflow writes one."""
        for position, (id, name) in enumerate(self.categories):
            others = self._above[:position] + self._above[position + 1 :]
            named = bool(others) and all(above == name for above in others) and self._above[position] != name
            if named and id not in self._labels:
                return position
        return None

    def check_ids(self) -> None:
        """Raise ValueError where two images or two categories have one id, or two images one file."""
        category_ids = [id for id, _ in self.categories]
        for name, key, ids in (
            ("images", "id", self.image_ids),
            ("categories", "id", category_ids),
            ("images", "file_name", self.names),
        ):
            if (id := colliding(ids)) is not None:
                raise ValueError(f"{self.path} has several {name} with the {key} {id!r:.80}; give each its own")

    def table(self, sizes_I2: np.ndarray) -> ObjectTable:
        """The annotations of images and categories that are listed, in the order of the json."""
        images = {id: position for position, id in enumerate(self.image_ids)}
        labels = {id: position for position, (id, _) in enumerate(self.categories)}
        image_of = np.array([images.get(id, -1) for id in self._images], dtype=np.int64)
        label_of = np.array([labels.get(id, -1) for id in self._labels], dtype=np.int64)
        for row, sentence in self._broken.items():
            if image_of[self._written.images[row]] >= 0 and label_of[self._written.labels[row]] >= 0:
                raise ValueError(sentence)
        return ObjectTable(
            self._written, len(self.names), image_of=image_of, label_of=label_of, sizes_I2=sizes_I2
        )  # fmt: skip

    def _entries(self) -> Iterator[tuple[str, int, Any]]:
        try:
            text = _text(self.path)
            if text.lstrip()[:1] == "{":
                yield from entries(text)
            elif len(text) < SMALL:
                json.loads(text)  # raises where it is no JSON at all
        except OSError as error:
            raise ValueError(f"{self.path} cannot be read: {error.strerror}") from error
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"{self.path} is not valid JSON: {error}") from error

    def _checked(self, key: str, position: int, entry: Any) -> None:
        """Take an entry. Raises ValueError where it is not COCO's."""
        where = f"{key}[{position}]"
        if position >= limit(MOST.get(key, CLASSES)):
            raise ValueError(f"{self.path} has more than {position:,} {key}; {RAISE}")
        _check_entry(self.path, key, position, entry)
        try:
            self._take(key, position, entry)
        except ValueError as error:
            raise ValueError(f"{self.path} is not in COCO format: {where}: {error}") from error

    def _take(self, key: str, position: int, entry: dict[str, Any]) -> None:
        if key == "categories":
            name = entry["name"]
            if not isinstance(name, str | int) or isinstance(name, bool) or len(str(name)) > PATH_BYTES:
                raise ValueError(f"{reprlib.repr(name)} is not the name of a class; a name is a text")
            self.categories.append((as_id(entry["id"]), str(name)))
            self._above.append(entry.get("supercategory"))
        elif key == "images":
            self.image_ids.append(as_id(entry["id"]))
            self.names.append(as_name(entry["file_name"]))
            self._sides.append((_side(entry["height"]), _side(entry["width"])))
        else:
            self._annotation(position, entry)

    def _annotation(self, position: int, entry: dict[str, Any]) -> None:
        image = self._images.setdefault(as_id(entry["image_id"]), len(self._images))
        label = self._labels.setdefault(as_id(entry["category_id"]), len(self._labels))
        area, box = None, (np.nan, np.nan, np.nan, np.nan)
        try:
            area, box = area_from(entry.get("area")), box_of(entry["bbox"])
        except ValueError as error:
            self._broken[position] = (
                f"{self.path}: annotations[{position}] has the box {reprlib.repr(entry['bbox'])}; {error}"
            )
        flags = bool(entry.get("iscrowd")), bool(entry.get("ignore"))
        self._written.add(Row(image, label, box, area, *flags, entry.get("segmentation"), name_of(entry, position)))


def name_of(annotation: dict[str, Any], position: int) -> int | str:
    """Return what messages call an annotation: its id, or else its position in the list."""
    id = annotation.get("id")
    return id if type(id) is int or (type(id) is str and len(id) < 80) else f"at position {position}"


def _text(path: Path) -> str:
    """Return the text of a json. Raises ValueError where it is too large, or describes too many values."""
    data = read_bytes(path, BYTES)
    for what, count in (("lists and mappings", data.count(b"[") + data.count(b"{")), ("keys", data.count(b":"))):
        if count > limit(VALUES):
            raise ValueError(f"{path} holds about {count:,} {what}, and at most {limit(VALUES):,} are read; {RAISE}")
    return data.decode(json.detect_encoding(data), "surrogatepass")


def _side(value: Any) -> int:
    """Return a height or a width."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is not int or abs(value) >= 2**31:
        raise ValueError(f"{reprlib.repr(value)} is not a height or a width; it must be an integer, in pixels")
    return value


def area_from(value: Any) -> float | None:
    """Return the area that an annotation states, if it does. Raises ValueError where it is no number."""
    if value is None:
        return None
    if type(value) not in (int, float) or not abs(value) <= FARTHEST**2:
        raise ValueError(f"its area is {reprlib.repr(value)}, and must be a number")
    return float(value)


def _check_entry(path: Path, key: str, position: int, entry: Any) -> None:
    keys = NEEDED[key]
    if not isinstance(entry, dict) or not all(needed in entry for needed in keys):
        raise ValueError(f"{path} is not in COCO format: {key}[{position}] needs the keys {', '.join(keys)}")


def _missing(path: Path, key: str) -> ValueError:
    return ValueError(f"{path} is JSON, but not in COCO format: it has no list called {key!r}")
