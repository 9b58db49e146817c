"""Atomic writes, bounded reads, and the cache folder. Any package may import this module.

A file that is written here has its old content or its new content, never half of it, also after a power cut: the
content goes to a new file in the same folder, is synced to the disk, and takes the name in one step.

A file that is read here may come from anyone: it is a regular file, and no larger than a limit. `limit` scales all
limits by one environment variable.
"""

import contextlib
import errno
import os
import shlex
import stat
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from fourstage.resources import full_disk_text, is_disk_full

HUB = ("hf-hub:", "hf_hub:")  # begin the names of repositories of Hugging Face's hub
NAMED = 40  # characters, of up to four bytes each, of a name that its unfinished file shows
MARK = ".partial"  # in the names of files that are being written, which also start with a dot


@contextmanager
def atomic_file(path: Path, keep: Path | None = None) -> Generator[IO[bytes]]:
    """Yield a new binary file to write; at the end it replaces `path`, after an error it is removed.

    The new file is in the folder of `path`. No other process or thread gets the same name.

    Args:
        keep: the name that the old file gets, in the same folder; None: it is removed.
    """
    with _replacing(path, suffix="", keep=keep) as new, new.open("x+b") as file:
        yield file


@contextmanager
def atomic_path(path: Path) -> Generator[Path]:
    """Yield the path of a new file, for writers that open it themselves; the rest as `atomic_file`.

    The new file has the suffix of `path`, from which some writers choose their format.
    """
    with _replacing(path, suffix=path.suffix) as new:
        yield new


@contextmanager
def _replacing(path: Path, suffix: str, keep: Path | None = None) -> Generator[Path]:
    beginning = path.name[:NAMED]  # the new name must not be longer than a file system allows
    new = path.with_name(f".{beginning}.{os.urandom(6).hex()}{MARK}{suffix}")
    try:
        yield new
        with new.open("rb+") as file:
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            _keep(path, keep)
        new.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # the first error is the one that matters
            new.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _keep(path: Path, keep: Path) -> None:
    """Give a file a second name, in place of the file that has this name. `path` is there at every moment."""
    link = path.with_name(f".{keep.name}.{os.urandom(6).hex()}{MARK}")
    try:
        os.link(path, link)
    except OSError:  # a file system without hard links: `path` is missing until the new file takes its name
        path.replace(keep)
    else:
        link.replace(keep)


def write_file(
    path: Path, write: Callable[[IO[bytes]], object], keep: Path | None = None, needed: int | None = None
) -> None:
    """Write a file by a function that takes the open file; see `atomic_file`.

    Args:
        needed: the bytes of the file, where they are known, for the message about a full disk.

    Raises:
        OSError: the folder cannot be written or the disk is full; the message says what `path` still holds.
    """
    try:
        with atomic_file(path, keep) as file:
            write(file)
    except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError for a full disk
        if isinstance(error.__context__, KeyboardInterrupt):  # and for an interrupt
            raise KeyboardInterrupt from None
        kept = f"{path} is still the last good one" if path.exists() else f"no {path.name} was written before"
        if is_disk_full(error):
            reason = full_disk_text(path.parent, error, needed)
            raise OSError(f"{path} could not be written: {reason}; {kept}; free space, and start again") from None
        if not isinstance(error, OSError):
            raise  # such as memory that ran out
        raise OSError(
            f"{path} could not be written ({error.strerror or error}); {kept}; correct the folder, and start again"
        ) from None


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8; see `write_file`."""
    write_file(path, lambda file: file.write(text.encode("utf-8")))


def csv_cell(text: str) -> str:
    """Return a text as a cell of a CSV file that no spreadsheet takes for a formula; a number stays as it is."""
    if not text.lstrip(" ").startswith(("=", "+", "-", "@", "\t", "\r", "\n")):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text


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


LIMITS = "FOURSTAGE_LIMITS"  # environment variable: the factor on all limits of readers
RAISE = f"if it is as it should be, raise all limits tenfold with {LIMITS}=10 before the command"


def limit(usual: int) -> int:
    """Return the limit of a reader, `usual` multiplied by the factor in the environment variable FOURSTAGE_LIMITS.

    Raises:
        ValueError: the variable is no number of 1 or more.
    """
    text = os.environ.get(LIMITS, "1")
    try:
        factor = float(text)
    except ValueError:
        factor = 0.0
    if not 1 <= factor <= 1e9:
        raise ValueError(f"{LIMITS} is the factor on all limits of readers, such as 10; got {text!r:.40}")
    return int(usual * factor)


KINDS = (
    (stat.S_ISDIR, "folder"),
    (stat.S_ISFIFO, "named pipe"),
    (stat.S_ISSOCK, "socket"),
    (stat.S_ISCHR, "device"),
    (stat.S_ISBLK, "device"),
    (stat.S_ISLNK, "symbolic link"),
)


def kind_of(mode: int) -> str:
    """Return what a path is in a word, by the `st_mode` of its status: "file", "folder", "named pipe", ..."""
    return next((name for fits, name in KINDS if fits(mode)), "file")


def is_address(data: str | Path) -> bool:
    """Return whether data is named by an address that fsspec opens, such as s3://bucket/data, and not by a path."""
    return "://" in str(data)


def is_hub_name(source: str) -> bool:
    """Return whether a name is that of a repository of Hugging Face's hub."""
    return source.startswith(HUB)


def open_regular(path: str | Path) -> IO[bytes]:
    """Open a regular file to read its bytes. Anything else, such as a named pipe, is refused and never waited for.

    Raises:
        ValueError: the path is a folder, a named pipe, a socket or a device.
        OSError: there is no such file, or it cannot be read.
    """
    path = Path(path)
    _check_regular(path, path.stat().st_mode)  # first: to open a device may already change it
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        _check_regular(path, os.fstat(handle).st_mode)  # again: another process may have exchanged the file
    except ValueError:
        os.close(handle)
        raise
    return os.fdopen(handle, "rb")


def _check_regular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path} is a {kind_of(mode)}, not a file; put a file in its place")


def check_no_links(folder: Path, names: Iterable[str], in_place: Iterable[str] = ()) -> None:
    """Check that the files and folders of a foreign folder lead nowhere else, before something is written to them.

    Args:
        names: of the files and folders in it that will be written; in such a folder, every file is checked.
        in_place: those of them that are changed in place: a hard link would change the file's other name too.

    Raises:
        ValueError: one of them is a symbolic link, a named pipe, a socket, a device or a hard link.
    """
    shared, waiting = {folder / name for name in in_place}, [folder / name for name in names]
    while waiting:
        path = waiting.pop()
        try:
            status = path.lstat()
        except (FileNotFoundError, NotADirectoryError):  # nothing is there to lead elsewhere
            continue
        if stat.S_ISDIR(status.st_mode):
            waiting += path.iterdir()
        elif not stat.S_ISREG(status.st_mode):
            raise ValueError(
                f"{path} is a {kind_of(status.st_mode)}, and nothing is written through one; remove it, or choose "
                f"another folder"
            )
        elif path in shared and status.st_nlink > 1:
            raise ValueError(f"{path} is a hard link, so that another file would change with it; replace it by a copy")


def open_to_lock(path: Path) -> IO[bytes]:
    """Open a file to lock it; create it where it is missing. Its content is kept, and no link is followed.

    Raises:
        ValueError: the path is a link, or no regular file.
        OSError: it cannot be opened.
    """
    check_no_links(path.parent, [path.name], in_place=[path.name])
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    return os.fdopen(os.open(path, flags, 0o666), "r+b")


def read_bytes(path: str | Path, most: int) -> bytes:
    """Return the content of a regular file of at most `limit(most)` bytes.

    Raises:
        ValueError: the file is larger, or is no regular file; see `open_regular`.
        OSError: there is no such file, or it cannot be read.
    """
    most = limit(most)
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(most + 1) if size <= most else b""  # files of the system say that they have no size
        if max(size, len(content)) > most:
            raise ValueError(
                f"{path} is {max(size, len(content)):,} bytes large, and at most {most:,} are read; {RAISE}"
            )
    return content


def read_text(path: str | Path, most: int) -> str:
    """Return the text of a regular UTF-8 file, as `read_bytes` does.

    Raises:
        ValueError: as `read_bytes`; or the file is no UTF-8 text.
    """
    try:
        return read_bytes(path, most).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start:,}); save it as UTF-8") from None


def read_at(path: str | Path, offset: int, size: int) -> bytes:
    """Return `size` bytes from `offset` on, fewer where the file ends.

    The file is opened for each read: threads and forked processes then share no position, and beside the decoding of
    an image the opening costs nothing.
    """
    with Path(path).open("rb", buffering=0) as file:
        size = max(0, min(size, os.fstat(file.fileno()).st_size - offset))  # memory is taken for all that is asked for
        file.seek(offset)
        chunks = [file.read(size)]
        while chunks[-1] and (left := size - sum(map(len, chunks))):  # a read may give less than was asked for
            chunks.append(file.read(left))
    return b"".join(chunks)


OTHER_CACHE = "free space, or name another folder for the cache: put XDG_CACHE_HOME=FOLDER before the command"


def cache_folder() -> Path:
    """Return the folder for what can be built again: `$XDG_CACHE_HOME/fourstage`, or `~/.cache/fourstage`.

    Raises:
        OSError: neither is known, as for a user without a home in a container.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fourstage"
    except RuntimeError as error:
        raise FileNotFoundError(
            f"no folder for a cache is known ({str(error).rstrip('.')}); set XDG_CACHE_HOME to a folder, "
            "such as XDG_CACHE_HOME=/tmp"
        ) from error


def make_cache_folder(folder: Path) -> None:
    """Make a folder in the cache. Raises OSError, as `cache_error`, where it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cache_error(folder, error) from None


def cache_error(path: Path, error: OSError) -> OSError:
    """Return the error on a file or a folder of the cache that cannot be written: it says how to name another."""
    reason = full_disk_text(path.parent, error) if is_disk_full(error) else error.strerror or error
    return OSError(f"{path} could not be written ({reason}); {OTHER_CACHE}")


def real_path(path: str | os.PathLike[str]) -> Path:
    """Return the absolute path without links and `..`, also of a link that leads to itself.

    `Path.resolve` raises RuntimeError for such a link up to Python 3.12.
    """
    return Path(os.path.realpath(path))


def shown_path(path: Path) -> str:
    """Return the path relative to the working directory if it is inside it, else the absolute path."""
    full = real_path(path)
    here = Path.cwd()
    return os.path.relpath(full, here) if full.is_relative_to(here) and full != here else str(full)


def typed(path: str | os.PathLike[str]) -> str:
    """Return a path as a word of a command that can be typed."""
    return shlex.quote(str(path))
