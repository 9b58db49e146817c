"""Boxes in Pascal VOC's layout: one XML file for each image.

VOC's coordinates count from 1 and include the last pixel of a box; here they count from 0, and the end is exclusive.
Objects that are marked difficult neither train nor score, like crowd regions. H x W pixels.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers.expat import ExpatError, ParserCreate

from fourstage.data.images import EXTENSIONS
from fourstage.data.limits import TEXT_BYTES, check_classes, is_path, read_class_file
from fourstage.data.objects.annotation_files import AnnotationFiles
from fourstage.data.objects.table import Row, box_of
from fourstage.data.objects.voc_places import find_files, has_lists, image_places
from fourstage.data.sample import NoSplitError, Split
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


class Voc(AnnotationFiles):
    """One split of boxes in Pascal VOC's layout.

    Raises:
        ValueError: no list or folder for this split, a file that is missing or not VOC's, by its name.
    """

    uncounted = DIFFICULT

    def __init__(self, root: str | Path, split: Split) -> None:
        files, note = find_files(Path(root), split)
        annotations = [read_annotation(path) for path in files]
        # Where a tenth is held out, which the note says, the classes of both splits are those of all files.
        known = dict(zip(files, annotations, strict=True))
        classes = class_names(Path(root), known, files if split == "train" and not note else None)
        super().__init__(root, split, files, classes)
        self._hold(self._rows(annotations), [annotation.size for annotation in annotations])
        self.note = note

    def path(self, index: int) -> Path:
        return image_of(self._files[index])

    def _rows(self, annotations: Sequence[Annotation]) -> Iterator[Row]:
        for position, annotation in enumerate(annotations):
            for number, box in enumerate(annotation.boxes, 1):
                label = self._label(position, box.name)
                yield Row(position, label, from_corners(box.corners), crowd=box.difficult, name=number)


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
        stated = read_annotation(annotation).filename
        if stated and (path := next((p for f in places if (p := f / stated).is_file()), None)) is not None:
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
        raise ValueError(f"{path} is not an annotation of Pascal VOC: {error}") from error


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
            yield from find_files(root, split)[0]
        except NoSplitError:
            continue
