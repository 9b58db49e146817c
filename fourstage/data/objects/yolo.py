"""Data sets in YOLO's layout: images, and for each image a text file of boxes or polygons.

A line is a class and four numbers (x and y of the centre, width, height), or a class and a polygon (x y x y ...), in
units of the image. Images without a file, or with an empty one, hold nothing. H x W pixels.
"""

import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fourstage.data.images import read_image
from fourstage.data.limits import TEXT_BYTES
from fourstage.data.objects.dataset import HeaderSizes, as_bad_objects
from fourstage.data.objects.table import ObjectTable, Row, box_of, refuse_unlearnable, without_mask
from fourstage.data.objects.yolo_places import describe, left_out
from fourstage.data.sample import Objects, Sample, Split
from fourstage.data.splits import joined_notes
from fourstage.files import read_bytes

CLASS_NUMBER = re.compile(r"-?\d{1,9}(\.0*)?", re.ASCII)  # some programs write 0.0
NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+|nan|inf)(e[-+]?\d+)?", re.ASCII | re.IGNORECASE)
FAR = 10.0  # units of the image; a number beyond it is no mistake of drawing, but of pixels


class Yolo:
    """One split of a data set in YOLO's layout.

    Attributes:
        has_masks: whether any object has a polygon; if none has, samples carry boxes only.
        with_reference: whether samples carry their ground truth for scoring; only in the validation split.
        note: one sentence about what is unusual; empty otherwise.

    Raises:
        ValueError: no images for this split, or a line that is not YOLO's, by its file and number.
    """

    def __init__(self, root: str | Path, split: Split) -> None:
        self._root = Path(root)
        description = describe(self._root)
        self.classes, self.truths = description.classes, ("objects",)
        self._paths, self.note = description.find(split)
        if description.keypoints:
            self.note = joined_notes(self.note, left_out(description))
        self._table = ObjectTable.of(self._rows(description.keypoints), len(self._paths))
        self.has_masks = self._table.has_masks
        self._sizes = HeaderSizes(np.full((len(self._paths), 2), -1))
        self.with_reference = split == "val"
        if self.has_masks and (lacking := self._table.without_mask):
            self.note = joined_notes(self.note, without_mask(lacking, f"the {split} split of {description.path}"))

    def __len__(self) -> int:
        return len(self._paths)

    def sizes(self, indices: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """(I, 2) int64: height and width of these images (None: of all); reads each header once. Raises BadImage."""
        return self._sizes.of(self, indices)

    def counts(self) -> np.ndarray:
        """(I,) int64: objects of each image."""
        return self._table.counts_I.copy()

    def refuse_unlearnable(self, split: Split) -> None:
        """Raise ValueError where no object trains, or none counts in a score."""
        refuse_unlearnable(self._table, split, f"the {split} split of {self._root}", "")

    def label_counts(self) -> np.ndarray:
        """(C,) int64: objects of each class, those that do not train too."""
        return self._table.label_counts(len(self.classes))

    def path(self, index: int) -> Path:
        return self._paths[index]

    def id(self, index: int) -> str:
        path = self._paths[index]
        return (path.relative_to(self._root) if path.is_relative_to(self._root) else path).as_posix()

    def sample(self, index: int) -> Sample:
        """Read one image and its objects. Raises BadImage."""
        image_HW3 = read_image(self.path(index), orient=True)
        size = (image_HW3.shape[0], image_HW3.shape[1])
        with as_bad_objects(self.path(index)):
            reference = self._reference(index, size) if self.with_reference else None
            return Sample(self.id(index), image_HW3, size, objects=self._objects(index, size), reference=reference)

    def objects(self, index: int) -> Objects:
        """Return the objects of one image, in its pixels."""
        return self._objects(index, self._size(index))

    def reference(self, index: int) -> dict[str, Any]:
        """Return the ground truth of an image; see `ObjectTable.reference`."""
        return self._reference(index, self._size(index))

    def _objects(self, index: int, size: tuple[int, int]) -> Objects:
        return self._table.objects(index, size, partial(self._where, index), unit=(size[1], size[0]))

    def _reference(self, index: int, size: tuple[int, int]) -> dict[str, Any]:
        return self._table.reference(index, size, partial(self._where, index), unit=(size[1], size[0]))

    def _size(self, index: int) -> tuple[int, int]:
        height, width = self.sizes([index])[0].tolist()
        return height, width

    def _where(self, index: int, line: Any) -> str:
        return f"{label_file(self._paths[index])}, line {line}"

    def _rows(self, keypoints: int) -> Iterator[Row]:
        for position, path in enumerate(self._paths):
            for number, text in label_lines(path):
                try:
                    label, box, polygon = parse_line(text, len(self.classes), keypoints)
                except ValueError as error:
                    raise ValueError(f"{label_file(path)}, line {number}: {error}") from error
                yield Row(position, label, box, segmentation=polygon and [polygon], name=number)


def parse_line(
    text: str, classes: int, keypoints: int = 0
) -> tuple[int, tuple[float, float, float, float], list[float] | None]:
    """One object.

    Args:
        classes: how many are named.
        keypoints: numbers behind the box, which are left out.

    Returns:
        Its label, its box as x, y (of the upper left corner), width, height, and its polygon where it has one; in units
        of the image.

    Raises:
        ValueError: not a class and numbers, or a class that is not named.
    """
    words = text.split()
    try:
        if CLASS_NUMBER.fullmatch(words[0]) is None:
            raise ValueError("it must begin with the number of a class")
        if (odd := next((word for word in words[1:] if NUMBER.fullmatch(word) is None), None)) is not None:
            raise ValueError(f"{odd:.40} is not a number")
        label, numbers = int(float(words[0])), [float(word) for word in words[1:]]
    except ValueError as error:
        raise ValueError(f"{text[:60]!r} is not a class and numbers") from error
    if not np.isfinite(numbers).all():
        raise ValueError(f"{text[:60]!r} has a number that is not finite; boxes and polygons have numbers from 0 to 1")
    if keypoints:
        if len(numbers) != 4 + keypoints:
            raise ValueError(
                f"{text[:60]!r} has {len(numbers)} numbers behind its class, and kpt_shape asks for {4 + keypoints}"
            )
        numbers = numbers[:4]
    if (far := max(map(abs, numbers), default=0.0)) > FAR:
        raise ValueError(
            f"{text[:60]!r} has the number {far:g}, and boxes and polygons are in units of the image, from 0 to 1; "
            "divide pixels by its width and height"
        )
    if len(numbers) < 4 or len(numbers) % 2:
        raise ValueError(
            f"{text[:60]!r} has {len(numbers)} numbers behind its class; a box has four, a polygon six or more"
        )
    if not 0 <= label < classes:
        raise ValueError(f"the class {label} is not one of the {classes} that are named, which count from 0")
    if len(numbers) == 4:
        x, y, width, height = numbers
        return label, box_of((x - width / 2, y - height / 2, width, height)), None
    left, top, right, bottom = min(numbers[::2]), min(numbers[1::2]), max(numbers[::2]), max(numbers[1::2])
    return label, box_of((left, top, right - left, bottom - top)), numbers


def label_file(image: Path) -> Path:
    """Return the text file of an image: in `labels` for the last folder `images` of its path, else next to it."""
    names = list(image.parts)
    folders = [i for i, name in enumerate(names[:-1]) if name == "images"]
    if folders:
        names[folders[-1]] = "labels"
    return Path(*names).with_suffix(".txt")


def label_lines(image: Path) -> list[tuple[int, str]]:
    """Return the lines for an image that are not empty, with their numbers from 1."""
    return lines_of(label_file(image))


def lines_of(path: Path) -> list[tuple[int, str]]:
    """Return the lines of a label file that are not empty, with their numbers from 1; none without the file.

    Raises:
        ValueError: the file cannot be read, or is not UTF-8 text.
    """
    try:
        text = read_bytes(path, TEXT_BYTES).decode("utf-8-sig")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    return [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
