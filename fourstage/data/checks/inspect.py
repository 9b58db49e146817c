"""The questions of every check about the images: can they be read, how large are they, do some occur twice."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import Protocol

import numpy as np

from fourstage.data.findings import Finding, SplitSummary
from fourstage.data.images import decode_image, open_image, orientation, read_image
from fourstage.data.sample import BadImage, Progress
from fourstage.data.threads import map_in_threads
from fourstage.plurals import plural

SMALL = 32  # pixels; a side below it leaves less than one cell of the last stage
UNEVEN = 10  # the largest class over the smallest


class StoredImages(Protocol):
    """A data set that gives what it stores of a sample: a file's bytes, or (H, W, 3) pixels where there is no file."""

    def where(self, index: int) -> str: ...

    def raw(self, index: int) -> bytes | np.ndarray: ...


@dataclass(frozen=True, slots=True)
class Inspected:
    """One image after its inspection."""

    path: Path
    size: tuple[int, int] | None = None  # (H, W)
    format: str = ""  # PIL's name of it
    digest: bytes = b""  # of the file's bytes
    error: str = ""
    turned: bool | None = None  # whether its EXIF turned it when it was read; None: no EXIF turns it


def inspect_images(paths: Sequence[Path], progress: Progress, *, orient: bool = False) -> list[Inspected]:
    """Decode every file, in threads, and return the results in order."""
    return list(map_in_threads(lambda path: _inspect(path, orient), paths, progress))


def inspect_samples(dataset: StoredImages, indices: Sequence[int], progress: Progress) -> list[Inspected]:
    """Do the same for samples that may be in archives and tables."""
    return list(map_in_threads(lambda index: _inspect_sample(dataset, index), indices, progress))


def _inspect(path: Path, orient: bool) -> Inspected:
    try:
        with open_image(path) as image:
            format, turned = image.format or "", orient if orientation(image) > 1 else None
        size = read_image(path, orient=orient).shape[:2]
        return Inspected(path, size, format, blake2b(path.read_bytes(), digest_size=16).digest(), turned=turned)
    except BadImage as error:
        return Inspected(path, error=error.reason)


def _inspect_sample(dataset: StoredImages, index: int) -> Inspected:
    path = Path(dataset.where(index))
    try:
        data, format = dataset.raw(index), ""
        if not isinstance(data, bytes):  # pixels, which have no file to be broken
            return Inspected(path, data.shape[:2], "", blake2b(data.tobytes(), digest_size=16).digest())
        with open_image(BytesIO(data), name=str(path)) as image:
            format, turned = image.format or "", False if orientation(image) > 1 else None
        size = decode_image(data, str(path)).shape[:2]
        return Inspected(path, size, format, blake2b(data, digest_size=16).digest(), turned=turned)
    except BadImage as error:
        return Inspected(path, error=error.reason)


def image_findings(inspected: Sequence[Inspected]) -> list[Finding]:
    """Return what is wrong with image files as such: unreadable, tiny, or of another format than their names say."""
    from PIL import Image

    Image.init()
    by_suffix = Image.registered_extensions()
    findings: list[Finding] = []
    for one in inspected:
        where = str(one.path)
        if one.size is None:
            do = "replace or delete the file, or train with skip_bad_images=true"
            findings.append(
                Finding("error", "unreadable image", where, f"cannot be read as an image ({one.error})", do)
            )
            continue
        if min(one.size) < SMALL:
            what = f"is only {one.size[1]} x {one.size[0]} pixels"
            findings.append(
                Finding("warning", "tiny image", where, what, "enlarging adds nothing; look for a better copy")
            )
        expected = by_suffix.get(one.path.suffix.lower())
        comparable = one.path.suffix.lower() and one.format  # rows of a table have no suffix, pixels no format
        if comparable and expected != one.format and {expected, one.format} != {"JPEG", "MPO"}:
            what = f"holds {one.format}, not {expected or 'what its name says'}"
            findings.append(Finding("warning", "wrong extension", where, what, "it is read all the same; rename it"))
    return [*findings, *_turned(inspected)]


def _turned(inspected: Sequence[Inspected]) -> list[Finding]:
    """Return one note for all images that their EXIF turns."""
    turned = [one for one in inspected if one.turned is not None]
    if not turned:
        return []
    what = f"is one of {plural(len(turned), 'image')} that EXIF turns"
    if turned[0].turned:
        do = "they are read turned, as viewers show them, so draw boxes and label maps that way"
    else:
        do = "classification reads them as they are stored, as torchvision and timm do; save them again if that matters"
    return [Finding("note", "turned by EXIF", str(turned[0].path), what, do)]


def leaks(train: Sequence[Inspected], val: Sequence[Inspected]) -> list[Finding]:
    """Return the images of the validation split whose bytes are also in the training split."""
    trained = {one.digest: one.path for one in train if one.digest}
    do = "delete one of them, or the score is too high"
    return [
        Finding(
            "warning", "leak", str(one.path), f"is the same file as {trained[one.digest]} of the training split", do
        )
        for one in val
        if one.digest in trained
    ]


def contradictory_labels(inspected: Sequence[Inspected], classes: Sequence[str]) -> list[Finding]:
    """Return images whose bytes occur with the names of two classes: one of the labels must be wrong."""
    first_of: dict[bytes, tuple[Path, str]] = {}
    findings: list[Finding] = []
    for one, name in zip(inspected, classes, strict=True):
        if not one.digest:
            continue
        path, first = first_of.setdefault(one.digest, (one.path, name))
        if first != name:
            what = f"is the same file as {path}, of another class"
            findings.append(
                Finding("warning", "two classes", str(one.path), what, "delete the one with the wrong label")
            )
    return findings


def uneven_classes(folder: str, summary: SplitSummary) -> list[Finding]:
    """Return a note where the largest class has far more images than the smallest."""
    ranked = [(name, count) for name, count in summary.per_class.most_common() if count]
    if not ranked or ranked[0][1] <= UNEVEN * ranked[-1][1]:
        return []
    (largest, most), (smallest, fewest) = ranked[0], ranked[-1]
    what = f"has {plural(most, 'image')} of {largest!r} and {fewest:,} of {smallest!r}"
    return [
        Finding("note", "uneven classes", folder, what, "look at the accuracy of each class, not at the mean alone")
    ]
