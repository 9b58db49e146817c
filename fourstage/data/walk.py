"""Files and folders below a folder, sorted by name; hidden ones and those that systems make are left out."""

import os
from collections.abc import Iterator
from pathlib import Path

from fourstage.data.images import is_image_name

DEPTH = 64  # of folders in folders
SYSTEM = ("/proc", "/sys", "/dev")
MADE_BY_SYSTEMS = frozenset((  # folders, in lower case: of macOS, Linux, Windows, and the servers of Synology and QNAP
    *("__macosx", "lost+found", "$recycle.bin", "recycler", "system volume information"),
    *("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "@tmp", "__pycache__"),
))  # fmt: skip


def is_own_folder(name: str) -> bool:
    """Whether a folder of this name may hold data: it is not hidden, and none that a system or a program makes."""
    return not name.startswith(".") and name.lower() not in MADE_BY_SYSTEMS


def subfolders(folder: Path) -> list[str]:
    """Return the names of the sub-folders, see `is_own_folder`."""
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and is_own_folder(e.name))


def image_files(folder: Path) -> Iterator[str]:
    """Yield the paths below `folder` of all image files in it and in its sub-folders; symbolic links are followed."""
    return (path for path in all_files(folder) if is_image_name(path.rsplit("/", 1)[-1]))


def has_images(folder: Path) -> bool:
    """Return whether there is an image file in a folder or below it."""
    return any(is_image_name(name) for _, names in _walk(folder) for name in names)


def all_files(folder: Path) -> list[str]:
    """Return the paths below `folder`, written with `/`, of every file in it and in its sub-folders."""
    return sorted(prefix + name for prefix, names in _walk(folder) for name in names)


def _walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield each folder, as the beginning of the paths in it, with the names of its files; links are followed.

    A link that leads back up, or to where the system shows its devices and processes as files, counts as empty.

    Raises:
        ValueError: folders are too deep: to walk through them takes the square of their depth.
    """
    above = {os.path.realpath(parent) for parent in Path(os.path.abspath(folder)).parents}  # noqa: PTH100 - links stay
    visited: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in visited or real in above or real.startswith(SYSTEM):
            folders.clear()
            continue
        visited.add(real)
        if len(Path(parent).parts) > len(folder.parts) + DEPTH:
            raise ValueError(f"{folder} has folders more than {DEPTH} deep; move the images up")
        folders[:] = [name for name in folders if is_own_folder(name)]
        below = Path(parent).relative_to(folder).as_posix()
        yield ("" if below == "." else f"{below}/"), [name for name in names if not name.startswith(".")]
