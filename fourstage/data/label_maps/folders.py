"""Images with one label map each: the class of every pixel, as a PNG of numbers. H x W pixels, C classes."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image

from fourstage.data.images import open_image, read_image
from fourstage.data.label_maps.class_list import NAME as CLASSES
from fourstage.data.label_maps.exports import EXPORTS
from fourstage.data.label_maps.grey_codes import APART, as_lines, is_grey_codes
from fourstage.data.label_maps.layouts import LAYOUTS, Colour, Pairs
from fourstage.data.sample import IGNORE, BadImage, Sample, Split
from fourstage.data.voc_label_map import LABEL_MAP

KNOWN = (*EXPORTS, *LAYOUTS)
NO_LABEL = 256  # in a label_table from stored values to labels: the value should not occur


class BadLabelMap(BadImage):
    """A label map that cannot be used. The message names the file and the reason."""

    SENTENCE: ClassVar[str] = "{path} cannot be used as a label map: {reason}"


class LabelMaps:
    """One split of a folder in one of the known layouts; see `layouts.py` and docs/data.md.

    Images are rotated according to their EXIF data and label maps are not, as in MMSegmentation.

    Attributes:
        folder: the ids are paths below it.
        class_folder: where `classes.txt` may be.
        table_256: the label of each stored value; see `label_table`.
        palette: a colour for each class, as bytes of red, green and blue: those of the label maps, or generated ones.
        stored_values: for each label the number by which its maps store it, the first of several; 255 without one.
        note: one sentence about what is unusual; empty otherwise.

    Raises:
        ValueError: no known layout, no images, an image without its label map, no class names that fit.
    """

    def __init__(self, root: str | Path, split: Split) -> None:
        pairs = find_pairs(Path(root), split)
        if broken := pairs.problems:
            raise ValueError(str(broken[0]))
        self.folder, self.class_folder = pairs.folder, Path(root)
        self.truths = ("label_map_HW",)
        self.note, self._colours = pairs.note, pairs.colours
        # Arrays, not a million objects: forked loader workers would copy the pages of each object that they touch.
        self._images = np.array([str(path).encode(errors="surrogateescape") for path in pairs.images])
        self._maps = np.array([str(path).encode(errors="surrogateescape") for path in pairs.maps])
        self.classes = pairs.classes or self._numbered(pairs)
        self.table_256 = label_table(pairs, len(self.classes))
        self.palette = pairs.palette or distinct_colours(
            (_stored_palette(pairs) or ())[: len(self.classes)], len(self.classes)
        )

    def _numbered(self, pairs: Pairs) -> tuple[str, ...]:
        """Return numbers as names of classes. Raises ValueError where the values are shades of grey."""
        values = values_in(pairs.training_maps)
        if is_grey_codes(values):
            folder = pairs.training_maps[0].parent
            raise ValueError(
                f"the label maps in {folder} hold only {_ranges(values)}, as shades of grey are and numbers of classes "
                f"are not: those that occur have neighbours, less than {APART} away; write the value of each class "
                f"into {self.class_folder / CLASSES}, as the lines {as_lines(values)}, or the names of all "
                f"{class_count(values)} classes in their order, where most do not occur"
            )
        return numbered_classes(values)

    @property
    def stored_values(self) -> tuple[int, ...]:
        stored = {int(label): value for value, label in reversed(list(enumerate(self.table_256)))}
        return tuple(stored.get(label, IGNORE) for label in range(len(self.classes)))

    def __len__(self) -> int:
        return len(self._images)

    def id(self, index: int) -> str:
        return self.path(index).relative_to(self.folder).as_posix()

    def path(self, index: int) -> Path:
        return Path(self._images[index].decode(errors="surrogateescape"))

    def map_path(self, index: int) -> Path:
        return Path(self._maps[index].decode(errors="surrogateescape"))

    def sample(self, index: int) -> Sample:
        """Read one image and its label map. Raises BadImage, also for labels that are of no class."""
        image_HW3 = read_image(self.path(index), orient=True)
        path = self.map_path(index)
        labels_HW = to_labels(read_values(path, self._colours), self.table_256, path, len(self.classes))
        if labels_HW.shape != image_HW3.shape[:2]:
            raise BadLabelMap(str(path), differing_sizes(labels_HW.shape, image_HW3.shape))
        return Sample(
            self.id(index),
            image_HW3,
            (image_HW3.shape[0], image_HW3.shape[1]),
            label_map_HW=torch.from_numpy(labels_HW),
        )

    def refuse_unlearnable(self, split: Split) -> None:
        """Raise ValueError where all pixels are ignored, or all of a training split are of one class.

        Maps are read until two classes have been met, which mostly takes one map.
        """
        needed, labels, stored = 2 if split == "train" else 1, set[int](), set[int]()
        for path in map(self.map_path, range(len(self))):
            try:
                stored |= _stored_in(path, self._colours)
            except BadLabelMap:
                return  # it is reported as an image that cannot be used
            labels = set(self.table_256[sorted(stored)].tolist()) - {IGNORE}
            if len(labels) >= needed or NO_LABEL in labels:
                return
        if stored:
            raise ValueError(self._unlearnable(sorted(stored), sorted(labels)))

    def _unlearnable(self, stored: Sequence[int], labels: Sequence[int]) -> str:
        folder = self.map_path(0).parent
        if stored == [0, IGNORE] and self.table_256[IGNORE] == IGNORE:
            return (
                f"the label maps in {folder} hold only 0 and {IGNORE}, and {IGNORE} means ignored: if {IGNORE} is a "
                f"class, write a file {CLASSES} with the lines `0: background` and `{IGNORE}: foreground` into "
                f"{self.class_folder}"
            )
        left = f"is of the class {self.classes[labels[0]]!r:.60} or ignored" if labels else "is ignored"
        if self._colours:
            return f"every pixel of the label maps in {folder} {left}, so that nothing can be learnt: correct the maps"
        return (
            f"every pixel of the label maps in {folder} {left} (they hold {_ranges(stored)}), so that nothing can be "
            f"learnt: correct the maps, or write {CLASSES} with the value of each class, as `0: background`, into "
            f"{self.class_folder}"
        )


def is_label_maps(root: Path) -> bool:
    """Whether `root` has one of the layouts."""
    return any(layout.fits(root) for layout in KNOWN)


def find_pairs(root: Path, split: Split) -> Pairs:
    """The images of one split and their label maps. Raises ValueError when there is no such folder or layout."""
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise ValueError(f"{root} {what}: give the folder that holds images/train and masks/train")
    for layout in KNOWN:
        if layout.fits(root):
            return layout.find(root, split)
    known = "; ".join(f"{layout.name} ({layout.looks})" for layout in (*LAYOUTS, *EXPORTS))
    raise ValueError(f"{root} holds no label maps in a known layout: {known}")


def read_values(path: Path, colours: Mapping[Colour, int] | None = None) -> np.ndarray:
    """Return the numbers that a label map stores, (H, W) uint8: grey values, or positions in its palette.

    Args:
        colours: numbers of the colours that a label map may hold instead.

    Raises:
        BadLabelMap: the file is missing, broken, or holds colours that have no number.
    """
    try:
        with open_image(path) as image:
            if colours and image.mode in ("RGB", "RGBA", "P"):
                return _by_colour(np.asarray(image.convert("RGB")), colours, path)
            if image.mode == "1":
                return np.asarray(image).astype(np.uint8)
            if image.mode in ("L", "P"):
                return np.array(image)
            if image.mode.startswith("I"):
                return _narrow(np.asarray(image), path)
            raise BadLabelMap(str(path), _of_colours(image))
    except BadImage as error:
        raise BadLabelMap(str(path), error.reason) from error
    except Exception as error:  # decoders raise any error on a broken file
        raise BadLabelMap(str(path), str(error).strip().rstrip(".") or type(error).__name__) from error


def _of_colours(image: Image.Image) -> str:
    """Return why a picture in colours is no label map; programs also save grey ones as colours."""
    pixels_HW3 = np.asarray(image.convert("RGB"))
    count = len(np.unique(pixels_HW3.reshape(-1, 3), axis=0))
    grey = (pixels_HW3 == pixels_HW3[..., :1]).all()
    return (
        f"it holds colours ({image.mode}), {count:,} of them{' and all grey' if grey else ''}, where numbers of "
        f"classes are needed; save it as an 8-bit grey {'' if grey else 'or palette '}PNG"
    )


def _by_colour(pixels_HW3: np.ndarray, colours: Mapping[Colour, int], path: Path) -> np.ndarray:
    shifts = np.array([1 << 16, 1 << 8, 1], dtype=np.int32)
    codes_HW = pixels_HW3.astype(np.int32) @ shifts
    known_C = np.array(list(colours), dtype=np.int32).reshape(-1, 3) @ shifts
    order_C = np.argsort(known_C)
    place_HW = np.searchsorted(known_C[order_C], codes_HW).clip(max=len(known_C) - 1)
    if (unknown_HW := known_C[order_C][place_HW] != codes_HW).any():
        colour = tuple(pixels_HW3[unknown_HW][0].tolist())
        reason = f"{unknown_HW.sum():,} pixels have colours such as {colour}, which {LABEL_MAP} does not name; add them"
        raise BadLabelMap(str(path), reason)
    return np.array(list(colours.values()), dtype=np.uint8)[order_C][place_HW]


def _narrow(values_HW: np.ndarray, path: Path) -> np.ndarray:
    if values_HW.size and not 0 <= int(values_HW.min()) <= int(values_HW.max()) <= IGNORE:
        raise BadLabelMap(str(path), f"it holds the value {values_HW.max()}, and labels are at most {IGNORE}")
    return values_HW.astype(np.uint8)


def to_labels(values_HW: np.ndarray, table_256: np.ndarray, path: Path, classes: int) -> np.ndarray:
    """Return stored values as labels, (H, W) uint8. Raises BadLabelMap for a value that is not a label."""
    labels_HW = table_256[values_HW]
    if labels_HW.size and int(labels_HW.max()) == NO_LABEL:
        unknown = np.unique(values_HW[labels_HW == NO_LABEL]).tolist()
        raise BadLabelMap(str(path), unknown_values(unknown, table_256, classes))
    return labels_HW.astype(np.uint8)


def unknown_values(unknown: Sequence[int], table_256: np.ndarray, classes: int) -> str:
    """Return the message for stored values that are not labels."""
    known, ignored = (np.flatnonzero(flags).tolist() for flags in (table_256 < IGNORE, table_256 == IGNORE))
    left = f", and {_ranges(ignored)} {'are' if len(ignored) > 1 else 'is'} ignored" if ignored else ""
    return (
        f"it holds {_ranges(unknown)}, and the {classes} classes are stored as {_ranges(known)}{left}: "
        f"correct it, or name all classes in {CLASSES}, with their values where these do not count from 0, as "
        "`128: road`"
    )


def _ranges(values: Sequence[int], most: int = 5) -> str:
    """Return ascending numbers as text: `0 to 4, 7`."""
    array = np.asarray(values)
    runs = np.split(array, np.flatnonzero(np.diff(array) > 1) + 1)
    texts = [str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs[:most]]
    return ", ".join([*texts, *(["..."] if len(runs) > most else [])])


def differing_sizes(labels: Sequence[int], image: Sequence[int]) -> str:
    """Return the message for a label map and an image of different sizes, (H, W) and (H, W, 3)."""
    return f"it is {labels[1]} x {labels[0]} and its image {image[1]} x {image[0]} pixels; make both one size"


def label_table(pairs: Pairs, classes: int) -> np.ndarray:
    """Return (256,) int16: the label of each stored value, `IGNORE`, or `NO_LABEL`."""
    table_256 = np.full(256, NO_LABEL, dtype=np.int16)
    table_256[IGNORE] = IGNORE
    if pairs.values is None:
        table_256[:classes] = np.arange(classes)
    else:
        for value, label in pairs.values.items():
            table_256[value] = label
    return table_256


def generated_colours(count: int) -> tuple[Colour, ...]:
    """Return different colours: the bits of a label go to red, green and blue in turn, highest first; 0 is black."""
    colours = []
    for label in range(count):
        red = green = blue = 0
        for bit in range(8):
            rest = label >> (3 * bit)
            red |= (rest & 1) << (7 - bit)
            green |= (rest >> 1 & 1) << (7 - bit)
            blue |= (rest >> 2 & 1) << (7 - bit)
        colours.append((red, green, blue))
    return tuple(colours)


def distinct_colours(palette: Sequence[Colour], count: int) -> tuple[Colour, ...]:
    """Return a colour for each class: that of `palette`, or a generated one where it has none or repeats one."""
    spare = (colour for colour in generated_colours(256) if colour not in palette)
    out: list[Colour] = []
    for label in range(count):
        own = palette[label] if label < len(palette) else None
        out.append(next(spare) if own is None or own in out else own)
    return tuple(out)


def _stored_palette(pairs: Pairs) -> tuple[Colour, ...] | None:
    """Return the palette of the first label map, if it has one."""
    if not pairs.maps:
        return None
    try:
        with open_image(pairs.maps[0]) as image:
            flat = image.getpalette() if image.mode == "P" else None
    except BadImage:
        return None
    if flat is None:
        return None
    colours = [(flat[i], flat[i + 1], flat[i + 2]) for i in range(0, len(flat) - 2, 3)]
    values = pairs.values or {i: i for i in range(256)}
    by_label = {label: colours[value] for value, label in values.items() if label != IGNORE and value < len(colours)}
    return tuple(by_label.get(label, (0, 0, 0)) for label in range(max(by_label, default=-1) + 1))


def values_in(maps: Sequence[Path]) -> list[int]:
    """Return the values that occur in label maps, ascending; maps that cannot be used have none."""
    with ThreadPoolExecutor() as pool:
        return sorted(set[int]().union(*pool.map(_values, maps)))


def _values(path: Path) -> set[int]:
    try:
        return _stored_in(path)
    except BadLabelMap:
        return set()


def _stored_in(path: Path, colours: Mapping[Colour, int] | None = None) -> set[int]:
    """Return the values that occur in a label map; arguments and errors as of `read_values`."""
    return set(np.flatnonzero(np.bincount(read_values(path, colours).reshape(-1), minlength=256)).tolist())


def class_count(values: Sequence[int]) -> int:
    """Return how many classes these values are numbers of."""
    return max(2, max((value for value in values if value != IGNORE), default=0) + 1)


def numbered_classes(values: Sequence[int]) -> tuple[str, ...]:
    """Return names for classes without names, up to the highest of the values in the maps for training."""
    return tuple(f"class {i}" for i in range(class_count(values)))
