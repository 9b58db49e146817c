"""The check of a folder of images and label maps."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from fourstage.data.checks.inspect import Inspected, image_findings, inspect_images, leaks, uneven_classes
from fourstage.data.findings import Checked, Finding, SplitSummary, Summary
from fourstage.data.images import open_image
from fourstage.data.label_maps.folders import (
    NO_LABEL,
    BadLabelMap,
    differing_sizes,
    find_pairs,
    label_table,
    numbered_classes,
    read_values,
    unknown_values,
    values_in,
)
from fourstage.data.label_maps.layouts import Colour, Pairs
from fourstage.data.sample import IGNORE, BadImage, NoSplitError, Progress, Split
from fourstage.data.threads import map_in_threads
from fourstage.plurals import plural

RARE = 1e-4  # of the pixels with a label
STRIP = 2**22  # pixels that are counted at a time


@dataclass(frozen=True)
class _InspectedMap:
    """One label map after its inspection."""

    path: Path
    size: tuple[int, int] | None = None  # (H, W)
    counts_256: np.ndarray | None = None  # pixels of each stored value
    error: str = ""
    colours: bool = False  # whether a map that cannot be used holds colours instead of numbers


def check_label_maps(root: Path, progress: Progress) -> Checked:
    """Check every image and every label map: missing partners, sizes, labels without a class, classes."""
    findings, summary, images = list[Finding](), Summary("label maps"), dict[Split, list[Inspected]]()
    for split in ("train", "val"):
        try:
            pairs = find_pairs(root, split)
        except NoSplitError as error:
            findings.append(Finding("note", f"no {split} split", str(root), "lacks a part", str(error)))
            continue
        summary.format = pairs.layout
        findings += [*pairs.problems, *_unused(pairs)]
        values = [] if pairs.classes else values_in(pairs.training_maps) or values_in(pairs.maps)
        classes = pairs.classes or (numbered_classes(values) if values else ())
        if values:
            do = "write one name a line into classes.txt, those of all classes, in the order of their numbers"
            findings.append(Finding("note", "classes without names", str(root), f"names none of {len(classes)}", do))
        there = [i for i, path in enumerate(pairs.maps) if path.is_file()]
        images[split] = inspect_images([pairs.images[i] for i in there], progress, orient=True)
        maps = list(map_in_threads(partial(_inspect, colours=pairs.colours), [pairs.maps[i] for i in there]))
        findings += image_findings(images[split])
        findings += _map_findings(maps, images[split], label_table(pairs, len(classes)), len(classes))
        summary.splits[split] = _summary(images[split], maps, label_table(pairs, len(classes)), classes)
        findings += _class_findings(
            split, pairs, summary.splits[split], maps, label_table(pairs, len(classes)), classes
        )
        if pairs.note:
            findings.append(Finding("note", "layout", str(root), "is usable", pairs.note))
    findings += leaks(images.get("train", []), images.get("val", []))
    return Checked(list(dict.fromkeys(findings)), summary)  # both splits may be of one folder


def _unused(pairs: Pairs) -> Iterator[Finding]:
    for path in pairs.unused:
        yield Finding("warning", "label map without image", str(path), "has no image", "add it, or delete the map")


def _inspect(path: Path, colours: Mapping[Colour, int] | None = None) -> _InspectedMap:
    try:
        values_HW = read_values(path, colours)
    except BadLabelMap as error:
        return _InspectedMap(path, error=error.reason, colours=not colours and _has_colours(path))
    height, width = values_HW.shape
    strips = np.array_split(values_HW, -(-height * width // STRIP))  # bincount takes eight bytes for each value
    counts_256 = sum((np.bincount(s.reshape(-1), minlength=256) for s in strips), np.zeros(256, dtype=np.int64))
    return _InspectedMap(path, (height, width), counts_256)


def _has_colours(path: Path) -> bool:
    """Return whether a file is an image of colours."""
    try:
        with open_image(path) as image:
            return image.mode in ("RGB", "RGBA", "CMYK", "LA", "PA")
    except (BadImage, OSError, ValueError, SyntaxError):
        return False


def _map_findings(
    maps: Sequence[_InspectedMap], images: Sequence[Inspected], table_256: np.ndarray, classes: int
) -> Iterator[Finding]:
    for one, image in zip(maps, images, strict=True):
        where = str(one.path)
        if one.size is None or one.counts_256 is None:
            kind = "label map saved as colours" if one.colours else "unreadable label map"
            yield Finding("error", kind, where, "cannot be used as a label map", one.error)  # as a training says it
            continue
        if image.size is not None and one.size != image.size:
            wrong = differing_sizes(one.size, image.size)
            yield Finding("error", "label map of another size", where, "does not fit", wrong)
        unknown = np.flatnonzero((table_256 == NO_LABEL) & (one.counts_256 > 0)).tolist()
        if unknown:
            wrong = unknown_values(unknown, table_256, classes)
            pixels = int(one.counts_256[unknown].sum())
            yield Finding("error", "label out of range", where, f"has {plural(pixels, 'pixel')} of no class", wrong)
        if not one.counts_256[table_256 != IGNORE].any():
            yield Finding("warning", "nothing labelled", where, "ignores every pixel", "it teaches nothing; delete it")


def _summary(
    images: Sequence[Inspected], maps: Sequence[_InspectedMap], table_256: np.ndarray, classes: Sequence[str]
) -> SplitSummary:
    """Return the counts of a split: for each class, the images in which it occurs."""
    summary = SplitSummary(images=len(images), sizes=[one.size for one in images if one.size is not None])
    summary.per_class.update(dict.fromkeys(classes, 0))
    for one in maps:
        if one.counts_256 is not None:
            labels = set(table_256[np.flatnonzero(one.counts_256)].tolist())
            summary.per_class.update(name for label, name in enumerate(classes) if label in labels)
    return summary


def _class_findings(
    split: Split,
    pairs: Pairs,
    summary: SplitSummary,
    maps: Sequence[_InspectedMap],
    table_256: np.ndarray,
    classes: Sequence[str],
) -> Iterator[Finding]:
    """Report classes that do not occur or are rare; nothing where no label map can be read."""
    where, readable = str(pairs.folder), sum(one.counts_256 is not None for one in maps)
    if not readable:
        return
    among = "any label map" if readable == len(maps) else f"the {readable:,} of {len(maps):,} label maps that are read"
    if lacking := [name for name in classes if not summary.per_class[name]]:
        count = f"{len(lacking):,} of {len(classes):,} classes"
        what = f"has {count} that do not occur in {among}, such as {lacking[0]!r}"
        do = "the network cannot learn them" if split == "train" else "they are not scored"
        yield Finding("note", "class that does not occur", where, what, do)
    if split == "val":
        return
    counts_256 = sum((one.counts_256 for one in maps if one.counts_256 is not None), np.zeros(256, dtype=np.int64))
    pixels = np.array([counts_256[table_256 == label].sum() for label in range(len(classes))])
    for label in np.flatnonzero((pixels > 0) & (pixels < RARE * pixels.sum())).tolist():
        share = f"{100 * pixels[label] / pixels.sum():.3f} per cent"
        what = f"has {plural(int(pixels[label]), 'pixel')} of {classes[label]!r}, {share}"
        yield Finding("note", "rare class", where, what, "look at the result of each class, not at the mean alone")
    yield from uneven_classes(where, summary)
