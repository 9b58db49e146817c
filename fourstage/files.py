"""Atomic writes, reads from a position, and the cache folder. Any package may import this module.

A file that is written here has its old content or its new content, never half of it, also after a power cut: the
content goes to a new file in the same folder, is synced to the disk, and takes the name in one step.
"""

import contextlib
import errno
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

MARK = ".partial"  # in the names of files that are being written, which also start with a dot


@contextmanager
def atomic_file(path: Path) -> Generator[IO[bytes]]:
    """Yield a new binary file to write; at the end it replaces `path`, after an error it is removed.

    The new file is in the folder of `path`. No other process or thread gets the same name.
    """
    with _replacing(path, suffix="") as new, new.open("xb") as file:
        yield file


@contextmanager
def atomic_path(path: Path) -> Generator[Path]:
    """Yield the path of a new file, for writers that open it themselves; the rest as `atomic_file`.

    The new file has the suffix of `path`, from which some writers choose their format.
    """
    with _replacing(path, suffix=path.suffix) as new:
        yield new


@contextmanager
def _replacing(path: Path, suffix: str) -> Generator[Path]:
    new = path.with_name(f".{path.name}.{os.urandom(6).hex()}{MARK}{suffix}")
    try:
        yield new
        with new.open("rb+") as file:
            os.fsync(file.fileno())
        new.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # the first error is the one that matters
            new.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_file(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file by a function that takes the open file; see `atomic_path`.

    Raises:
        OSError: the folder cannot be written or the disk is full; the message says what `path` still holds.
    """
    try:
        with atomic_file(path) as file:
            write(file)
    except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError for a full disk
        if isinstance(error.__context__, KeyboardInterrupt):  # and for an interrupt
            raise KeyboardInterrupt from None
        kept = f"{path} is still the last good one" if path.exists() else f"no {path.name} was written before"
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        raise OSError(
            f"{path} could not be written ({reason}); {kept}; free space or correct the folder, and start again"
        ) from None


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8; see `write_file`."""
    write_file(path, lambda file: file.write(text.encode("utf-8")))


def is_unfinished(path: Path) -> bool:
    """Whether a file has a name that `atomic_file` or `atomic_path` gives."""
    return path.name.startswith(".") and MARK in path.name


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes left in a folder and below it. No other process may be writing there."""
    for path in folder.rglob(f".*{MARK}*"):
        path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make the renaming itself survive a power cut, where the system can."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems sync no folders
            raise
    finally:
        os.close(handle)


def read_at(path: str | Path, offset: int, size: int) -> bytes:
    """Return `size` bytes from `offset` on, fewer where the file ends.

    The file is opened for each read: threads and forked processes then share no position, and beside the decoding of
    an image the opening costs nothing.
    """
    with Path(path).open("rb", buffering=0) as file:
        file.seek(offset)
        chunks = [file.read(size)]
        while chunks[-1] and (left := size - sum(map(len, chunks))):  # a read may give less than was asked for
            chunks.append(file.read(left))
    return b"".join(chunks)


def cache_folder() -> Path:
    """Return the folder for what can be built again: `$XDG_CACHE_HOME/fourstage`, or `~/.cache/fourstage`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fourstage"
