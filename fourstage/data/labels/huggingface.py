"""Folders of Hugging Face's `datasets`, read by pyarrow alone: what `save_to_disk` writes, and parquet files. N images.

    dataset_dict.json  train/state.json  train/data-00000-of-00002.arrow  validation/...       save_to_disk
    data/train-00000-of-00002.parquet  data/validation-00000-of-00001.parquet                  the hub's layout

Parquet can only be read in large chunks, so its images are copied once to Arrow files in the cache, as `datasets` does.
"""

import reprlib
import struct
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from fourstage.data.findings import Finding
from fourstage.data.images import read_stored
from fourstage.data.labels.listing import Listing, empty_classes, hold_out, label_problems, numbered_classes
from fourstage.data.limits import as_name, check_classes, check_inside
from fourstage.data.mapped_classes import KnownClasses, match_names
from fourstage.data.sample import BadImage, NoSplitError, Split
from fourstage.data.splits import SPLIT_NAMES
from fourstage.documents import parse_json, read_json
from fourstage.extras import install
from fourstage.files import (
    RAISE,
    atomic_file,
    cache_error,
    cache_folder,
    limit,
    make_cache_folder,
    open_regular,
    real_path,
)
from fourstage.resources import is_disk_full

DICTIONARY = 2  # the type of a message
ROWS = 100_000_000  # of a parquet file
LONGEST = 1000  # characters of the name of a class
IMAGES = ("image", "img", "jpg", "png", "webp")  # usual names of columns, where the file does not say what they hold
LABELS = ("label", "labels", "fine_label", "cls", "class")


def is_huggingface(root: Path) -> bool:
    return (
        (root / "dataset_dict.json").is_file()
        or ((root / "state.json").is_file() and (root / "dataset_info.json").is_file())
        or bool(_parquet(root))
    )


def survey_huggingface(root: Path, split: Split) -> Listing:
    """Return the listing of one split. A tenth is held out of a single table, or of a training table alone.

    Raises:
        NoSplitError: no table for this split.
        ValueError: a file is damaged.
    """
    found = _files(root)
    names = {s: next((name for name in SPLIT_NAMES[s] if name in found), None) for s in ("train", "val")}
    if names["train"] is None and len(found) == 1:  # a single table, whatever it is called
        names = {"train": next(iter(found)), "val": None}
    if names["train"] is None and (split == "train" or names["val"] is None):
        raise NoSplitError(
            f"{root} has the splits {', '.join(found) or 'none'} but no train; use it for evaluation only"
        )
    own = Tables(found[names[split] or names["train"] or ""], names[split] or names["train"] or "train", root)
    first = own if names["train"] in (None, own.name) else Tables(found[names["train"]], names["train"] or "", root)
    classes = first.classes()
    source = f"{root} ({own.name})"
    labels_N = own.labels(classes) if own is first else _in_classes(own, first, source)
    problems = label_problems(source, labels_N, classes)
    if split == "train":
        problems += empty_classes(source, labels_N, classes)
    listing = Listing(source, classes, labels_N, own, np.arange(len(labels_N)), problems)
    if names["val"] is None:
        return hold_out(listing, split)
    if split == "val" and names["val"] == "test":
        what, do = "has no split called validation", "test is used for validation"
        listing.problems.append(Finding("note", "split", str(root), what, do))
    return listing


def _in_classes(own: "Tables", first: "Tables", source: str) -> np.ndarray:
    """Return the labels of a split in the classes of the training split, by name where both tables name theirs."""
    classes, names = first.classes(), own.classes()
    if names == classes or not own.has_names or not first.has_names:
        return own.labels(classes)
    labels_N = own.labels(names)
    inside_N = (labels_N >= 0) & (labels_N < len(names))
    used = set(np.unique(labels_N[inside_N]).tolist())
    table_C = match_names(names, source, KnownClasses(classes, "the training split"), used)
    labels_N[inside_N] = table_C[labels_N[inside_N]]
    return labels_N


def _parquet(root: Path) -> list[Path]:
    return sorted(path for below in ("", "data/", "*/") for path in root.glob(f"{below}*.parquet") if path.is_file())


def _files(root: Path) -> dict[str, list[Path]]:
    """Return the files of each split, by its name."""
    if (root / "dataset_dict.json").is_file():
        path = root / "dataset_dict.json"
        names = [_name(name, path) for name in _json(path, "splits")]
        check_inside(root, (root / name for name in names), path)
        return {name: _arrow_files(root / name, root) for name in names}
    if (root / "state.json").is_file():
        return {"train": _arrow_files(root, root)}
    found: dict[str, list[Path]] = {}
    for path in dict.fromkeys(_parquet(root)):
        prefix = path.name.removesuffix(".parquet").split("-")[0]
        known = [name for names in SPLIT_NAMES.values() for name in names]
        name = prefix if prefix in known or path.parent in (root, root / "data") else path.parent.name
        found.setdefault(name, []).append(path)
    return found


def _arrow_files(folder: Path, root: Path) -> list[Path]:
    path = folder / "state.json"
    entries = _json(path, "_data_files")
    if not all(isinstance(entry, dict) and "filename" in entry for entry in entries):
        raise ValueError(f"{path} names no data files; save the data set again")
    files = [folder / _name(entry["filename"], path) for entry in entries]
    check_inside(root, files, path)
    return files


def _name(value: Any, path: Path) -> str:
    try:
        return as_name(value)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; save the data set again") from error


def _json(path: Path, key: str) -> list[Any]:
    """Return the list under `key`. Raises ValueError where the file does not have it."""
    try:
        content = read_json(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); save the data set again") from error
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); save the data set again") from error
    found = content.get(key) if isinstance(content, dict) else None
    if not isinstance(found, list):
        raise ValueError(f"{path} has no list {key!r}; save the data set again")
    return found


class Tables:
    """The rows of one split, over several files, as a store of images.

    Raises:
        ValueError: there are no files, or one is damaged.
    """

    def __init__(self, files: Sequence[Path], name: str, root: Path) -> None:
        self.root = root
        self.files, self.name = [_as_arrow(path) if path.suffix == ".parquet" else path for path in files], name
        self._named = [str(path) for path in files]
        self._open: dict[int, Any] = {}
        if not files:
            raise ValueError(f"the split {name!r} has no files; save the data set again")
        counts = [self._table(i).num_rows for i in range(len(self.files))]
        self.starts_F = np.cumsum([0, *counts])
        self.schema = self._table(0).schema
        self.features = _features(self.schema)
        self.image = self._column("Image", IMAGES)
        self.label = self._column("ClassLabel", LABELS)
        for file, path in enumerate(self._named):
            for column in (self.image, self.label):
                if (count := self._table(file).schema.names.count(column)) != 1:
                    raise ValueError(
                        f"{path} has {count or 'no'} columns {column!r}, and each file of a split needs one; save the "
                        f"data set again"
                    )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # each process opens the files itself

    def _table(self, file: int) -> Any:
        if file not in self._open:
            self._open[file] = _open_arrow(self.files[file])
        return self._open[file]

    def _column(self, feature: str, usual: tuple[str, ...]) -> str:
        of_type = [name for name, one in self.features.items() if isinstance(one, dict) and one.get("_type") == feature]
        known = [name for name in usual if name in of_type] or of_type
        known = known or [name for name in usual if name in self.schema.names]
        if not known:
            what = "images" if feature == "Image" else "labels"
            raise ValueError(
                f"{self._named[0]} has no column of {what}, only {', '.join(self.schema.names)}; call one of them "
                f"{usual[0]!r}"
            )
        return known[0]

    @property
    def has_names(self) -> bool:
        """Whether the file names the classes of its numbers."""
        feature = self.features.get(self.label)
        return isinstance(feature, dict) and isinstance(feature.get("names"), list)

    def classes(self) -> tuple[str, ...]:
        """Return the names that the file gives, else the texts in the column, else numbers."""
        feature, source = self.features.get(self.label), self._named[0]
        if isinstance(feature, dict) and isinstance(feature.get("names"), list):
            check_classes(len(feature["names"]), source)
            return tuple(f"{name!s:.1000}" for name in feature["names"])
        values = self._labels()
        if any(isinstance(value, str) for value in values):
            names = {value for value in values if isinstance(value, str)}
            check_classes(len(names), source)
            return tuple(sorted(names))
        return numbered_classes(1 + max((value for value in values if isinstance(value, int)), default=-1), source)

    def labels(self, classes: tuple[str, ...]) -> np.ndarray:
        """Return (N,) int64 labels; -1 where there is none."""
        position = {name: i for i, name in enumerate(classes)}
        values = self._labels()
        return np.array(
            [position.get(v, -1) if isinstance(v, str) else -1 if v is None else v for v in values], dtype=np.int64
        )

    def _labels(self) -> list[int | str | None]:
        """Return the labels as they are. Raises ValueError where they are neither integers nor names."""
        values: list[Any] = []
        for file in range(len(self.files)):
            values += self._table(file)[self.label].to_pylist()
        values = [int(v) if isinstance(v, float) and v.is_integer() and abs(v) < 2**62 else v for v in values]
        for row, value in enumerate(values):
            number, name = type(value) is int and abs(value) < 2**62, isinstance(value, str) and len(value) <= LONGEST
            if not (value is None or number or name):
                raise ValueError(
                    f"{self._named[0]} has the label {reprlib.repr(value)} in row {row:,}; a label is an integer or a "
                    "name; save the data set again"
                )
        return values

    def id(self, row: int) -> str:
        return f"{self.name}/{row:08d}"

    def where(self, row: int) -> str:
        file = int(np.searchsorted(self.starts_F, row, side="right")) - 1
        return f"{self._named[file]}/row {row - int(self.starts_F[file])}"

    def read(self, row: int) -> bytes:
        file = int(np.searchsorted(self.starts_F, row, side="right")) - 1
        value = self._table(file)[self.image][row - int(self.starts_F[file])].as_py()
        data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
        if isinstance(data, bytes):
            return data
        if isinstance(path, str) and path and not isinstance(data, bytes):
            return self._file(path, row)
        raise BadImage(self.where(row), "the row holds no image")

    def _file(self, name: str, row: int) -> bytes:
        """Return the bytes of a file that a row names."""
        path = self.root / name
        try:
            check_inside(self.root, [path], "it")
            if not path.is_file():
                raise ValueError(f"its bytes are not in the table, and there is no file {name:.200}")
        except ValueError as error:
            raise BadImage(self.where(row), str(error)) from error
        return read_stored(path)


def _features(schema: Any) -> dict[str, Any]:
    """Return what `datasets` stores about the columns."""
    try:
        found = parse_json((schema.metadata or {}).get(b"huggingface", b"{}"), "the table")["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def _arrow() -> Any:
    try:
        import pyarrow as pa
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(f"Arrow and parquet files need pyarrow: {install('data')}") from error
    return pa


def _open_arrow(path: Path) -> Any:
    """Return a table over the file, whose pages the system reads when they are needed."""
    pa = _arrow()
    try:
        open_regular(path).close()  # else a named pipe would be waited for
        _check_uncompressed(pa, path)
        table = pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
        table.validate(full=True)  # places in a damaged file may lead out of it
        return table
    except (pa.ArrowException, OSError, KeyError, IndexError) as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else str(error).strip().rstrip(".")
        raise ValueError(f"{path} is not a complete Arrow file ({reason:.200}); save the data set again") from error


def _check_uncompressed(pa: Any, path: Path) -> None:
    """Raise ValueError for compressed tables, which a few bytes can make of any size; `datasets` writes none."""
    for message in pa.ipc.MessageReader.open_stream(pa.memory_map(str(path))):
        try:
            compressed = message.type in ("record batch", "dictionary") and _is_compressed(bytes(message.metadata))
        except struct.error as error:
            raise ValueError(f"{path} is damaged: a table has no head; save the data set again") from error
        if compressed:
            raise ValueError(f"{path} holds compressed tables; save the data set again with save_to_disk")


def _is_compressed(head: bytes) -> bool:
    """Return whether the head of a table, a flatbuffer, has its fourth field, which names a compression.

    See Message and RecordBatch in https://github.com/apache/arrow/blob/main/format/Message.fbs.
    """
    message = _uint32(head, 0)
    place = _field(head, message, 2)
    if place is None:
        return False
    batch = place + _uint32(head, place)
    if head[_field(head, message, 1) or 0] == DICTIONARY:  # around a table
        place = _field(head, batch, 1) or 0
        batch = place + _uint32(head, place)
    return _field(head, batch, 3) is not None


def _field(data: bytes, table: int, number: int) -> int | None:
    """Return the place of a field of a table in a flatbuffer; None where the table lacks it."""
    fields = table - struct.unpack_from("<i", data, table)[0]
    if 4 + 2 * number >= struct.unpack_from("<H", data, fields)[0]:
        return None
    offset = struct.unpack_from("<H", data, fields + 4 + 2 * number)[0]
    return table + offset if offset else None


def _uint32(data: bytes, place: int) -> int:
    return struct.unpack_from("<I", data, place)[0]


def _as_arrow(path: Path) -> Path:
    """Return the path of an Arrow file in the cache with the content of a parquet file; it is written on first use."""
    pa = _arrow()
    stat = path.stat()
    key = sha256(f"{real_path(path)} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:16]
    target = cache_folder() / "parquet" / f"{path.stem}-{key}.arrow"
    if not target.is_file():
        make_cache_folder(target.parent)
        try:
            with (
                pa.parquet.ParquetFile(path) as source,
                atomic_file(target) as out,
                pa.ipc.new_stream(out, source.schema_arrow) as writer,
            ):
                _check_unpacked(source.metadata, stat.st_size, path)
                for batch in source.iter_batches(batch_size=32):
                    writer.write_batch(batch)
                    if out.tell() > _most(stat.st_size):
                        raise _too_much(path)
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and is_disk_full(error):  # of the cache, not of the file that is read
                raise cache_error(target, error) from None
            reason = str(error).strip().rstrip(".")
            raise ValueError(f"{path} is not a complete parquet file ({reason:.200}); download it again") from error
    return target


def _check_unpacked(metadata: Any, size: int, path: Path) -> None:
    """Raise ValueError for a parquet file that says that it unpacks to far more than its size in bytes."""
    groups = range(metadata.num_row_groups)
    if metadata.num_rows > limit(ROWS) or sum(metadata.row_group(i).total_byte_size for i in groups) > _most(size):
        raise _too_much(path)


def _most(size: int) -> int:
    """Return how many bytes a parquet file of a size may unpack to: images are compressed already."""
    return limit(2**27 + 20 * size)


def _too_much(path: Path) -> ValueError:
    return ValueError(f"{path} unpacks to far more than its own size, as no table of images does; {RAISE}")
