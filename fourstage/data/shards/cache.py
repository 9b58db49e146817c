"""Shards at an address that fsspec opens (s3://, gs://, https://, memory://, ...): copied once, kept for a while."""

import contextlib
import os
import time
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

from fourstage.data.shards.index import FOLDER, VERSION, ShardIndex, index_shard, load_index, save_index
from fourstage.extras import install
from fourstage.files import atomic_file, cache_error, cache_folder, make_cache_folder
from fourstage.resources import is_disk_full

BOUND = 64  # GB of fetched shards that stay on disk, unless FOURSTAGE_SHARD_CACHE_GB says another number
CHUNK = 8 << 20  # bytes that are fetched at a time
FRESH = 30.0  # seconds; a shard that was used within them is not marked as used again


def filesystem(address: str) -> tuple[Any, str]:
    """Return the file system of an address, and the path in it. Raises ValueError when a library for it is missing."""
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise ValueError(f"{address} needs fsspec: {install('data')}") from error
    try:
        return url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise ValueError(
            f"{address} cannot be opened ({str(error).rstrip('.')}); install the library, or correct the address"
        ) from error


class ShardCache:
    """Copies of remote shards in a folder of bounded size; the least recently used are removed first.

    Any number of processes may use one folder: each shard is fetched once, under a lock. A shard that is removed while
    it is needed is fetched again.

    Raises:
        ValueError: the environment's `FOURSTAGE_SHARD_CACHE_GB` is no number.
    """

    def __init__(self, folder: Path | None = None, bound: int | None = None) -> None:
        self.folder = folder or cache_folder() / "shards"
        gigabytes = os.environ.get("FOURSTAGE_SHARD_CACHE_GB", str(BOUND))
        try:
            self.bound = bound if bound is not None else int(float(gigabytes) * 1e9)
        except (ValueError, OverflowError) as error:
            raise ValueError(
                f"FOURSTAGE_SHARD_CACHE_GB is {gigabytes!r}; it must be a number, such as {BOUND}"
            ) from error
        self._used: dict[str, float] = {}

    def fetch(self, address: str) -> Path:
        """Return the local copy of a shard. Raises ValueError where it cannot be fetched, OSError: cannot be kept."""
        path = self._place(address)
        if path.is_file():
            self._mark(path)
            return path
        from filelock import FileLock

        make_cache_folder(path.parent)
        lock = FileLock(f"{path}.lock")
        try:
            lock.acquire()
        except OSError as error:
            raise cache_error(path, error) from None
        try:
            if not path.is_file():
                self._download(address, path)
                self._make_room(path)
        finally:
            lock.release()
        return path

    def index(self, address: str) -> ShardIndex:
        """Return the index of a shard: the stored one, the one published next to the shard, or a new one.

        Raises:
            ValueError: the address cannot be reached.
            OSError: the cache cannot be written.
        """
        path = self._place(address)
        kept = path.with_name(f"{path.stem}-v{VERSION}.npz")
        size = self._size(address)
        make_cache_folder(self.folder)
        if (index := load_index(kept, size, None)) is not None:
            return index
        parent, _, name = address.rpartition("/")
        published = self._place(f"{parent}/{FOLDER}/{name}.npz")
        try:
            self._download(f"{parent}/{FOLDER}/{name}.npz", published)
            index = load_index(published, size, None)
        except ValueError:
            index = None
        finally:
            published.unlink(missing_ok=True)
        if index is None:
            local = self.fetch(address)
            if local.stat().st_size != size:  # the remote shard has changed since it was fetched
                local.unlink(missing_ok=True)
                local = self.fetch(address)
            index = index_shard(local, address)
            try:
                save_index(index, local, kept)
            except OSError as error:
                raise cache_error(kept, error) from None
        return index

    def _place(self, address: str) -> Path:
        name = Path(address.rpartition("/")[2])
        return self.folder / f"{name.stem}-{sha256(address.encode()).hexdigest()[:16]}{name.suffix}"

    def _size(self, address: str) -> int:
        system, path = filesystem(address)
        try:
            return int(system.size(path))
        except Exception as error:  # each storage has errors of its own
            raise ValueError(
                f"{address} cannot be reached ({_reason(error)}); check the address and the access"
            ) from error

    def _download(self, address: str, path: Path) -> None:
        try:
            with atomic_file(path) as target:
                _copy(address, target)
        except OSError as error:
            raise cache_error(path, error) from None

    def _mark(self, path: Path) -> None:
        now = time.monotonic()
        if now - self._used.get(path.name, -FRESH) >= FRESH:
            self._used[path.name] = now
            with contextlib.suppress(OSError):  # removed meanwhile, or another user's
                os.utime(path)

    def _make_room(self, keep: Path) -> None:
        """Remove the least recently used shards until the rest fits the bound; never the one just fetched."""
        there: list[tuple[float, int, Path]] = []
        for path in self.folder.glob("*.tar"):
            try:
                stat = path.stat()
            except FileNotFoundError:  # another process removes shards too
                continue
            there.append((stat.st_mtime, stat.st_size, path))
        total = sum(size for _, size, _ in there)
        for _, size, path in sorted(there):
            if total <= self.bound:
                return
            if path != keep:
                path.unlink(missing_ok=True)
                total -= size


def _copy(address: str, target: IO[bytes]) -> None:
    """Copy a file of a storage. Raises ValueError where it cannot be read, OSError where the disk is full."""
    system, remote = filesystem(address)
    try:
        with system.open(remote, "rb") as source:
            while chunk := source.read(CHUNK):
                target.write(chunk)
    except Exception as error:  # each storage has errors of its own
        if isinstance(error, OSError) and is_disk_full(error):
            raise
        raise ValueError(f"{address} cannot be fetched ({_reason(error)}); check the address and the access") from error


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().rstrip(".:") if str(error) else type(error).__name__
