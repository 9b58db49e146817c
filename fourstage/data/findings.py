"""What a check of a data set says: findings, a summary, and both as text."""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np

from fourstage.data.images import decode_image, open_image, read_image
from fourstage.data.sample import BadImage

Severity = Literal["error", "warning", "note"]
Progress = Callable[[int, int], None]  # done, total

SHOWN = 5  # findings of one kind that the text lists
UNEVEN = 10  # the largest class over the smallest
SMALL = 32  # pixels; a side below it leaves less than one cell of the last stage
CHUNK = 1024  # images that wait in the thread pool at a time; a million futures would need a gigabyte


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong or odd. An error stops training or spoils it; a note is worth knowing."""

    severity: Severity
    kind: str  # findings of one kind are shown together
    where: str
    what: str
    do: str

    def __str__(self) -> str:
        return f"{self.where} {self.what}: {self.do}"


@dataclass(slots=True)
class SplitSummary:
    """What is in one split."""

    images: int = 0
    per_class: Counter[str] = field(default_factory=Counter)  # images of a class, or objects where images hold several
    sizes: list[tuple[int, int]] = field(default_factory=list)  # (H, W) of every image that could be read


@dataclass(slots=True)
class Summary:
    """What was checked."""

    format: str
    counted: Literal["images", "objects"] = "images"  # what `per_class` counts
    splits: dict[str, SplitSummary] = field(default_factory=dict)
    seconds: float = 0.0
    also: list["Summary"] = field(default_factory=list)  # what the same folder is when it is read in other ways


class Checked(NamedTuple):
    """The result of a check."""

    findings: list[Finding]
    summary: Summary


class Stored(Protocol):
    """A data set that gives what it stores of a sample: a file's bytes, or (H, W, 3) pixels where there is no file."""

    def where(self, index: int) -> str: ...

    def raw(self, index: int) -> bytes | np.ndarray: ...


@dataclass(frozen=True, slots=True)
class Inspected:
    """What one image file turned out to be."""

    path: Path
    size: tuple[int, int] | None = None  # (H, W)
    format: str = ""  # PIL's name of it
    digest: bytes = b""  # of the file's bytes
    error: str = ""


def inspect_images(paths: Sequence[Path], progress: Progress, *, orient: bool = False) -> list[Inspected]:
    """Decode every file, in threads (PIL and hashing let others run), in order."""
    return _in_threads(lambda i: _inspect(paths[i], orient), len(paths), progress)


def inspect_samples(dataset: Stored, indices: Sequence[int], progress: Progress) -> list[Inspected]:
    """The same for samples that may lie in archives and tables."""
    return _in_threads(lambda i: _inspect_sample(dataset, indices[i]), len(indices), progress)


def _in_threads(inspect: Callable[[int], Inspected], total: int, progress: Progress) -> list[Inspected]:
    found: list[Inspected] = []
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for start in range(0, total, CHUNK):
            for inspected in pool.map(inspect, range(start, min(start + CHUNK, total))):
                found.append(inspected)
                progress(len(found), total)
    return found


def _inspect(path: Path, orient: bool) -> Inspected:
    try:
        with open_image(path) as image:
            format = image.format or ""
        height, width = read_image(path, orient=orient).shape[:2]
        return Inspected(path, (height, width), format, blake2b(path.read_bytes(), digest_size=16).digest())
    except BadImage as error:
        return Inspected(path, error=error.reason)


def _inspect_sample(dataset: Stored, index: int) -> Inspected:
    path = Path(dataset.where(index))
    try:
        data, format = dataset.raw(index), ""
        if not isinstance(data, bytes):  # pixels, which have no file to be broken
            return Inspected(path, data.shape[:2], "", blake2b(data.tobytes(), digest_size=16).digest())
        with open_image(BytesIO(data), name=str(path)) as image:
            format = image.format or ""
        size = decode_image(data, str(path)).shape[:2]
        return Inspected(path, size, format, blake2b(data, digest_size=16).digest())
    except BadImage as error:
        return Inspected(path, error=error.reason)


def image_findings(inspected: Sequence[Inspected]) -> list[Finding]:
    """What is wrong with image files as such: unreadable, tiny, or something else than their names say."""
    from PIL import Image

    Image.init()
    named = Image.registered_extensions()
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
        expected = named.get(one.path.suffix.lower())
        named_so = one.path.suffix.lower() and one.format  # rows of a table have no name, pixels no format
        if named_so and expected != one.format and {expected, one.format} != {"JPEG", "MPO"}:
            what = f"holds {one.format}, not {expected or 'what its name says'}"
            findings.append(Finding("warning", "wrong extension", where, what, "it is read all the same; rename it"))
    return findings


def leaks(train: Sequence[Inspected], val: Sequence[Inspected]) -> list[Finding]:
    """Files of the validation split whose bytes are also in the training split."""
    seen = {one.digest: one.path for one in train if one.digest}
    do = "delete one of them, or the score flatters"
    return [
        Finding("warning", "leak", str(one.path), f"is the same file as {seen[one.digest]}, which trains", do)
        for one in val
        if one.digest in seen
    ]


def two_classes(inspected: Sequence[Inspected], classes: Sequence[str]) -> list[Finding]:
    """The same bytes under two names of classes: one of the labels must be wrong."""
    seen: dict[bytes, tuple[Path, str]] = {}
    findings: list[Finding] = []
    for one, name in zip(inspected, classes, strict=True):
        if not one.digest:
            continue
        path, first = seen.setdefault(one.digest, (one.path, name))
        if first != name:
            what = f"is the same file as {path}, of another class"
            findings.append(
                Finding("warning", "two classes", str(one.path), what, "delete the one with the wrong label")
            )
    return findings


def uneven(folder: str, summary: SplitSummary) -> list[Finding]:
    ranked = [(name, count) for name, count in summary.per_class.most_common() if count]
    if not ranked or ranked[0][1] <= UNEVEN * ranked[-1][1]:
        return []
    (most, many), (least, few) = ranked[0], ranked[-1]
    what = f"has {plural(many, 'image')} of {most!r} and {few:,} of {least!r}"
    return [
        Finding("note", "uneven classes", folder, what, "look at the accuracy of each class, not at the mean alone")
    ]


def plural(number: int, one: str) -> str:
    """`1 image`, `1,797 images`."""
    return f"{number:,} {one}{'' if number == 1 else 's'}"


def render(findings: Sequence[Finding], summary: Summary) -> str:
    """Summary and findings for people, errors first; of each kind the first few, and how many more there are."""
    lines = [f"{summary.format}, checked in {summary.seconds:.1f} s"]
    for one in (summary, *summary.also):
        lines += [f"{one.format}, in the same folder"] if one is not summary else []
        for name, split in one.splits.items():
            lines.append(f"  {name}: {plural(split.images, 'image')}{_sizes(split)}")
            lines += _per_class(split, one.counted)
    for severity in ("error", "warning", "note"):
        kinds = dict.fromkeys(f.kind for f in findings if f.severity == severity)
        for kind in kinds:
            of_kind = [f for f in findings if (f.severity, f.kind) == (severity, kind)]
            lines.append(f"{severity}: {kind} ({len(of_kind):,})")
            lines += [f"  {finding}" for finding in of_kind[:SHOWN]]
            if len(of_kind) > SHOWN:
                lines.append(f"  ... and {len(of_kind) - SHOWN:,} more")
    counts = Counter(f.severity for f in findings)
    lines.append(", ".join(plural(counts[s], s) for s in ("error", "warning", "note")))
    return "\n".join(lines)


def _sizes(split: SplitSummary) -> str:
    if not split.sizes:
        return ""
    by_area = sorted(split.sizes, key=lambda size: size[0] * size[1])
    low, middle, high = (f"{w} x {h}" for h, w in (by_area[0], by_area[len(by_area) // 2], by_area[-1]))
    return f" of {low} pixels" if by_area[0] == by_area[-1] else f" of {low} to {high} pixels, {middle} in the middle"


def _per_class(split: SplitSummary, counted: str) -> list[str]:
    """All classes when they are few, else the largest and the smallest."""
    if not split.per_class:
        return []
    ranked = split.per_class.most_common()
    if len(ranked) > 12:
        few = [f"{name} {count:,}" for name, count in (*ranked[:3], *ranked[-3:])]
        text = f"{', '.join(few[:3])} ... {', '.join(few[3:])}"
    else:
        text = ", ".join(f"{name} {count:,}" for name, count in sorted(split.per_class.items()))
    classes = "1 class" if len(ranked) == 1 else f"{len(ranked):,} classes"
    return [f"    {classes}, {counted} of each: {text}"]
