"""The list of classes that a user writes for label maps: one name a line, perhaps with the stored value of each.

background          0: background
road                255: road
                    7:
(0 and 1)           (0 and 255; 7 is ignored)
"""

import re
from dataclasses import dataclass
from pathlib import Path

from fourstage.data.limits import LABEL_MAP_CLASSES, TEXT_BYTES, class_lines, decoded, text_lines
from fourstage.data.sample import IGNORE
from fourstage.files import read_bytes

NAME = "classes.txt"
NUMBERED = re.compile(r"(\d{1,3})\s*:\s*(.*)", re.ASCII)


@dataclass(frozen=True)
class ClassList:
    """Names of classes, and the label of each stored value; None where the values are the labels."""

    names: tuple[str, ...]
    values: dict[int, int] | None = None


def find_class_list(*folders: Path) -> ClassList | None:
    """Return the list in the first folder that has one. Raises ValueError as `read_class_list` does."""
    return next((read_class_list(folder / NAME) for folder in folders if (folder / NAME).is_file()), None)


def read_class_list(path: Path) -> ClassList | None:
    """Return the list in a file; None where the file is empty.

    Raises:
        ValueError: the file is no text, names too many classes or one twice, or gives only some of them a value.
    """
    content = decoded(read_bytes(path, TEXT_BYTES), path).encode()
    lines = text_lines(content, path)
    numbered = [match for line in lines if (match := NUMBERED.fullmatch(line))]
    if not numbered:
        return _checked(path, ClassList(class_lines(content, path))) if lines else None
    if len(numbered) < len(lines):
        plain = next(line for line in lines if not NUMBERED.fullmatch(line))
        raise ValueError(
            f"{path} gives some classes a stored value and not {plain!r:.60}; write each line as `255: road`, or none"
        )
    values, names = [int(match[1]) for match in numbered], [match[2] for match in numbered]
    if max(values) > IGNORE or len(set(values)) < len(values):
        raise ValueError(f"{path}: a stored value is a number from 0 to {IGNORE}, each in one line; correct it")
    kept = class_lines("\n".join(name for name in names if name).encode(), path)
    labels = {name: label for label, name in enumerate(kept)}
    stored = {value: labels[name] if name else IGNORE for value, name in zip(values, names, strict=True)}
    if not kept:
        raise ValueError(f"{path} ignores every value; write a name behind the values of the classes, as `255: road`")
    return _checked(path, ClassList(kept, stored))


def _checked(path: Path, found: ClassList) -> ClassList:
    if len(found.names) > LABEL_MAP_CLASSES:
        raise ValueError(
            f"{path} names {len(found.names):,} classes, and a label map of bytes has at most {LABEL_MAP_CLASSES}; "
            "correct it"
        )
    return found
