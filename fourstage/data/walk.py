"""Files and folders below a folder, sorted by name; hidden ones are left out."""

import os
from collections.abc import Iterator
from pathlib import Path

from fourstage.data.images import is_image_name


def subfolders(folder: Path) -> list[str]:
    """Return the names of the sub-folders, without the `__MACOSX` that macOS adds to archives."""
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith((".", "__MACOSX")))


def image_files(folder: Path) -> Iterator[str]:
    """Yield the paths below `folder` of all image files in it and in its sub-folders; symbolic links are followed."""
    return (path for path in all_files(folder) if is_image_name(path.rsplit("/", 1)[-1]))


def all_files(folder: Path) -> list[str]:
    """Return the paths below `folder`, written with `/`, of every file in it and in its sub-folders."""
    files: list[str] = []
    visited: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(parent)) in visited:  # a link that leads back up
            folders.clear()
            continue
        visited.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = Path(parent).relative_to(folder).as_posix()
        prefix = "" if below == "." else f"{below}/"
        files += [prefix + name for name in names if not name.startswith(".")]
    return sorted(files)
