"""What a data set may hold, and which files it may name. `fourstage.files.limit` scales the limits.

A data set may come from anyone. What it declares (labels, sizes, names, counts) is compared with a limit before memory
is taken for it, and the files that it names are in its own folder, or in a folder that the user allows.
"""

import codecs
import os
import re
import reprlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from fourstage.files import RAISE, limit, read_bytes

CLASSES = 100_000
LABEL_MAP_CLASSES = 255  # values of a byte, less the one that is ignored
PATH_BYTES = 2048  # of a path below the data folder; Linux allows 4096 for all of it
PART_BYTES = 255  # of a name in a path, as file systems have it
PACKED_BYTES = 2**30  # of all paths of a split, which have one width
LIST_BYTES = 2**30  # of a list of images; ImageNet-22K has 14 million lines
TEXT_BYTES = 16 * 2**20  # of a file of class names, a label file, an annotation
LARGEST_ID = 2**61 - 1  # Python's hash of an integer is its remainder by this; multiples of it collide in a dictionary
CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f]")  # characters of no text
FOLDERS = "FOURSTAGE_DATA_FOLDERS"  # environment variable: folders, separated by `:`, where data may name files too


def check_classes(count: int, source: str | Path) -> None:
    """Raise ValueError for more classes than data may have: names and weights are made for each of them."""
    if count > limit(CLASSES):
        raise ValueError(
            f"{source} has labels up to {count - 1:,}, but at most {limit(CLASSES):,} classes are read; {RAISE}"
        )


def as_label(value: object) -> int:
    """Return an integer, or its digits, as a label. Raises ValueError for anything else, bools too, beyond 62 bits."""
    if isinstance(value, str) and len(value) < 19 and value.isascii() and value.isdecimal():
        value = int(value)
    if type(value) is not int or abs(value) >= 2**62:
        raise ValueError(f"{value!r:.40} is not a label; a label is an integer from 0 on")
    return value


def text_lines(content: bytes, source: str | Path) -> list[str]:
    """Return the lines of a UTF-8 text that are not empty, without the space around them.

    Raises:
        ValueError: the text is not UTF-8, or has a NUL, which no name may have.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} is not UTF-8 text (byte {error.start:,}); save it as UTF-8") from None
    if "\0" in text:
        raise ValueError(f"{source} is not text: it has a NUL character; save it as UTF-8")
    return [line.strip() for line in text.splitlines() if line.strip()]


def decoded(content: bytes, source: str | Path) -> str:
    """Return the text of a list of names: UTF-8, UTF-16 with a byte-order mark, or else Windows' form of Latin-1.

    Raises:
        ValueError: the bytes are no text; `source` names them.
    """
    utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    for encoding in ("utf-16",) if utf16 else ("utf-8-sig", "cp1252"):
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        if CONTROL.search(text) is None:
            return text
    raise ValueError(f"{source} is not text; save it as UTF-8")


def other_encoding(content: bytes) -> str:
    """Return what `decoded` reads these bytes as; empty for UTF-8."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "UTF-16"
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return "Latin-1"
    return ""


def read_class_file(path: Path) -> tuple[str, ...]:
    """Return the lines of a file as class names.

    Raises:
        ValueError: the file is no text, has too many lines, or has one twice.
    """
    return class_lines(decoded(read_bytes(path, TEXT_BYTES), path).encode(), path)


def class_lines(content: bytes, source: str | Path) -> tuple[str, ...]:
    """Return the lines of a text as class names; errors as those of `read_class_file`."""
    names = tuple(text_lines(content, source))
    check_classes(len(names), source)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{source} has the class {twice!r:.60} twice; each class needs its own name")
    return names


def packed_names(names: Sequence[bytes], source: str | Path) -> np.ndarray:
    """Return names as one array, whose entries all take the bytes of the longest.

    Raises:
        ValueError: a name is longer than any path, has a NUL, or all of them together take too much memory.
    """
    longest = max(names, key=len, default=b"")
    if len(longest) > PATH_BYTES:
        raise ValueError(
            f"{source} has the name {os.fsdecode(longest[:40])!r}... of {len(longest):,} bytes; a path has at most "
            f"{PATH_BYTES:,}"
        )
    if len(names) * len(longest) > limit(PACKED_BYTES):
        raise ValueError(f"{source} has {len(names):,} names of up to {len(longest):,} bytes; shorten them, or {RAISE}")
    if any(b"\0" in name for name in names):
        raise ValueError(f"{source} has a name with a NUL character, which no file can have; correct it")
    return np.array(names, dtype=bytes)


def as_name(value: object) -> str:
    """Return the name of a file in a data set. Raises ValueError for what no file can be called."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"{reprlib.repr(value)} is not the name of a file")
    try:
        name = os.fsencode(value)
    except UnicodeEncodeError:
        name = b"\0"  # half of a character
    if not is_path(name):
        raise ValueError(f"{value[:40]!r} is not the name of a file: it is too long, or has a character that none has")
    return value


def is_path(name: bytes) -> bool:
    """Return whether a file may have this path, by its length and its characters."""
    if len(name) > PATH_BYTES or b"\0" in name:
        return False
    return len(name) <= PART_BYTES or all(len(part) <= PART_BYTES for part in name.split(b"/"))


def as_id(value: object) -> int | str:
    """Return an id as an integer or text; `1.0` is 1. Raises ValueError for anything else, bools too."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is int and abs(value) >= LARGEST_ID:
        raise ValueError(
            f"the id {reprlib.repr(value)} is too large; an integer has at most 18 digits, a text may be longer"
        )
    if type(value) is int or (type(value) is str and len(value) <= PATH_BYTES):
        return value
    raise ValueError(f"{reprlib.repr(value)} is not an id; an id is an integer or a text")


def colliding(ids: Sequence[int | str]) -> int | str | None:
    """Return the first id that comes twice, also once as a number and once as text; None where there is none."""
    if len(set(ids)) == len(ids) and len({type(id) for id in ids}) < 2:
        return None
    counts = Counter(map(str, ids))
    return next((id for id in ids if counts[str(id)] > 1), None)


def check_inside(root: Path, paths: Iterable[Path], source: str | Path) -> None:
    """Raise ValueError unless all paths are in `root`, or in a folder that the user allows.

    Names decide: a symbolic link inside of `root` may lead anywhere, but `..` may not lead out of it.
    """
    for path in paths:
        if not is_inside(root, path):
            raise ValueError(
                f"{source} names {path}, which is not in the data folder {root}; if the data may use that folder, put "
                f"{FOLDERS}={Path(os.path.abspath(path)).parent} before the command"  # noqa: PTH100 - links stay
            )


def is_inside(root: Path, path: Path) -> bool:
    """Return whether a path is in `root`, or in a folder that the user allows; see `check_inside`."""
    folders = [root, *(Path(text) for text in os.environ.get(FOLDERS, "").split(os.pathsep) if text)]
    if not _below(path, folders, os.path.abspath):
        return False
    named = path.parts[len(root.parts) :] if path.parts[: len(root.parts)] == root.parts else path.parts
    return ".." not in named or _below(path, folders, os.path.realpath)


def _below(path: Path, folders: Sequence[Path], absolute: Callable[[Path], str]) -> bool:
    place = Path(absolute(path))
    return any(place.is_relative_to(absolute(folder)) for folder in folders)


def leads_away(name: str) -> bool:
    """Return whether a name may lead out of its folder. It is asked a million times, so it looks at the text alone."""
    return name.startswith(("/", "\\")) or ".." in name or ":" in name[:2]
