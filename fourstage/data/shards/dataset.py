"""WebDataset tar shards as a data set, from disk or from any address that fsspec opens. N samples, S shards.

Nothing is streamed through a buffer: an index knows where each image is, so a sample is read by its number, and the
loader's order decides when a shard is needed.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from fourstage.data.findings import Finding
from fourstage.data.images import LARGEST_FILE
from fourstage.data.labels.imagefolder import is_imagefolder
from fourstage.data.labels.listing import (
    Listed,
    Listing,
    empty_classes,
    hold_out,
    label_problems,
    numbered_classes,
)
from fourstage.data.limits import TEXT_BYTES, check_classes, class_lines, read_class_file
from fourstage.data.sample import BadImage, NoSplitError, Progress, Split
from fourstage.data.shards.cache import ShardCache, filesystem
from fourstage.data.shards.index import BrokenShardError, ShardIndex, local_index
from fourstage.data.splits import SPLIT_NAMES
from fourstage.data.walk import subfolders
from fourstage.documents import read_json
from fourstage.files import is_address, limit, read_at

STATE = "shards.json"  # where `fourstage data shard` keeps its state
MOST = 1_000_000  # shards that one pattern may name
DEPTH = 32  # braces of a pattern


@dataclass(frozen=True)
class ShardSet:
    """The shards of each split, by path or address, in the order of their names."""

    folder: str  # where they and classes.txt are
    shards: dict[Split, tuple[str, ...]]
    note: str = ""


def is_shards(root: Path) -> bool:
    """Whether `root` is a folder of tar files; archives whose class folders are unpacked in it do not count."""
    if not _local_tars(root):
        return False
    names = [name for of_split in SPLIT_NAMES.values() for name in of_split]
    folders = [root / name for name in subfolders(root) if name.lower() in names]
    return not (any(map(subfolders, folders)) if folders else is_imagefolder(root))


def is_pattern(data: str | Path) -> bool:
    """Whether `data` names shards one by one: an address, a tar file, or braces such as train-{000..007}.tar."""
    return is_address(data) or (str(data).endswith(".tar") and not Path(data).is_dir())


def expand(pattern: str) -> list[str]:
    """Expand braces as a shell does: `a-{08..10}.tar` and `{train,val}-{0..3}.tar`, also inside each other.

    Raises:
        ValueError: an unmatched brace, or far too many names.
    """
    found = list(islice(_expand(pattern), MOST + 1))
    if len(found) > MOST:
        raise ValueError(f"{pattern:.80} names more than {MOST:,} shards; name fewer")
    return found


def _expand(pattern: str, depth: int = 0) -> Iterator[str]:
    start = pattern.find("{")
    if start < 0 and "}" not in pattern:
        yield pattern
        return
    words = _alternatives(pattern, start) if start >= 0 and depth < DEPTH else None
    if words is None:
        raise ValueError(f"{pattern:.80} has an unmatched brace, or too many; write for example train-{{000..007}}.tar")
    head, tail = pattern[:start], pattern[start + len(",".join(words)) + 2 :]
    span = re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})", words[0]) if len(words) == 1 else None
    if span is not None:
        first, last, width = int(span[1]), int(span[2]), len(span[1]) if span[1].startswith("0") else 0
        if not 0 <= last - first < MOST:
            raise ValueError(f"{{{words[0]}}} must rise, and name at most {MOST:,} shards")
        words = [f"{number:0{width}d}" for number in range(first, last + 1)]
    for word in words:
        yield from _expand(f"{head}{word}{tail}", depth + 1)


def _alternatives(pattern: str, start: int) -> list[str] | None:
    """Return the content of the brace at `start`, split at its own commas; None where it is never closed."""
    depth, words = 0, [""]
    for letter in pattern[start:]:
        depth += (letter == "{") - (letter == "}")
        if depth == 0:
            return words
        if letter == "," and depth == 1:
            words.append("")
        elif depth > 1 or letter != "{":
            words[-1] += letter
    return None


def find_shards(data: str | Path) -> ShardSet:
    """Return the shards of a folder, an address of a folder, or a pattern.

    Split by their names: those with `train` in the name of file or folder train, those with `val`, `valid`,
    `validation` or else `test` validate. Where no name says so, all of them are the training split.

    Raises:
        ValueError: there are none.
    """
    text = str(data)
    if text.endswith(".tar"):
        found, folder = _expanded(text), text.partition("{")[0].rpartition("/")[0]
    elif is_address(text):
        folder = text.rstrip("/")
        found = _remote_tars(folder)
    else:
        folder, found = text, _local_tars(Path(text))
    if not found:
        raise ValueError(
            f"{text} holds no .tar files; name the folder of the shards, or a pattern as train-{{000..007}}.tar"
        )
    of: dict[str, list[str]] = {}
    for path in found:
        of.setdefault(_split_of(path), []).append(path)
    train = of.get("train", [] if of.keys() - {""} else of.get("", []))
    val = next((name for name in SPLIT_NAMES["val"] if name in of), "")
    note = f"{folder} has no shards called val: those called test are used for validation" if val == "test" else ""
    return ShardSet(folder, {"train": tuple(train), "val": tuple(of[val]) if val else ()}, note)


def _expanded(pattern: str) -> list[str]:
    found = expand(pattern)
    if not is_address(pattern) and (lacking := [path for path in found if not Path(path).is_file()]):
        raise ValueError(
            f"there is no {lacking[0]} ({len(lacking):,} of the {len(found):,} shards named are not there)"
        )
    return found


def _local_tars(root: Path) -> list[str]:
    below = [name for names in SPLIT_NAMES.values() for name in names]
    folders = [root, *(root / name for name in (subfolders(root) if root.is_dir() else ()) if name.lower() in below)]
    return sorted(str(p) for folder in folders for p in folder.glob("*.tar") if not p.name.startswith("."))


def _remote_tars(folder: str) -> list[str]:
    system, path = filesystem(folder)
    try:
        found = [one for below in ("", "*/") for one in system.glob(f"{path.rstrip('/')}/{below}*.tar")]
    except Exception as error:  # each storage has errors of its own
        raise ValueError(f"{folder} cannot be listed ({error}); check the address and the access") from error
    return sorted(system.unstrip_protocol(one) for one in found)


def _split_of(path: str) -> str:
    """Return the split that a path names: "train", a name of the validation split, or nothing."""
    for name in reversed(re.split(r"[/\\]", path)[-2:]):
        words = re.findall(r"[a-z]+", name.lower())
        for split, split_names in SPLIT_NAMES.items():
            if hit := next((word for word in split_names if word in words), None):
                return "train" if split == "train" else hit
    return ""


class TarStore:
    """Images inside shards. `files_N` has the shard of each one."""

    def __init__(self, shards: Sequence[str], indices: Sequence[ShardIndex], cache: ShardCache | None) -> None:
        self.shards, self.cache = tuple(shards), cache
        self.files_N = np.repeat(np.arange(len(indices)), [len(index) for index in indices])
        self.ids_N = _joined([index.ids_N for index in indices], np.dtype(bytes))
        self.offsets_N, self.sizes_N = (
            _joined([getattr(index, name) for index in indices], np.dtype(np.int64))
            for name in ("offsets_N", "sizes_N")
        )

    def id(self, row: int) -> str:
        return os.fsdecode(self.ids_N[row])

    def where(self, row: int) -> str:
        return f"{self.shards[self.files_N[row]]}/{self.id(row)}"

    def read(self, row: int) -> bytes:
        shard, size = self.shards[self.files_N[row]], int(self.sizes_N[row])
        if size > limit(LARGEST_FILE):
            raise BadImage(self.where(row), f"it has {size:,} bytes, more than the {limit(LARGEST_FILE):,} allowed")
        try:
            path = self.cache.fetch(shard) if self.cache is not None else Path(shard)
            try:
                data = read_at(path, int(self.offsets_N[row]), size)
            except FileNotFoundError:
                if self.cache is None:
                    raise
                data = read_at(self.cache.fetch(shard), int(self.offsets_N[row]), size)  # it was evicted just now
        except OSError as error:
            raise BadImage(self.where(row), str(error.strerror or error).lower()) from error
        if len(data) != size:
            raise BadImage(self.where(row), "the shard was cut off; fetch or write it again")
        return data


def _joined(arrays: Sequence[np.ndarray], dtype: np.dtype) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.empty(0, dtype=dtype)


def open_shards(data: str | Path, split: Split, progress: Progress | None = None) -> Listed:
    """Open one split of a folder, address or pattern of shards; see `survey_shards`."""
    return Listed(survey_shards(data, split, progress))


def survey_shards(data: str | Path, split: Split, progress: Progress | None = None) -> Listing:
    """Return the listing of one split of a folder, address or pattern of shards.

    Args:
        progress: called with (shards indexed, shards in all).

    Raises:
        ValueError: no shards, or shards that are not written to the end. What is wrong inside one is a problem.
    """
    found = find_shards(data)
    _check_finished(found.folder)
    train, val = list(found.shards["train"]), list(found.shards["val"])
    own = val if split == "val" and val else train
    if not own:
        raise NoSplitError(f"{data} has no shards called {split}-*.tar; use it for evaluation only")
    cache = ShardCache() if is_address(own[0]) else None
    classes = _classes(found.folder)
    others = train if classes is None and own is val else ()  # the training shards say what the classes are
    indices, problems = _indices((*own, *others), cache, progress or (lambda done, total: None))
    first = [index for index in (indices[len(own) :] if others else indices) if index is not None]
    classes = _named(first, str(data)) if classes is None else classes
    usable = [(shard, index) for shard, index in zip(own, indices[: len(own)], strict=True) if index is not None]
    store = TarStore([shard for shard, _ in usable], [index for _, index in usable], cache)
    labels_N = _joined([_numbers(index, classes) for _, index in usable], np.dtype(np.int64))
    source = str(data) if len(own) > 1 else own[0]
    if not problems:  # else some images are not known
        problems += label_problems(source, labels_N, classes)
        problems += empty_classes(source, labels_N, classes) if split == "train" else []
    listing = Listing(
        source,
        classes,
        labels_N,
        store,
        np.arange(len(labels_N)),
        problems,
        (),
        store.files_N,
        found.note * (own is val),
    )
    return hold_out(listing, split) if not val else listing


def _indices(
    shards: Sequence[str], cache: ShardCache | None, progress: Progress
) -> tuple[list[ShardIndex | None], list[Finding]]:
    indices: list[ShardIndex | None] = []
    problems: list[Finding] = []
    for shard in shards:
        try:
            indices.append(local_index(Path(shard)) if cache is None else cache.index(shard))
        except BrokenShardError as error:
            problems.append(error.finding)
            indices.append(None)
        progress(len(indices), len(shards))
    return indices, problems


def _check_finished(folder: str) -> None:
    """Raise ValueError where `fourstage data shard` was interrupted."""
    path = Path(folder) / STATE
    if is_address(folder) or not path.is_file():
        return
    try:
        finished = read_json(path, most_bytes=TEXT_BYTES)["finished"]
    except (ValueError, KeyError, TypeError):
        return
    if not finished:
        raise ValueError(f"{folder} is incomplete: repeat the same `fourstage data shard`, which continues")


def _classes(folder: str) -> tuple[str, ...] | None:
    """Return the lines of `classes.txt` next to the shards."""
    if not is_address(folder):
        path = Path(folder) / "classes.txt"
        return read_class_file(path) if path.is_file() else None
    system, path = filesystem(f"{folder}/classes.txt")
    try:
        text = system.cat_file(path)
    except Exception:  # each storage has errors of its own; mostly there is no such file
        return None
    return class_lines(text, f"{folder}/classes.txt")


def _named(indices: Sequence[ShardIndex], source: str) -> tuple[str, ...]:
    """Return the names that the labels are, else numbers. Raises ValueError for more than data may have."""
    names = {bytes(name) for index in indices for name in np.unique(index.names_N)} - {b""}
    if names:
        check_classes(len(names), source)
        return tuple(sorted(os.fsdecode(name) for name in names))
    count = 1 + max((int(index.labels_N.max()) for index in indices if len(index)), default=-1)
    return numbered_classes(count, source)


def _numbers(index: ShardIndex, classes: tuple[str, ...]) -> np.ndarray:
    if not (index.names_N != b"").any():
        return index.labels_N
    label = {os.fsencode(name): i for i, name in enumerate(classes)}
    named = [label.get(bytes(name), -1) for name in index.names_N]
    return np.where(index.names_N != b"", np.array(named, dtype=np.int64), index.labels_N)
