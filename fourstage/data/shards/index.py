"""The index of a WebDataset shard, built in one pass over it and stored next to it. N samples.

A shard is a tar file. Neighbouring members whose names agree up to the first dot of the file name are one sample:
`n01440764_18.jpg`, `n01440764_18.cls` (a number, or a class name), and perhaps `n01440764_18.json`.
"""

import os
import re
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from fourstage.data.findings import Finding
from fourstage.data.images import EXTENSIONS
from fourstage.data.limits import PATH_BYTES, packed_names
from fourstage.documents import parse_json
from fourstage.files import atomic_file, cache_folder, limit, open_regular, real_path

VERSION = 1  # raised when older indices must be built again
FOLDER = ".fourstage"  # in the folder of the shards
SMALL = 1 << 20  # bytes; labels and notes are not larger
HEAD = 1 << 20  # bytes; what tarfile may read at once: a head, or a long name
FILES = 1000  # of one sample
INDEX_BYTES = 2**29  # of an index when it is unpacked; a sample takes some 100
NUMBER = re.compile(r"[-+]?[0-9]{1,18}")
LABELS = ("cls", "label", "txt")  # of these endings the first that is there


class BrokenShardError(ValueError):
    """A shard that cannot be used; `finding` names it and says what to do."""

    def __init__(self, shard: str, what: str, do: str) -> None:
        self.finding = Finding("error", "broken shard", shard, what, do)
        super().__init__(str(self.finding))


@dataclass(frozen=True)
class ShardIndex:
    """Samples of one shard in its order."""

    ids_N: np.ndarray  # bytes
    offsets_N: np.ndarray  # int64, where each image's bytes begin
    sizes_N: np.ndarray  # int64, bytes of each image
    labels_N: np.ndarray  # int64; -1 where `names_N` has it
    names_N: np.ndarray  # bytes; the label where it is a name

    def __len__(self) -> int:
        return len(self.ids_N)


def index_shard(path: Path, name: str) -> ShardIndex:
    """Read all headers and labels of a shard. `name` is the shard's address, for messages.

    Raises:
        BrokenShardError: no tar file, one that was cut off, or a sample without image or label.
    """
    rows: list[tuple[bytes, int, int, int, bytes]] = []
    broken: BrokenShardError | None = None  # raised last: a file that was cut off is the likelier reason
    try:
        with open_regular(path) as file, tarfile.open(fileobj=cast(Any, _Bounded(file)), mode="r:") as archive:
            for key, members in _samples(archive):
                try:
                    rows.append(_row(archive, key, members, name, Path(name).name.removesuffix(".tar")))
                except BrokenShardError as error:
                    broken = broken or error
            _check_end(path, archive.offset)
    except (tarfile.TarError, EOFError, OverflowError, RecursionError, ValueError, LookupError) as error:
        # tarfile raises ValueError and LookupError too for heads that hold something else than it expects
        what = f"is not a complete tar file ({str(error) or type(error).__name__:.200})"
        raise BrokenShardError(name, what, "it was cut off or damaged, so download or write it again") from error
    if broken is not None:
        raise broken
    ids, offsets, sizes, labels, names = zip(*rows, strict=True) if rows else ((), (), (), (), ())
    if len(set(ids)) < len(ids):
        twice = next(id for id in ids if ids.count(id) > 1)
        raise BrokenShardError(
            name, f"holds {os.fsdecode(twice)} twice", "names of samples must differ; write it again"
        )
    return ShardIndex(
        packed_names(ids, name),
        *(np.array(values, dtype=np.int64) for values in (offsets, sizes, labels)),
        names_N=packed_names(names, name),
    )


class _Bounded:
    """A file for tarfile, which takes memory for what a head declares: no head may declare more than a megabyte."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.seek, self.tell, self.name = file, file.seek, file.tell, file.name

    def read(self, size: int) -> bytes:
        if not 0 <= size <= HEAD:
            raise tarfile.ReadError(f"a head declares {size:,} bytes")
        return self._file.read(size)


def _samples(archive: tarfile.TarFile) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """Neighbouring members with one key, by their ending."""
    key, members = "", dict[str, tarfile.TarInfo]()
    place = -1
    while (member := archive.next()) is not None:
        if member.offset <= place or len(members) > FILES:
            raise tarfile.ReadError(
                "its heads lead back" if member.offset <= place else f"{key:.80} has too many files"
            )
        place = member.offset
        setattr(archive, "members", [])  # noqa: B010 - else tarfile keeps every head; its types do not name the list
        folder, _, file = member.name.rpartition("/")
        stem, dot, ending = file.partition(".")
        if not member.isfile() or not stem or not dot:  # folders, hidden files
            continue
        this = f"{folder}/{stem}" if folder else stem
        if this != key and members:
            yield key, members
            members = {}
        key = this
        members[ending.lower()] = member
    if members:
        yield key, members


def _row(
    archive: tarfile.TarFile, key: str, members: dict[str, tarfile.TarInfo], name: str, stem: str
) -> tuple[bytes, int, int, int, bytes]:
    ending = next((ending for ending in members if f".{ending.rpartition('.')[2]}" in EXTENSIONS), None)
    if ending is None:
        what = f"holds no image for the sample {key!r:.80}, only {', '.join(islice(members, 5)):.200}"
        raise BrokenShardError(name, what, "each sample needs one, such as KEY.jpg; write the shard again")
    image = members[ending]
    note: dict[str, Any] = {}
    if "json" in members:
        try:
            content = parse_json(_text(archive, members["json"]), name)
        except ValueError:
            content = None
        note = content if isinstance(content, dict) else {}
    label_file = next((_text(archive, members[one]) for one in LABELS if one in members), None)
    label = label_file.decode("utf-8", "surrogateescape").strip() if label_file is not None else note.get("label")
    if label is None or label == "":
        what = f"holds no label for the sample {key!r}"
        raise BrokenShardError(name, what, f"a member {key}.cls with the number of its class is needed")
    own = note.get("source_id")
    id = own if isinstance(own, str) else f"{stem}/{image.name}"
    number, text = _label(label)
    written = (id.encode("utf-8", "surrogateescape"), text) if not _unwritable(id) else (b"", b"")
    if not written[0] or any(b"\0" in one or len(one) > PATH_BYTES for one in written) or number is None:
        what = f"has an impossible id or label for the sample {key!r:.80}"
        raise BrokenShardError(name, what, f"{id!r:.60} has the label {label!r:.60}; write the shard again")
    return written[0], image.offset_data, image.size, number, text


def _label(label: Any) -> tuple[int | None, bytes]:
    """Return a label as a number, or as -1 with a name; no number where it is neither."""
    if type(label) is int:
        return (label if abs(label) < 2**62 else None), b""
    if not isinstance(label, str) or _unwritable(label):
        return None, b""
    if NUMBER.fullmatch(label):
        return int(label), b""
    return -1, label.encode("utf-8", "surrogateescape")


def _unwritable(text: str) -> bool:
    """Return whether a text has half of a character, as JSON may: no file system takes it."""
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return True
    return False


def _text(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    return file.read(SMALL) if file is not None else b""


def _check_end(path: Path, offset: int) -> None:
    """Raise ReadError for a file that was cut between two members: tarfile accepts it without the final zeros."""
    with path.open("rb") as file:
        file.seek(offset)
        if file.read(tarfile.BLOCKSIZE) != b"\0" * tarfile.BLOCKSIZE:
            raise tarfile.ReadError("its end is missing")


def save_index(index: ShardIndex, shard: Path, target: Path) -> None:
    """Write an index, with the size and time of the shard that it belongs to."""
    stat = shard.stat()
    with atomic_file(target) as file:
        np.savez(
            file, version=VERSION, size=stat.st_size, time=stat.st_mtime_ns, ids=index.ids_N, offsets=index.offsets_N,
            sizes=index.sizes_N, labels=index.labels_N, names=index.names_N,
        )  # fmt: skip


def load_index(path: Path, size: int, time: int | None) -> ShardIndex | None:
    """Return the saved index of a shard of this size and time (None: any time); None without a valid one."""
    try:
        _check_unpacked(path)
        with np.load(path, allow_pickle=False) as saved:
            if int(saved["version"]) != VERSION or int(saved["size"]) != size:
                return None
            if time is not None and int(saved["time"]) != time:
                return None
            index = ShardIndex(*(saved[name] for name in ("ids", "offsets", "sizes", "labels", "names")))
    except Exception:  # broken or missing: it is built again
        return None
    return index if _is_sound(index, size) else None


def _check_unpacked(path: Path) -> None:
    """Raise ValueError for an index that would take too much memory; the archive says how much, and numpy obeys."""
    with open_regular(path) as file, zipfile.ZipFile(file) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > limit(INDEX_BYTES):
            raise ValueError(f"{path} is too large")


def _is_sound(index: ShardIndex, size: int) -> bool:
    """Return whether an index, which may come with the shard, is one of a shard of this size in bytes."""
    names = (index.ids_N, index.names_N)
    numbers = (index.offsets_N, index.sizes_N, index.labels_N)
    if any(array.dtype.kind != "S" for array in names) or any(array.dtype.kind != "i" for array in numbers):
        return False
    if any(array.shape != (len(index),) for array in (*names, *numbers)):
        return False
    if not len(index):
        return True
    ends_N = index.offsets_N + index.sizes_N
    return bool(
        (index.offsets_N >= 0).all() and (index.sizes_N >= 0).all() and (index.sizes_N <= size).all()
        and (index.offsets_N <= size).all() and int(ends_N.max()) <= size
    )  # fmt: skip


def local_index(shard: Path, kept: Path | None = None) -> ShardIndex:
    """Return the index of a shard on disk: the stored one if it fits, else a new one, which is stored.

    Args:
        kept: where it is stored; None: next to the shard, or in the cache where that fails.

    Raises:
        BrokenShardError: see `index_shard`.
    """
    stat = shard.stat()
    key = sha256(str(real_path(shard)).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    places = [kept] if kept else [shard.parent / FOLDER / f"{shard.name}.npz"]
    if not kept:
        with suppress(OSError):  # there is no cache
            places.append(cache_folder() / "indices" / f"{key}.npz")
    for place in places:
        if (index := load_index(place, stat.st_size, stat.st_mtime_ns)) is not None:
            return index
    index = index_shard(shard, str(shard))
    for place in places:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            save_index(index, shard, place)
            break
        except OSError:  # a folder that cannot be written; then the next, or once more at the next start
            continue
    return index
