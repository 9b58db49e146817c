r"""Find the image files that a data set names as another machine called them.

Such names are `images\a.jpg`, `C:\photos\a.jpg` and `a%20b.jpg`. A name that is the path of a file counts as it is. Any
other name is compared with the image files below the data folder, and is replaced where exactly one of them fits. No
file outside of the data folder is found in this way.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote

from fourstage.data.limits import is_inside, leads_away
from fourstage.data.walk import image_files

LISTED = 20_000  # names; up to here each is looked for, beyond it some are, and all when one of these is missing
PROBES = 64
DRIVE = re.compile(r"[A-Za-z]:")
FOREIGN = re.compile(r"[\\%]")


def found_names(root: Path, folder: Path, names: Sequence[str]) -> dict[int, str]:
    """Return by position, for the names that are no files in `folder`, the names of the files that they mean.

    Args:
        root: the data folder, whose image files are compared.
        folder: where names start. The returned ones start there too, and may begin with `../`.

    Returns:
        Names for which exactly one file fits, and which alone fit that file; the others are left out.
    """
    lost = _lost(root, folder, names)
    if not lost:
        return {}
    files = _by_last_part(image_files(root))
    fitting = {i: file for i in lost if (file := _fitting(names[i], files)) is not None}
    taken: dict[str, int] = {}
    for file in fitting.values():
        taken[file] = taken.get(file, 0) + 1
    start = os.path.relpath(root, folder)
    return {i: os.path.normpath(os.path.join(start, file)) for i, file in fitting.items() if taken[file] == 1}  # noqa: PTH118


def resolved(names: Sequence[str], found: Mapping[int, str]) -> list[str]:
    """Return all names, those of `found_names` replaced."""
    return [found.get(i, name) for i, name in enumerate(names)]


def found_note(source: str | Path, names: Sequence[str], found: Mapping[int, str]) -> str:
    """Return the sentence about names that were replaced; empty where there are none."""
    if not found:
        return ""
    first = min(found)
    count = f"{len(found):,} name{'s' * (len(found) > 1)}"
    return f"{source} has {count} that no file has as it is, such as {names[first]!r:.120}: {found[first]} is read."


def _lost(root: Path, folder: Path, names: Sequence[str]) -> list[int]:
    """Return the positions of names without a file. Of many, files are looked for only where a sample is missing."""
    step = 1 if len(names) <= LISTED else len(names) // PROBES
    if not _missing(root, folder, names, range(0, len(names), step)):
        foreign = [i for i, name in enumerate(names) if FOREIGN.search(name) or leads_away(name)]
        return _missing(root, folder, names, foreign) if step > 1 else []
    return _missing(root, folder, names, range(len(names)))


def _missing(root: Path, folder: Path, names: Sequence[str], positions: Iterable[int]) -> list[int]:
    start = f"{folder}/"
    return [i for i in positions if not _is_there(root, folder, start, names[i])]


def _is_there(root: Path, folder: Path, start: str, name: str) -> bool:
    if leads_away(name):
        return is_inside(root, folder / name) and (folder / name).is_file()
    return os.path.isfile(start + name)  # noqa: PTH113 - a path object costs more than the question


def _by_last_part(files: Iterable[str]) -> dict[str, list[str]]:
    out: dict[str, list[str]] = {}
    for file in files:
        out.setdefault(file.rsplit("/", 1)[-1].casefold(), []).append(file)
    return out


def _fitting(name: str, files: Mapping[str, list[str]]) -> str | None:
    """Return the one file that has most of the name's last parts; None where there is none, or several."""
    best: list[str] = []
    for plain in dict.fromkeys((name.replace("\\", "/"), unquote(name).replace("\\", "/"))):
        parts = [part.casefold() for part in DRIVE.sub("", plain, count=1).split("/") if part not in ("", ".", "..")]
        candidates = files.get(parts[-1], []) if parts else []
        shared = [_shared_end(file.casefold().split("/"), parts) for file in candidates]
        best += [file for file, count in zip(candidates, shared, strict=True) if count == max(shared)]
    return best[0] if len(set(best)) == 1 else None


def _shared_end(one: Sequence[str], other: Sequence[str]) -> int:
    count = 0
    for a, b in zip(reversed(one), reversed(other), strict=False):
        if a != b:
            break
        count += 1
    return count
