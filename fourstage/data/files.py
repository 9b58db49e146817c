"""Files that appear whole or not at all, and where what can be made again is kept."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/fourstage`, or `~/.cache/fourstage`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fourstage"


@contextmanager
def whole_file(path: Path) -> Generator[IO[bytes]]:
    """A file to write that takes its name when everything is in it and on the disk; nothing stays after an error."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with aside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def read_at(path: str | Path, offset: int, size: int) -> bytes:
    """`size` bytes from `offset` on, fewer where the file ends.

    The file is opened for each read: no position is shared between threads or with forked processes, and beside the
    decoding of an image the opening costs nothing.
    """
    with Path(path).open("rb", buffering=0) as file:
        file.seek(offset)
        parts = [file.read(size)]
        while parts[-1] and (left := size - sum(map(len, parts))):  # a read may give less than was asked for
            parts.append(file.read(left))
    return b"".join(parts)
