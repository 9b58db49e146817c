"""Fetch published weights into torch's cache: continued after a broken connection, checked, complete or not at all.

On the standard library: torch.hub's own download does not continue, and huggingface_hub's is for addresses of its hub.
"""

import hashlib
import os
import re
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from filelock import FileLock, Timeout  # torch depends on it too

from fourstage.weights.catalog import Weight, by_hand, no_address

CHUNK = 1 << 20  # bytes
TIMEOUT = 30.0  # seconds without a byte
TRIES = 4  # in a row that bring nothing new
PAUSE = 0.5  # seconds before the second of them; doubles
PASSING = {408, 425, 429, 500, 502, 503, 504}  # answers that may be others in a moment
BROKEN = (URLError, HTTPException, ConnectionError, TimeoutError, ssl.SSLError)

Progress = Callable[[int, int], None]  # bytes here, bytes in all


class FailedError(OSError):
    """The server does not send the file."""


class _UselessError(HTTPException):
    """An answer that another request would not change."""


class _ChangedError(Exception):
    """The local bytes are not the beginning of the server's current file."""


def folder() -> Path:
    """Return the folder of fetched weights, as torch.hub has it: hub/checkpoints in TORCH_HOME or ~/.cache/torch."""
    from torch.hub import get_dir

    return Path(get_dir()) / "checkpoints"


def fetch(weight: Weight, call: str = "create_model", progress: Progress | None = None) -> Path:
    """Return the file of a published weight, from the cache or fetched. Of several processes, one fetches it.

    Args:
        call: the function that takes a file that the user has downloaded, for messages.
        progress: called about once a megabyte with the bytes so far and in total.

    Raises:
        ValueError: no address is published, or the file's hash is that of another file.
        OSError: the file could not be fetched, or not be written.
    """
    if weight.address is None or weight.file is None:
        raise ValueError(no_address(weight, call))
    path = folder() / weight.file
    try:
        if path.exists():
            _check(path, weight.sha256)
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path):
            if not path.exists():
                download(weight.address, path, sha256=weight.sha256, progress=progress)
    except (FailedError, ValueError) as error:
        raise type(error)(f"{error}; {by_hand(weight, call)}") from error
    except OSError as error:
        raise OSError(
            f"{path} could not be written ({error.strerror or error}); free space, or name another folder: TORCH_HOME="
        ) from error
    return path


def download(address: str, path: Path, *, sha256: str | None = None, progress: Progress | None = None) -> None:
    """Fetch a file. It gets its name when it is complete; until then it is `<name>.part`, which another call continues.

    Args:
        sha256: the hash or its first digits.

    Raises:
        FailedError: the file could not be fetched.
        ValueError: it has another hash.
        OSError: it could not be written.
    """
    incomplete = path.with_name(f"{path.name}.part")
    tries, most = 0, 0
    while True:
        try:
            _continue(address, incomplete, progress)
            break
        except _ChangedError:
            incomplete.unlink()
            error: Exception = FailedError("the file there keeps changing")
        except BROKEN as broken:
            error = broken
        here = _size(incomplete)
        tries, most = (1, here) if here > most else (tries + 1, most)
        if tries == TRIES or _is_final(error):
            kept = f"; the {here:,} bytes that arrived are kept, and the same call continues" if here else ""
            raise FailedError(f"{path.name} could not be fetched from {address} ({_reason(error)}){kept}") from error
        time.sleep(PAUSE * 2 ** (tries - 1))
    _version_file(incomplete).unlink(missing_ok=True)
    try:
        _check(incomplete, sha256, of=address)
    except ValueError:
        incomplete.unlink()
        raise
    incomplete.replace(path)


def _continue(address: str, incomplete: Path, progress: Progress | None) -> None:
    """Request the missing bytes of a file and append them. Raises one of `BROKEN` where bytes are still missing."""
    here = _size(incomplete)
    missing = {"Range": f"bytes={here}-"} if here else {}
    asked = Request(address, headers={"User-Agent": "fourstage", "Accept-Encoding": "identity", **missing})
    try:
        answer = urlopen(asked, timeout=TIMEOUT)
    except HTTPError as error:
        error.close()
        if error.code == 416 and here:  # the file ends where the local one does
            raise _ChangedError from error
        raise
    with answer:
        here, total = _span(answer, here)
        version = answer.headers["ETag"] or answer.headers["Last-Modified"] or ""
        beside = _version_file(incomplete)
        if here and (not beside.exists() or beside.read_text("utf-8", "replace") != version):
            raise _ChangedError
        beside.write_text(version, "utf-8")
        with incomplete.open("ab" if here else "wb") as file:
            while chunk := answer.read1(CHUNK):  # what there is, so that a break loses nothing
                file.write(chunk)
                before, here = here, here + len(chunk)
                if progress is not None and (here == total or here // CHUNK > before // CHUNK):
                    progress(here, total or here)
            file.flush()
            os.fsync(file.fileno())
    if total is not None and here != total:
        raise ConnectionError(f"the connection ended after {here:,} of {total:,} bytes")


def _span(answer: HTTPResponse, here: int) -> tuple[int, int | None]:
    """Return the position of the first byte that comes, and the size of the file; None: chunks say where it ends."""
    if answer.headers.get_content_type() == "text/html":
        raise _UselessError("the server sent a web page instead")
    if answer.status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answer.headers["Content-Range"] or "")
        if match is None or int(match[1]) != here:
            raise _ChangedError
        return here, int(match[2])
    if answer.length is None and not answer.chunked:
        raise _UselessError("the server does not say how long the file is")
    return 0, answer.length


def _check(path: Path, sha256: str | None, of: str | None = None) -> None:
    """Raise ValueError unless the file's hash begins with these digits; None: any hash."""
    if sha256 is None:
        return
    found = hash_of(path)
    if not found.startswith(sha256):
        what = f"what came from {of}" if of else f"{path}"
        again = "fetch it again" if of else "remove it to have it fetched again"
        raise ValueError(f"{what} is not the published file: its sha256 is {found}, not {sha256}...; {again}")


def hash_of(path: Path) -> str:
    """Return the sha256 of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep other processes from fetching the same file. The lock ends with the process, also when it is killed."""
    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"another process is fetching {path.name}; waiting for it", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _version_file(incomplete: Path) -> Path:
    """Return the path of the file with the version of an incomplete file, as the server named it."""
    return incomplete.with_name(f"{incomplete.name}.version")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _is_final(error: Exception) -> bool:
    return isinstance(error, _UselessError) or (isinstance(error, HTTPError) and error.code not in PASSING)


def _reason(error: Exception) -> str:
    if isinstance(error, HTTPError):
        return f"HTTP {error.code} {error.reason}"
    if isinstance(error, TimeoutError):
        return f"nothing arrived for {TIMEOUT:g} seconds"
    return str(error.reason if isinstance(error, URLError) else error) or type(error).__name__
