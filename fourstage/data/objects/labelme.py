"""labelme's annotations: one json for each image, with polygons, rectangles and circles.

https://github.com/wkentaro/labelme describes the tool.
Shapes of one `group_id` and one label are one object. Other shapes (points, lines) are no objects and are left out. The
image inside a json, `imageData`, is not read: the file beside it is. H x W pixels.
"""

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from fourstage.data.images import EXTENSIONS
from fourstage.data.limits import PATH_BYTES, as_name, check_classes, is_inside, read_class_file
from fourstage.data.objects.annotation_files import AnnotationFiles
from fourstage.data.objects.table import Row, box_of
from fourstage.data.sample import NoSplitError, Split
from fourstage.data.splits import EXPORT_SPLIT_NAMES, held_out_note, joined_notes, split_positions
from fourstage.documents import read_json
from fourstage.files import open_regular

SNIFFED = 2**16  # bytes of a json; `imageData` is behind the shapes
SIDES = 32  # of the polygon of a circle
NO_CLASSES = ("__ignore__", "_background_")  # in labelme's labels.txt
FOLDERS = ("json", "jsons", "annotations", "labels", "labelme", "ann")  # of json files apart from their images
IMAGES = ("images", "imgs", "image", "img", "JPEGImages")  # beside such a folder
ENDINGS = tuple(dict.fromkeys(case for ending in EXTENSIONS for case in (ending, ending.upper())))


@dataclass(frozen=True)
class Shape:
    """One object of a json."""

    name: str
    polygons: tuple[tuple[float, ...], ...]  # x y x y ..., pixels

    @property
    def box(self) -> tuple[float, float, float, float]:
        """x, y, width, height around all polygons."""
        numbers = [number for polygon in self.polygons for number in polygon]
        left, top, right, bottom = min(numbers[::2]), min(numbers[1::2]), max(numbers[::2]), max(numbers[1::2])
        return left, top, right - left, bottom - top


@dataclass(frozen=True)
class Labelled:
    """One json."""

    shapes: tuple[Shape, ...]
    left_out: Mapping[str, int]  # shapes of each other type
    size: tuple[int, int] | None  # (H, W), where it says so
    image: Path


class Labelme(AnnotationFiles):
    """One split of a folder of labelme's json files, in the order of their names.

    Raises:
        ValueError: no json for this split, or one that is not labelme's, by its name.
    """

    def __init__(self, root: str | Path, split: Split) -> None:
        files, note = find_files(Path(root), split)
        read = [read_labelled(path, Path(root)) for path in files]
        super().__init__(root, split, files, class_names(Path(root), dict(zip(files, read, strict=True))))
        self._images = [one.image for one in read]
        self._hold(self._rows(read), [one.size for one in read])
        self.note = joined_notes(note, left_out_note(self._root, read))

    def path(self, index: int) -> Path:
        return self._images[index]

    def _rows(self, read: Sequence[Labelled]) -> Iterator[Row]:
        for position, one in enumerate(read):
            for number, shape in enumerate(one.shapes, 1):
                polygons = [list(polygon) for polygon in shape.polygons]
                label = self._label(position, shape.name)
                yield Row(position, label, shape.box, segmentation=polygons, name=number)


def is_labelme(root: Path) -> bool:
    """Whether one of the first json files of a folder, or of its folder for training, is labelme's by its beginning."""
    folders = [
        *_folders(root),
        *(place for name in EXPORT_SPLIT_NAMES["train"] for place in _split_folders(root, name)),
    ]
    return any(_begins(path) for folder in folders for path in islice(folder.glob("*.json"), 3))


def find_files(root: Path, split: Split) -> tuple[list[Path], str]:
    """Return the json files of one split, and a note for the user. Raises NoSplitError where there are none."""
    train, val = (_of_split(root, one) for one in ("train", "val"))
    if not train and not val:
        train = _of_all(root)
    if train and not val:
        names = [path.stem for path in train]
        return [train[i] for i in split_positions(names, split)], held_out_note(root, names)
    if not (found := train if split == "train" else val):
        raise NoSplitError(f"{root} holds no json files for {split}, such as {EXPORT_SPLIT_NAMES[split][0]}/*.json")
    return found, ""


def class_names(root: Path, known: Mapping[Path, Labelled]) -> tuple[str, ...]:
    """Return the lines of `labels.txt` or `classes.txt` where there is one, else the names that occur."""
    if (named := class_file(root)) is not None:
        return named
    files = {path for split in EXPORT_SPLIT_NAMES for path in _of_split(root, split)} or set(_of_all(root))
    found = {shape.name for path in files for shape in (known.get(path) or read_labelled(path, root)).shapes}
    check_classes(len(found), root)
    return tuple(sorted(found))


def class_file(root: Path) -> tuple[str, ...] | None:
    """Return the classes that a file names; None where there is no such file."""
    path = next((root / name for name in ("labels.txt", "classes.txt") if (root / name).is_file()), None)
    return None if path is None else tuple(name for name in read_class_file(path) if name not in NO_CLASSES)


def left_out_note(root: Path, read: Sequence[Labelled]) -> str:
    """Return the sentence about shapes that are no objects; empty where there are none."""
    counts: Counter[str] = sum((Counter(one.left_out) for one in read), Counter())
    listed = ", ".join(f"{count:,} of type {name!r}" for name, count in sorted(counts.items()))
    return f"{root} has shapes that are not objects; they are left out: {listed}." if counts else ""


def read_labelled(path: Path, root: Path) -> Labelled:
    """Read one json of a data folder. Raises ValueError where it cannot be read or is not labelme's."""
    try:
        content = read_json(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        raise ValueError(f"{path} is not an annotation of labelme: it has no list called 'shapes'")
    groups: dict[Any, list[tuple[float, ...]]] = {}
    left_out: Counter[str] = Counter()
    for number, shape in enumerate(content["shapes"], 1):
        try:
            name, kind, polygon = _shape(shape)
        except (ValueError, OverflowError) as error:
            raise ValueError(f"{path} is not an annotation of labelme: shape {number}: {error}") from error
        if polygon is None:
            left_out[kind] += 1
            continue
        group = shape.get("group_id")
        groups.setdefault((name, number if group is None else f"group {group!r:.80}"), []).append(polygon)
    shapes = tuple(Shape(name, tuple(polygons)) for (name, _), polygons in groups.items())
    return Labelled(shapes, left_out, _size(content), _image_of(path, root, content.get("imagePath")))


def _shape(shape: Any) -> tuple[str, str, tuple[float, ...] | None]:
    """Return the label, the type and the polygon of a shape; None where its type is no object."""
    if (
        not isinstance(shape, dict)
        or not isinstance(name := shape.get("label"), str)
        or not 0 < len(name) <= PATH_BYTES
    ):
        raise ValueError("it needs a label, which is a text")
    kind = shape.get("shape_type", "polygon")
    if kind not in ("polygon", "rectangle", "circle"):
        return name, f"{kind!s:.40}", None
    points = shape.get("points")
    least = 3 if kind == "polygon" else 2
    if not isinstance(points, list) or len(points) < least:
        raise ValueError(f"a {kind} needs {least} points")
    numbers: list[float] = []
    for point in points:
        if not isinstance(point, list) or len(point) != 2:
            raise ValueError("a point is two numbers")
        numbers += box_of([*point, 0, 0])[:2]
    if kind == "circle":
        return name, kind, _circle(*numbers[:4])
    if kind == "rectangle" and len(points) == 2:
        left, right = sorted(numbers[::2])
        top, bottom = sorted(numbers[1::2])
        return name, kind, (left, top, right, top, right, bottom, left, bottom)
    return name, kind, tuple(numbers)


def _circle(x: float, y: float, at_x: float, at_y: float) -> tuple[float, ...]:
    """Return the polygon of a circle from its centre and a point on it."""
    radius = math.hypot(at_x - x, at_y - y)
    angles = [2 * math.pi * i / SIDES for i in range(SIDES)]
    return tuple(value for a in angles for value in (x + radius * math.cos(a), y + radius * math.sin(a)))


def _size(content: Mapping[str, Any]) -> tuple[int, int] | None:
    height, width = content.get("imageHeight"), content.get("imageWidth")
    if type(height) is not int or type(width) is not int or not 0 < height < 2**31 or not 0 < width < 2**31:
        return None
    return height, width


def _image_of(path: Path, root: Path, stated: Any) -> Path:
    """Return the image of a json: where it says, or in its folder or that of the images, called as it or the json."""
    try:
        name = as_name(stated.replace("\\", "/")) if isinstance(stated, str) and stated else ""
    except ValueError as error:
        raise ValueError(f"{path}: imagePath: {error}; correct it") from error
    last = name.rsplit("/", 1)[-1]
    places = [path.parent, *_image_folders(path.parent, root)]
    named = [folder / last for folder in places if last not in ("", ".", "..")]
    if last not in ("", ".", "..") and is_inside(root, path.parent / name):
        named.insert(0, Path(os.path.normpath(path.parent / name)))
    called = (folder / f"{path.stem}{ending}" for folder in places for ending in ENDINGS)
    missing = named[0] if named and named[0].parent != path.parent else path.with_suffix(".jpg")
    return next((image for image in (*named, *called) if image.is_file()), missing)


def _image_folders(folder: Path, root: Path) -> list[Path]:
    """Return the folders of images beside a folder of json files, or beside one above it: `images/train`."""
    if folder == root or not folder.is_relative_to(root):
        return []
    parts = folder.relative_to(root).parts
    at = next((i for i, part in enumerate(parts) if part.lower() in FOLDERS), None)
    return [] if at is None else [root.joinpath(*parts[:at], name, *parts[at + 1 :]) for name in IMAGES]


def _of_split(root: Path, split: Split) -> list[Path]:
    folders = (folder for name in EXPORT_SPLIT_NAMES[split] for folder in _split_folders(root, name))
    return next((found for folder in folders if (found := _labelled(folder))), [])


def _of_all(root: Path) -> list[Path]:
    """Return the json files of a folder without splits."""
    return next((found for folder in _folders(root) if (found := _labelled(folder))), [])


def _folders(root: Path) -> list[Path]:
    return [root, *(root / name for name in FOLDERS)]


def _split_folders(root: Path, name: str) -> list[Path]:
    return [*_folders(root / name), *(root / folder / name for folder in FOLDERS)]


def _labelled(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.json"))


def _begins(path: Path) -> bool:
    try:
        with open_regular(path) as file:
            text = file.read(SNIFFED)
    except (OSError, ValueError):  # ValueError: a folder or a named pipe
        return False
    return b'"shapes"' in text and (b'"shape_type"' in text or b'"imagePath"' in text)
