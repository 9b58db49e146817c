"""Boxes in Pascal VOC's layout: one XML file for each image.

VOC's coordinates count from 1 and include the last pixel of a box; here they count from 0, and the end is exclusive.
Objects that are marked difficult neither train nor score, like crowd regions. H x W pixels.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers.expat import ExpatError, ParserCreate

import numpy as np

from fourstage.data.images import EXTENSIONS, read_image
from fourstage.data.limits import TEXT_BYTES, check_classes, is_path, read_class_file
from fourstage.data.objects.dataset import HeaderSizes, as_bad_objects
from fourstage.data.objects.table import ObjectTable, Row, box_of, refuse_unlearnable
from fourstage.data.objects.voc_places import annotation_files, find_files, has_lists, image_places
from fourstage.data.sample import BadImage, NoSplitError, Objects, Sample, Split
from fourstage.data.splits import EXPORT_SPLIT_NAMES
from fourstage.data.voc_label_map import LABEL_MAP, read_label_map
from fourstage.documents import in_file
from fourstage.files import read_bytes

ENDINGS = tuple(dict.fromkeys(case for ending in EXTENSIONS for case in (ending, ending.upper(), ending.title())))
DEPTH = 100  # of an element; VOC's have four
LONGEST_NAME = 1000  # characters of the name of a class
DIFFICULT = "is marked difficult, and so neither trains nor scores; write <difficult>0</difficult> for those that count"
CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


@dataclass(frozen=True)
class Box:
    """One object of an XML file."""

    name: str
    corners: tuple[float, float, float, float]  # as in the file
    difficult: bool


@dataclass(frozen=True)
class Annotation:
    """One XML file."""

    boxes: tuple[Box, ...]
    size: tuple[int, int] | None  # (H, W), where it says so
    filename: str = ""  # of the image, without folders


class Voc:
    """One split of boxes in Pascal VOC's layout.

    Attributes:
        with_reference: whether samples carry their ground truth for scoring; only in the validation split.

    Raises:
        ValueError: no list or folder for this split, a file that is missing or not VOC's, by its name.
    """

    def __init__(self, root: str | Path, split: Split) -> None:
        self._root = Path(root)
        self._files, self.note = find_files(self._root, split)
        annotations = [read_annotation(path) for path in self._files]
        # Where a tenth is held out, which the note says, the classes of both splits are those of all files.
        known = dict(zip(self._files, annotations, strict=True))
        self.classes = class_names(self._root, known, self._files if split == "train" and not self.note else None)
        self.truths = ("objects",)
        self._said = tuple(annotation.size for annotation in annotations)
        self._sizes = HeaderSizes(np.array([size or (-1, -1) for size in self._said], dtype=np.int64).reshape(-1, 2))
        self._table = ObjectTable.of(self._rows(annotations), len(self._files))
        self.has_masks = False
        self.with_reference = split == "val"

    def __len__(self) -> int:
        return len(self._files)

    def sizes(self, indices: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """(I, 2) int64: height and width of these images (None: of all); from headers where XML files have none."""
        return self._sizes.of(self, indices)

    def counts(self) -> np.ndarray:
        """(I,) int64: objects of each image, difficult ones too."""
        return self._table.counts_I

    def refuse_unlearnable(self, split: Split) -> None:
        """Raise ValueError where no object trains, or none counts in a score."""
        refuse_unlearnable(self._table, split, f"the {split} split of {self._root}", DIFFICULT)

    def label_counts(self) -> np.ndarray:
        """(C,) int64: objects of each class, those that do not train too."""
        return self._table.label_counts(len(self.classes))

    def path(self, index: int) -> Path:
        return image_of(self._files[index])

    def id(self, index: int) -> str:
        return self._files[index].relative_to(self._root).with_suffix("").as_posix()

    def sample(self, index: int) -> Sample:
        """Read one image and its objects. Raises BadImage, also when the image's size is not the XML file's."""
        image_HW3, said = read_image(self.path(index), orient=True), self._said[index]
        size = (image_HW3.shape[0], image_HW3.shape[1])
        if said not in (None, size):
            reason = f"it is {size[1]} x {size[0]}, but {self._files[index]} says {said[1]} x {said[0]}"
            raise BadImage(str(self.path(index)), reason)
        with as_bad_objects(self.path(index)):
            reference = self._table.reference(index, size, partial(self._where, index)) if self.with_reference else None
            objects = self._table.objects(index, size, partial(self._where, index))
        return Sample(self.id(index), image_HW3, size, objects=objects, reference=reference)

    def objects(self, index: int) -> Objects:
        """Return the objects of one image, in its pixels."""
        return self._table.objects(index, self._size(index), partial(self._where, index))

    def reference(self, index: int) -> dict[str, Any]:
        """Return the ground truth of an image; see `ObjectTable.reference`."""
        return self._table.reference(index, self._size(index), partial(self._where, index))

    def _size(self, index: int) -> tuple[int, int]:
        height, width = self.sizes([index])[0].tolist()
        return height, width

    def _where(self, index: int, name: Any) -> str:
        return f"{self._files[index]}, object {name}"

    def _rows(self, annotations: list[Annotation]) -> Iterator[Row]:
        labels = {name: label for label, name in enumerate(self.classes)}
        for position, annotation in enumerate(annotations):
            for number, box in enumerate(annotation.boxes, 1):
                if box.name not in labels:
                    names = ", ".join(self.classes)
                    raise ValueError(f"{self._files[position]} has a {box.name!r}, which is no class of {names}")
                yield Row(position, labels[box.name], from_corners(box.corners), crowd=box.difficult, name=number)


def class_names(root: Path, known: Mapping[Path, Annotation], files: Sequence[Path] | None = None) -> tuple[str, ...]:
    """The lines of `classes.txt` where there is one; VOC's twenty in its own layout; else those that occur.

    Args:
        known: annotations that have been read already.
        files: those in which classes occur, of the training split; None: the files of both splits.
    """
    if (named := class_file(root)) is not None:
        return named
    read = (known.get(path) or read_annotation(path) for path in (files if files is not None else _all_files(root)))
    found = {box.name for annotation in read for box in annotation.boxes}
    check_classes(len(found), root)
    return CLASSES if found <= set(CLASSES) and has_lists(root) else tuple(sorted(found))


def class_file(root: Path) -> tuple[str, ...] | None:
    """The lines of `classes.txt` or `labels.txt`, or CVAT's `labelmap.txt`; None where there is none of them."""
    for name in ("classes.txt", "labels.txt"):
        if (root / name).is_file():
            return read_class_file(root / name)
    if (root / LABEL_MAP).is_file():
        return tuple(name for name in read_label_map(root / LABEL_MAP) if name != "background") or None
    return None


def image_of(annotation: Path) -> Path:
    """Return the image of an XML file: by its own name, else by the one that it says; see `image_places`."""
    places = image_places(annotation)
    for folder in places:
        for ending in ENDINGS:
            if (path := folder / f"{annotation.stem}{ending}").is_file():
                return path
    with suppress(ValueError):  # a broken file is reported where its boxes are read
        said = read_annotation(annotation).filename
        if said and (path := next((p for f in places if (p := f / said).is_file()), None)) is not None:
            return path
    return places[0] / f"{annotation.stem}.jpg"


def from_corners(corners: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    """x, y, width, height from corners that count from 1 and belong to the box."""
    left, top = max(0.0, corners[0] - 1), max(0.0, corners[1] - 1)
    return left, top, corners[2] - left, corners[3] - top


def read_annotation(path: Path) -> Annotation:
    """Read one XML file. Document types and entities are refused: they can make a file expand without end.

    Raises:
        ValueError: it cannot be read, is not XML, or an object has no name or no box.
    """
    try:
        with in_file(path):
            root = _parse(read_bytes(path, TEXT_BYTES))
            boxes = tuple(_box(one) for one in root.findall("object"))
            return Annotation(boxes, _size(root.find("size")), _file_name(root.findtext("filename")))
    except FileNotFoundError as error:
        raise ValueError(
            f"{path} is listed, but there is no such file: add it, or take its line out of the list"
        ) from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except (ExpatError, LookupError, ValueError) as error:  # LookupError: an encoding that does not exist
        if str(error).startswith(str(path)):
            raise
        raise ValueError(f"{path} is no annotation of Pascal VOC: {error}") from error


def _parse(data: bytes) -> Element:
    builder, parser = TreeBuilder(), ParserCreate()

    def refuse(*_: Any) -> None:
        raise ValueError("it has a document type or entities, which are refused; delete its <!DOCTYPE ...>")

    depth = 0

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > DEPTH:
            raise ValueError(f"its elements are nested more than {DEPTH} deep; write it again")
        builder.start(name, attributes)

    def end(name: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(name)

    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = refuse
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = builder.data
    parser.Parse(data, True)
    return builder.close()


def _box(one: Element) -> Box:
    name, box = (one.findtext("name") or "").strip(), one.find("bndbox")
    if not name or box is None or len(name) > LONGEST_NAME:
        raise ValueError("an object needs <name> and <bndbox>, and a name of reasonable length")
    texts = [box.findtext(key) for key in ("xmin", "ymin", "xmax", "ymax")]
    try:
        left, top, right, bottom = box_of([float(text or "") for text in texts])
    except ValueError as error:
        shown = ", ".join(f"{text or ''!s:.40}" for text in texts)
        raise ValueError(
            f"the box of a {name!r} is [{shown}]; it must be xmin, ymin, xmax, ymax, in pixels of the image"
        ) from error
    return Box(name, (left, top, right, bottom), _is_difficult(one))


def _is_difficult(one: Element) -> bool:
    """Return whether an object is marked: tools write `<difficult>1`, `<Difficult>True` and the like."""
    texts = [child.text or "" for child in one if child.tag.lower() == "difficult"]
    return any(text.strip().lower() in ("1", "true", "yes") for text in texts)


def _file_name(text: str | None) -> str:
    """Return the last part of a path, as it is written on any system; empty where no file can be called so."""
    name = (text or "").strip().replace("\\", "/").rsplit("/", 1)[-1]
    return name if name not in ("", ".", "..") and is_path(name.encode()) else ""


def _size(one: Element | None) -> tuple[int, int] | None:
    try:
        height, width = (float((one.findtext(key) if one is not None else None) or 0) for key in ("height", "width"))
    except ValueError:
        return None
    return (int(height), int(width)) if 1 <= height < 2**31 and 1 <= width < 2**31 else None


def _all_files(root: Path) -> Iterator[Path]:
    for split in EXPORT_SPLIT_NAMES:
        try:
            yield from annotation_files(root, split)
        except NoSplitError:
            continue
