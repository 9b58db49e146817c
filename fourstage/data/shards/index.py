"""The index of a WebDataset shard, built in one pass over it and stored next to it. N samples.

A shard is a tar file. Neighbouring members whose names agree up to the first dot of the file name are one sample:
`n01440764_18.jpg`, `n01440764_18.cls` (a number, or a class name), and perhaps `n01440764_18.json`.
"""

import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from fourstage.data.findings import Finding
from fourstage.data.images import EXTENSIONS
from fourstage.files import atomic_file, cache_folder

VERSION = 1  # raised when older indices must be built again
FOLDER = ".fourstage"  # in the folder of the shards
SMALL = 1 << 20  # bytes; labels and notes are not larger
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
        with tarfile.open(path, "r:") as archive:
            for key, members in _samples(archive):
                try:
                    rows.append(_row(archive, key, members, name, Path(name).name.removesuffix(".tar")))
                except BrokenShardError as error:
                    broken = broken or error
            _check_end(path, archive.offset)
    except (tarfile.TarError, EOFError) as error:
        what = f"is not a complete tar file ({error})"
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
        np.array(ids, dtype=bytes),
        *(np.array(values, dtype=np.int64) for values in (offsets, sizes, labels)),
        names_N=np.array(names, dtype=bytes),
    )


def _samples(archive: tarfile.TarFile) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """Neighbouring members with one key, by their ending."""
    key, members = "", dict[str, tarfile.TarInfo]()
    while (member := archive.next()) is not None:
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
        what = f"holds no image for the sample {key!r}, only {', '.join(members)}"
        raise BrokenShardError(name, what, "each sample needs one, such as KEY.jpg; write the shard again")
    image = members[ending]
    note: dict[str, Any] = {}
    if "json" in members:
        try:
            content = json.loads(_text(archive, members["json"]))
        except ValueError:
            content = None
        note = content if isinstance(content, dict) else {}
    said = next((_text(archive, members[one]) for one in LABELS if one in members), None)
    label = said.decode("utf-8", "surrogateescape").strip() if said is not None else note.get("label")
    if label is None or label == "":
        what = f"holds no label for the sample {key!r}"
        raise BrokenShardError(name, what, f"a member {key}.cls with the number of its class is needed")
    own = note.get("source_id")
    id = own if isinstance(own, str) else f"{stem}/{image.name}"
    try:
        number, text = int(label), b""
    except (ValueError, TypeError):
        number, text = -1, str(label).encode("utf-8", "surrogateescape")
    return id.encode("utf-8", "surrogateescape"), image.offset_data, image.size, number, text


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
        with np.load(path, allow_pickle=False) as saved:
            if int(saved["version"]) != VERSION or int(saved["size"]) != size:
                return None
            if time is not None and int(saved["time"]) != time:
                return None
            index = ShardIndex(*(saved[name] for name in ("ids", "offsets", "sizes", "labels", "names")))
    except Exception:  # broken or missing: it is built again
        return None
    fits = len(index) == 0 or int((index.offsets_N + index.sizes_N).max()) <= size
    return index if fits else None


def local_index(shard: Path, kept: Path | None = None) -> ShardIndex:
    """Return the index of a shard on disk: the stored one if it fits, else a new one, which is stored.

    Args:
        kept: where it is stored; None: next to the shard, or in the cache where that fails.

    Raises:
        BrokenShardError: see `index_shard`.
    """
    stat = shard.stat()
    key = sha256(str(shard.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    places = (
        [kept] if kept else [shard.parent / FOLDER / f"{shard.name}.npz", cache_folder() / "indices" / f"{key}.npz"]
    )
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
