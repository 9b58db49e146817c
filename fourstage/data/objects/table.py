"""The objects of all images of a split in a few flat arrays, which are small and which loader processes share.

As Python objects, a million annotations would take gigabytes in each process. I images, N objects in all, P polygons,
H x W pixels.
"""

import json
from array import array
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from fourstage.data.objects.rle import area_of, decode_mask, encode_segmentation
from fourstage.data.sample import Objects, Split
from fourstage.files import RAISE, limit

Size = tuple[int, int]  # (H, W)

HUNDREDTHS = (
    100  # most coordinates of polygons have two decimal places, so that a hundred times one is an integer below 2**16
)
UNPACKED = 2**20  # numbers that wait to be packed
MASKS_BYTES = 2**30  # of the masks of one image, a byte a pixel: some 90 masks of 12 million pixels


FARTHEST = 1e9  # pixels or units; a coordinate beyond it is no mistake of drawing, and would not survive float32


def box_of(values: Any) -> tuple[float, float, float, float]:
    """Return four numbers as a box. Raises ValueError for anything else, and for numbers that no image can have."""
    if not isinstance(values, list | tuple) or len(values) != 4 or not all(type(v) in (int, float) for v in values):
        raise ValueError("it must be four numbers x, y, width, height")
    if not all(-FARTHEST <= v <= FARTHEST for v in values):  # false for NaN
        raise ValueError(f"its numbers must be finite, and from {-FARTHEST:g} to {FARTHEST:g}")
    x, y, width, height = map(float, values)
    return x, y, width, height


class Row(NamedTuple):
    """One object, with the values of its file."""

    image: int  # mostly its position in the data set
    label: int
    box: tuple[float, float, float, float]  # x, y, width, height
    area: float | None = None  # None: that of its mask, or of its box where it has none
    crowd: bool = False
    ignored: bool = False  # it does not train; it counts in evaluation, as in pycocotools
    segmentation: Any = None  # what `decode_mask` takes
    name: Any = None  # for messages


@dataclass(frozen=True, eq=False)
class _Outlines:
    """Segmentations, by their object: polygons as numbers, anything else as JSON."""

    polygons_first: np.ndarray  # (N + 1,) int64: the polygons of an object
    starts_P: np.ndarray  # of a polygon in `hundredths` or `numbers`
    lengths_P: np.ndarray
    exact_P: np.ndarray  # bool: it is in `hundredths`
    hundredths: np.ndarray  # uint16
    numbers: np.ndarray  # float64
    texts_first: np.ndarray  # (N + 1,) int64
    texts: bytes

    def __getitem__(self, row: int) -> Any:
        """Return the segmentation as it was added: lists of coordinates, a mapping, or None."""
        text = self.texts[self.texts_first[row] : self.texts_first[row + 1]]
        if text:
            return json.loads(text)
        polygons = range(self.polygons_first[row], self.polygons_first[row + 1])
        return [self._polygon(p) for p in polygons] or None

    def _polygon(self, p: int) -> list[float]:
        numbers = slice(self.starts_P[p], self.starts_P[p] + self.lengths_P[p])
        return ((self.hundredths[numbers] / HUNDREDTHS) if self.exact_P[p] else self.numbers[numbers]).tolist()


class ObjectWriter:
    """Objects that are added one by one, in compact form.

    Images and labels may have any numbers; `ObjectTable` maps them to positions.
    """

    def __init__(self) -> None:
        self.images, self.labels, self.boxes, self.areas = array("q"), array("q"), array("d"), array("d")
        self.flags, self.names, self.outlines = bytearray(), list[Any](), _OutlineWriter()

    def add(self, row: Row) -> None:
        self.images.append(row.image)
        self.labels.append(row.label)
        self.boxes.extend(row.box)
        self.areas.append(np.nan if row.area is None else row.area)
        self.flags.append(row.crowd + 2 * row.ignored)
        self.names.append(row.name)
        self.outlines.add(row.segmentation)


class ObjectTable:
    """Objects by image.

    Args:
        written: objects in any order; those of one image keep theirs.
        images: how many there are.
        image_of, label_of: the position of each number of an image or a label, -1 where it is not listed: such objects
            are left out; None: the numbers are positions.
        sizes_I2: (H, W) of each image, where that is known; then objects without extent say nothing about `has_masks`.

    Attributes:
        counts_I: objects of each image, those that do not train too.
        has_masks: whether any object that trains has a segmentation.
        without_mask: objects that train and have none.
        crowd_I: crowd regions of each image.
        learnt_I: objects of each image that train.
    """

    def __init__(
        self,
        written: ObjectWriter,
        images: int,
        *,
        image_of: np.ndarray | None = None,
        label_of: np.ndarray | None = None,
        sizes_I2: np.ndarray | None = None,
    ) -> None:
        images_N, labels_N = (np.array(column, dtype=np.int64) for column in (written.images, written.labels))
        images_N = images_N if image_of is None else image_of[images_N]
        self._labels_N = labels_N if label_of is None else label_of[labels_N]
        listed_n = np.flatnonzero((images_N >= 0) & (self._labels_N >= 0))
        self._order_n = listed_n[np.argsort(images_N[listed_n], kind="stable")]
        self.counts_I = np.bincount(images_N[listed_n], minlength=images)
        self._first_I = np.cumsum(self.counts_I) - self.counts_I
        self._boxes_N4, self._areas_N = np.array(written.boxes).reshape(-1, 4), np.array(written.areas)
        flags_N = np.frombuffer(bytes(written.flags), dtype=np.uint8)
        self._crowd_N, self._ignored_N = flags_N & 1 > 0, flags_N & 2 > 0
        self._names = _compact(written.names)
        self._outlines = written.outlines.done()
        self._drawn_N, wanted_N = written.outlines.drawn(), ~self._crowd_N & ~self._ignored_N
        if sizes_I2 is not None and len(sizes_I2):
            wanted_N &= has_extent(self._boxes_N4, self._areas_N, sizes_I2[images_N])
        wanted_n = listed_n[wanted_N[listed_n]]
        drawn = int(self._drawn_N[wanted_n].sum())
        self.has_masks, self.without_mask = drawn > 0, len(wanted_n) - drawn
        learnt_n = wanted_n[(self._boxes_N4[wanted_n, 2:] > 0).all(axis=1)]
        crowd_n = listed_n[self._crowd_N[listed_n]]
        self.learnt_I, self.crowd_I = (np.bincount(images_N[n], minlength=images) for n in (learnt_n, crowd_n))

    @staticmethod
    def of(rows: Iterable[Row], images: int) -> "ObjectTable":
        """Return the table of objects whose images and labels are positions."""
        written = ObjectWriter()
        for row in rows:
            written.add(row)
        return ObjectTable(written, images)

    def take(self, images_i: Sequence[int]) -> "ObjectTable":
        """Return the table of the images at these positions. Objects are shared with this table, not copied."""
        out, positions_i = copy(self), np.asarray(images_i, dtype=np.int64)
        out.counts_I, out._first_I = self.counts_I[positions_i], self._first_I[positions_i]
        out.learnt_I, out.crowd_I = self.learnt_I[positions_i], self.crowd_I[positions_i]
        return out

    def __len__(self) -> int:
        return int(self.counts_I.sum())

    def label_counts(self, classes: int) -> np.ndarray:
        """(C,) int64: objects of each class, those that do not train too."""
        starts_I = self._first_I - (np.cumsum(self.counts_I) - self.counts_I)
        rows_n = self._order_n[np.arange(len(self)) + np.repeat(starts_I, self.counts_I)]
        return np.bincount(self._labels_N[rows_n], minlength=classes)

    def objects(
        self, image: int, size: Size, where: Callable[[Any], str], unit: tuple[float, float] = (1, 1)
    ) -> Objects:
        """Return the objects of an image that train or are crowd regions, with masks where the data has some.

        An object without a segmentation has an empty mask and the flag False in `masked_N`. One whose polygons enclose
        nothing counts as a crowd region, as in MMDetection.

        Args:
            image: its position.
            size: of it, pixels.
            where: from an object's name to what messages call it.
            unit: width and height, in pixels, of one unit of the file's coordinates.

        Raises:
            ValueError: a mask cannot be decoded.
        """
        rows_n = self._rows(image)
        boxes_n4 = self._boxes_N4[rows_n] * np.array([*unit, *unit])
        areas_n = self._areas_N[rows_n]
        kept_n = has_extent(boxes_n4, areas_n, np.array([size])) & ~self._ignored_N[rows_n]
        rows_n, boxes_n4 = rows_n[kept_n], boxes_n4[kept_n]
        crowd_n, masks_nHW, masked_n = self._crowd_N[rows_n], None, None
        if self.has_masks:
            check_masks(len(rows_n), size)
            masks = [self._mask(row, size, where, unit) for row in rows_n.tolist()]
            drawn_n = self._drawn_N[rows_n]
            crowd_n = crowd_n | (drawn_n & np.array([mask is None for mask in masks], dtype=bool))
            masked_n = torch.from_numpy(drawn_n) if self.without_mask else None
            stacked = np.zeros((len(masks), *size), dtype=bool)
            for out_HW, mask_HW in zip(stacked, masks, strict=True):
                if mask_HW is not None:
                    out_HW[:] = mask_HW
            masks_nHW = torch.from_numpy(stacked)
        labels_n = torch.from_numpy(self._labels_N[rows_n])
        boxes_n4 = torch.from_numpy(_corners(boxes_n4)).float()
        return Objects(boxes_n4, labels_n, torch.from_numpy(crowd_n), masks_nHW, masked_n)

    def reference(
        self, image: int, size: Size, where: Callable[[Any], str], unit: tuple[float, float] = (1, 1)
    ) -> dict[str, Any]:
        """Return the ground truth that predictions for an image are scored against, ready for JSON; see `objects`.

        Returns:
            `size` [H, W]; of all objects, those too that do not train: `boxes` (x1 y1 x2 y2, pixels), `labels`,
            `crowd`, `areas`, and, where there are masks, `masks` (COCO's compressed run lengths); where some objects
            have none, also `masked`, and their mask is empty.
        """
        rows_n = self._rows(image)
        boxes_n4 = self._boxes_N4[rows_n] * np.array([*unit, *unit])
        areas: list[float] = self._areas_N[rows_n].tolist()
        out: dict[str, Any] = {
            "size": list(size),
            "boxes": _corners(boxes_n4).tolist(),
            "labels": self._labels_N[rows_n].tolist(),
            "crowd": self._crowd_N[rows_n].tolist(),
        }
        areas_of_boxes: list[float] = (boxes_n4[:, 2] * boxes_n4[:, 3]).tolist()
        if self.has_masks:
            out["masks"] = [self._encoded(row, size, where, unit) for row in rows_n.tolist()]
            if np.isnan(areas).any():
                drawn = zip(self._drawn_N[rows_n].tolist(), out["masks"], areas_of_boxes, strict=True)
                areas_of_boxes = [area_of(mask, size) if masked else box for masked, mask, box in drawn]
        if self.has_masks and self.without_mask:
            out["masked"] = self._drawn_N[rows_n].tolist()
        return out | {"areas": [b if np.isnan(a) else a for a, b in zip(areas, areas_of_boxes, strict=True)]}

    def _rows(self, image: int) -> np.ndarray:
        first = self._first_I[image]
        return self._order_n[first : first + self.counts_I[image]]

    def _mask(self, row: int, size: Size, where: Callable[[Any], str], unit: tuple[float, float]) -> np.ndarray | None:
        segmentation = self._outlines[row]
        try:
            return decode_mask(_scaled(segmentation, unit), size) if segmentation else None
        except ValueError as error:
            raise ValueError(f"{where(self._name(row))}: {error}") from error

    def _encoded(self, row: int, size: Size, where: Callable[[Any], str], unit: tuple[float, float]) -> str:
        try:
            return encode_segmentation(_scaled(self._outlines[row], unit), size)
        except ValueError as error:
            raise ValueError(f"{where(self._name(row))}: {error}") from error

    def _name(self, row: int) -> Any:
        name = self._names[row]
        return int(name) if isinstance(name, np.integer) else name


class _OutlineWriter:
    """Segmentations that are added one by one; their numbers are packed in large batches."""

    def __init__(self) -> None:
        self._numbers = array("d")  # not packed yet
        self._lengths, self._per_object, self._text_lengths = array("q"), array("q"), array("q")
        self._texts = bytearray()
        self._packed = 0  # polygons
        self._exact, self._hundredths, self._others = [np.zeros(0, bool)], [np.zeros(0, np.uint16)], [np.zeros(0)]

    def add(self, segmentation: Any) -> None:
        polygons = segmentation if isinstance(segmentation, list) else []
        before, length = len(self._numbers), len(self._lengths)
        text = b""
        if segmentation:
            try:
                for polygon in polygons:
                    start = len(self._numbers)
                    self._numbers.extend(polygon)
                    self._lengths.append(len(self._numbers) - start)
            except (TypeError, OverflowError):  # no numbers: kept as it is, so that the error comes when it is decoded
                del self._numbers[before:], self._lengths[length:]
                polygons = []
            text = b"" if polygons else json.dumps(segmentation).encode()
        self._per_object.append(len(self._lengths) - length)
        self._texts += text
        self._text_lengths.append(len(text))
        if len(self._numbers) > UNPACKED:
            self._pack()

    def drawn(self) -> np.ndarray:
        """(N,) bool: objects with a segmentation."""
        return (np.array(self._per_object) > 0) | (np.array(self._text_lengths) > 0)

    def done(self) -> _Outlines:
        self._pack()
        exact_P, lengths_P = np.concatenate(self._exact), np.array(self._lengths, dtype=np.int64)
        starts_P = np.zeros(len(lengths_P), dtype=np.int64)
        for chosen_P in (exact_P, ~exact_P):
            starts_P[chosen_P] = np.cumsum(lengths_P[chosen_P]) - lengths_P[chosen_P]
        return _Outlines(
            _firsts(self._per_object), starts_P, lengths_P, exact_P, np.concatenate(self._hundredths),
            np.concatenate(self._others), _firsts(self._text_lengths), bytes(self._texts),
        )  # fmt: skip

    def _pack(self) -> None:
        numbers, lengths_p = np.array(self._numbers), np.array(self._lengths[self._packed :], dtype=np.int64)
        polygon_of = np.repeat(np.arange(len(lengths_p)), lengths_p)
        with np.errstate(invalid="ignore", over="ignore"):
            hundredths = np.rint(numbers * HUNDREDTHS)
            fits = (
                (hundredths / HUNDREDTHS == numbers) & (hundredths >= 0) & (hundredths < 2**16) & ~np.signbit(numbers)
            )
        exact_p = np.bincount(polygon_of[~fits], minlength=len(lengths_p)) == 0
        self._exact.append(exact_p)
        self._hundredths.append(hundredths[exact_p[polygon_of]].astype(np.uint16))
        self._others.append(numbers[~exact_p[polygon_of]])
        self._packed = len(self._lengths)
        del self._numbers[:]


def check_masks(masks: int, size: Size) -> None:
    """Raise ValueError where the masks of one image, of (H, W) pixels, would take too much memory."""
    if (needed := masks * size[0] * size[1]) > limit(MASKS_BYTES):
        raise ValueError(
            f"its {masks:,} masks of {size[1]} x {size[0]} pixels take {needed / 2**30:.1f} GiB, more than the "
            f"{limit(MASKS_BYTES) / 2**30:.0f} GiB allowed; shrink the image, or {RAISE}"
        )


def without_mask(objects: int, source: str) -> str:
    """Return the sentence on objects that have no mask, where others have one."""
    several = "s" * (objects > 1)
    return (
        f"{objects:,} object{several} of {source} {'have' if several else 'has'} no mask: the mask loss and the mask "
        f"score leave {'them' if several else 'it'} out."
    )


def refuse_unlearnable(table: ObjectTable, split: Split, source: str, crowded: str) -> None:
    """Raise ValueError where no object trains, or none counts in the score of a validation split.

    Args:
        source: where the objects are, for messages.
        crowded: what is the matter where all objects are crowd regions, and what to do.
    """
    total, crowd = len(table), int(table.crowd_I.sum())
    if table.learnt_I.any() if split == "train" else total > crowd:
        return
    verb = "learn from" if split == "train" else "score against"
    if not total:
        raise ValueError(
            f"{source} has no object of a listed class, and so nothing to {verb}: annotate some, or correct the ids of "
            "their classes and images"
        )
    if crowd == total:
        raise ValueError(f"{'each of ' * (total > 1)}the {total:,} object{'s' * (total > 1)} of {source} {crowded}")
    raise ValueError(
        f"none of the {total:,} objects of {source} trains: they are ignored or crowd regions, thinner than a pixel, "
        "without area, or outside of their image; correct their boxes"
    )


def has_extent(boxes_N4: np.ndarray, areas_N: np.ndarray, sizes_N2: np.ndarray) -> np.ndarray:
    """Return (N,) bool: the box overlaps its image, and has no side below a pixel and an area; MMDetection's rule.

    Args:
        boxes_N4: x, y, width, height, pixels.
        areas_N: pixels; NaN: that of the box.
        sizes_N2: (H, W) of the image of each, or of all.
    """
    x, y, width, height = boxes_N4.T
    with np.errstate(invalid="ignore", over="ignore"):  # boxes may have any number that json can hold
        inside_x = np.minimum(x + width, sizes_N2[:, 1]) - np.maximum(x, 0)
        inside_y = np.minimum(y + height, sizes_N2[:, 0]) - np.maximum(y, 0)
        areas_N = np.where(np.isnan(areas_N), width * height, areas_N)
        return (inside_x.clip(0) * inside_y.clip(0) > 0) & (areas_N > 0) & (width >= 1) & (height >= 1)


def _compact(names: list[Any]) -> np.ndarray | list[Any]:
    return np.array(names) if all(isinstance(name, int) and abs(name) < 2**62 for name in names) else names


def _corners(boxes_N4: np.ndarray) -> np.ndarray:
    """Return x1 y1 x2 y2, added in double precision as in MMDetection."""
    return np.concatenate([boxes_N4[:, :2], boxes_N4[:, :2] + boxes_N4[:, 2:]], axis=1)


def _scaled(segmentation: Any, unit: tuple[float, float]) -> Any:
    if unit == (1, 1) or not isinstance(segmentation, list):
        return segmentation
    return [(np.array(polygon).reshape(-1, 2) * unit).reshape(-1).tolist() for polygon in segmentation]


def _firsts(counts: "array[int]") -> np.ndarray:
    return np.concatenate([[0], np.cumsum(np.array(counts, dtype=np.int64))]).astype(np.int64)
