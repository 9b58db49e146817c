"""Read checkpoints without running their code: the file's format, and the weights in it.

What a pickle may name and build is decided in `unpickle.py`.
"""

import io
import mmap
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from fourstage.checksums import ENTRY, is_intact, is_intact_safetensors
from fourstage.files import RAISE, is_hub_name, kind_of, limit, open_regular
from fourstage.weights.reading.hub import fetch
from fourstage.weights.reading.metadata import classes_of
from fourstage.weights.reading.shards import INDEX_ENDING, find_weights, read_shards
from fourstage.weights.reading.unpickle import (
    PICKLE_BYTES,
    Foreign,
    Machine,
    RefusedError,
    UnreadableError,
    check_depth,
)

__all__ = ["Checkpoint", "Foreign", "read_checkpoint"]

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of torch's format before 1.6 (torch/serialization.py)
WRAPPERS = {
    "model": ("model", "state_dict", "model_state_dict", "module"),  # the last is DeepSpeed's
    "ema": ("model_ema", "state_dict_ema", "ema_state_dict", "ema", "ema_model", "ema_state"),
}
TWINS = ("teacher", "student")  # of self-distillation, beside each other
COUNTERS = {"steps", "n_averaged"}  # mmengine's and torch's AveragedModel keep one beside the weights
ARRAYS = {np.dtype(f"{kind}{size}") for kind, sizes in {"f": (2, 4, 8), "i": (1, 2, 4, 8)}.items() for size in sizes}
ARRAYS |= {np.dtype("u1"), np.dtype("?")}  # numpy arrays of these are read as weights
ARCHIVES = ((b"\x1f\x8b", 0, "gzip"), (b"ustar", 257, "tar"), (b"7z\xbc\xaf", 0, "7z"), (b"\x89HDF", 0, "HDF5"))
HEADER_BYTES = 16 * 2**20  # of a .safetensors file: about 200,000 tensors
DIRECTORY_BYTES = 16 * 2**20  # of a zip archive: about 200,000 entries
SPARSE = 2**30  # bytes; a larger file is not read where most of it is holes, which would become memory
LOCAL_HEADER = 30  # bytes before the name of a zip entry
AGAIN = "download or save it again"
DAMAGED_SUM = f"is damaged, its bytes do not have the sum that was written with them: {AGAIN}"
# What damaged bytes can raise, in our code and in the libraries below it.
BROKEN = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, EOFError, MemoryError, RuntimeError)
BROKEN += (struct.error, zipfile.BadZipFile)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A checkpoint's content, and its two sets of weights.

    Attributes:
        content: the top level: CPU tensors, plain containers (every mapping is a dict, every tensor detached),
            numbers, text, numpy arrays, and `Foreign` for objects of other classes.
        metadata: the text entries that a .safetensors file carries; empty for others.
    """

    path: Path
    content: dict[str, Any] = field(repr=False)
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def classes(self) -> list[str] | None:
        """Return the class names where the file has them.

        At the top, in `meta` (mmcv 1), in its `dataset_meta` (mmengine), in the metadata of what we converted.
        """
        meta = _mapping(self.content.get("meta"))
        inner = _mapping(meta.get("dataset_meta"))
        for found in (self.content.get("classes"), meta.get("CLASSES"), inner.get("classes"), inner.get("CLASSES")):
            if isinstance(found, list | tuple) and found and all(isinstance(name, str) for name in found):
                return list(found)
        return classes_of(self.metadata)

    def weights(self, which: str = "model") -> dict[str, Tensor]:
        """Return the state dict from the key that the writer used, without a `module.` before every name.

        Args:
            which: "model" is what the writer's own loader reads, "ema" the moving average of the weights.
                mmengine swaps the two when it saves: its `state_dict` holds the average, so it answers to both. So
                does the best checkpoint of a run whose average was the better one.
                mmcv 1 keeps copies inside the state dict, `ema_a_weight` beside `a.weight`: those are the average.

        Raises:
            ValueError: no such weights (the sentence lists what is there), or an entry that is not a named tensor.
        """
        if which not in WRAPPERS:
            raise ValueError(f"which={which!r} is not known: ask for which='model' or which='ema'")
        where, found = self._find(which)
        state: dict[str, Tensor] = {}
        for key, given in found.items():
            value = _as_tensor(given)
            if not isinstance(key, str) or not isinstance(value, Tensor):
                raise ValueError(
                    f"{self.path}: entry {_short(key)} of {where} is a {type(value).__name__}, but weights are named "
                    "tensors: remove it and save the file again"
                )
            # np.ascontiguousarray, which safetensors' numpy form needs, gives numbers a dimension
            lone = key.endswith("num_batches_tracked") and value.shape == (1,)
            state[key] = value[0] if lone else value
        copies = set(_averages(state).values())
        bare = {key: value for key, value in state.items() if key not in COUNTERS and key not in copies}
        if bare and all(key.startswith("module.") for key in bare):
            return {key.removeprefix("module."): value for key, value in bare.items()}
        return {key: value for key, value in state.items() if key not in copies}

    def _find(self, which: str) -> tuple[str, Mapping]:
        names = WRAPPERS[which]
        if which == "ema" and {"message_hub", "ema_state_dict"} <= self.content.keys():  # swapped
            names = ("state_dict",)
        elif which == "ema" and self.content.get("fourstage") == 1 and self.content.get("which") == "ema":
            names = ("model",)
        for name in names:
            found = self.content.get(name)
            if isinstance(found, Mapping):
                return repr(name), found
            if isinstance(found, Foreign):
                raise ValueError(
                    f"{self.path} holds a complete pickled {found.name} as {name!r}, not its weights: where it was "
                    "written, save its state_dict()"
                )
        held = ", ".join(_short(key) for key in list(self.content)[:12]) or "nothing"
        if which == "ema":
            where, state = self._find("model")
            if not (averages := _averages(state)):
                raise ValueError(f"{self.path} holds no EMA weights, only {held}: ask for which='model'")
            return where, {**state, **{key: state[copy] for key, copy in averages.items()}}
        if twins := {name: self.content[name] for name in TWINS if isinstance(self.content.get(name), Mapping)}:
            joined = {f"{name}.{key}": value for name, state in twins.items() for key, value in state.items()}
            return " and ".join(map(repr, twins)), joined
        if any(isinstance(_as_tensor(value), Tensor) for value in self.content.values()):
            return "the file", self.content
        raise ValueError(f"{self.path} holds no weights, only {held}: save {{'model': model.state_dict()}}")


def _as_tensor(value: object) -> object:
    """Return a numpy array of numbers as a tensor; anything else as it is."""
    if not isinstance(value, np.ndarray) or value.dtype.newbyteorder("=") not in ARRAYS:
        return value
    native = np.require(value, value.dtype.newbyteorder("="), ["C", "W"])  # which keeps arrays without dimensions
    return torch.from_numpy(native)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a .safetensors file, or what `torch.save` wrote (zip or the older format). None of its code is run.

    The bytes decide which it is, not the suffix. A folder stands for the weights in it under Hugging Face's names, the
    index of shards (`model.safetensors.index.json`) for all of its shards, and `hf-hub:user/name` for the checkpoint in
    a repository of Hugging Face's hub, which is fetched once.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: one sentence: no checkpoint (text, web page, git-lfs pointer, folder, TorchScript, ...), cut short,
            damaged, or refused because it names what is not admitted.
    """
    if not isinstance(path, str | os.PathLike):
        raise ValueError(f"a checkpoint is given by the path of its file; got {path!r:.80}")
    if is_hub_name(name := str(path)) and not Path(path).exists():
        path = fetch(name).path
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}: check the name, or download the checkpoint first")
    path = find_weights(path) if path.is_dir() else path
    if not path.is_file():
        what = kind_of(path.stat().st_mode)
        raise ValueError(f"{path} is a {what}, not a file: name the .pth, .pt or .safetensors file in it")
    if path.name.endswith(INDEX_ENDING):
        return Checkpoint(path, dict(read_shards(path, lambda shard: _read_file(shard).weights())))
    return _read_file(path)


def _read_file(path: Path) -> Checkpoint:
    try:
        with open_regular(path) as file:
            return Checkpoint(path, *_read(path, file))
    except RefusedError as error:
        raise ValueError(
            f"{path} was refused because it {error}, and a checkpoint may hold only tensors and plain containers; "
            "nothing in it was run, so ask its author for a plain state_dict or a .safetensors file"
        ) from None
    except UnreadableError as error:
        raise ValueError(f"{path} {error}") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): check the disk and the permissions") from error
    except BROKEN as error:
        raise ValueError(f"{path} ({path.stat().st_size:,} bytes) is damaged or no checkpoint: {AGAIN}") from error


# ---------------------------------------------------------------- formats of files


def _read(path: Path, file: IO[bytes]) -> tuple[dict, dict[str, str]]:
    head, size = file.read(4096), path.stat().st_size
    if not head:
        raise UnreadableError(f"is empty (0 bytes): {AGAIN}")
    blocks = getattr(os.fstat(file.fileno()), "st_blocks", size)  # of 512 bytes
    if size > limit(SPARSE) and blocks * 512 < size // 4:
        raise UnreadableError(f"is incomplete, most of its {size:,} bytes were never written: {AGAIN}")
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000:
        return _read_safetensors(path, size)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        content = _read_zip(file, size)
    else:
        _refuse_others(head)
        if path.suffix == ".safetensors":
            return _read_safetensors(path, size)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
            content = _read_legacy(stream, size, text=_is_text(head))
    if isinstance(content, Foreign):
        raise UnreadableError(f"holds a complete pickled {content.name}: where it was written, save its state_dict()")
    if not isinstance(content, dict):
        raise UnreadableError(f"holds a {type(content).__name__}, not a dictionary: save a model's state_dict()")
    check_depth(content)
    return content, {}


def _refuse_others(head: bytes) -> None:
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(b"version https://git-lfs"):
        raise UnreadableError("is a git-lfs pointer, not the file it stands for: run `git lfs pull` where it is from")
    if start.startswith((b"<!doctype html", b"<html", b"<?xml")):
        raise UnreadableError("is a web page, not a checkpoint: open the address in a browser, it may ask for a login")
    for magic, at, name in ARCHIVES:
        if head[at:].startswith(magic):
            raise UnreadableError(f"is a {name} archive, not a checkpoint: unpack it and name the file in it")


def _is_text(head: bytes) -> bool:
    text = head.decode(errors="ignore")  # which drops what is not text, and a last character that is cut
    return len(text.encode()) > len(head) - 4 and all(c.isprintable() or c in "\t\r\n\f\ufeff" for c in text)


def _read_safetensors(path: Path, size: int) -> tuple[dict, dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    with open_regular(path) as file:
        header = int.from_bytes(file.read(8), "little")
        if limit(HEADER_BYTES) < header <= size:
            raise UnreadableError(
                f"has a header of {header:,} bytes, and at most {limit(HEADER_BYTES):,} are read; {RAISE}"
            )
        if header <= size and is_intact_safetensors(file, header) is False:
            raise UnreadableError(DAMAGED_SUM)
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            metadata = {key: value for key, value in (file.metadata() or {}).items() if key != ENTRY}
            return {name: file.get_tensor(name) for name in names}, metadata
    except SafetensorError as error:
        raise UnreadableError(f"({size:,} bytes) is not a complete .safetensors file ({error}): {AGAIN}") from None


def _read_zip(file: IO[bytes], size: int) -> Any:
    intact = is_intact(file)
    if intact is False:
        raise UnreadableError(DAMAGED_SUM)
    guarded = _Guarded(file, limit(DIRECTORY_BYTES))
    try:
        archive = zipfile.ZipFile(guarded)  # pyright: ignore[reportArgumentType] - all that it uses of a file
    except zipfile.BadZipFile:
        raise UnreadableError(f"is incomplete ({size:,} bytes, its end is missing): {AGAIN}") from None
    guarded.most = size
    entries = {entry.filename: entry for entry in archive.infolist()}
    root = _zip_root(list(entries))
    if sum(entry.file_size for entry in entries.values()) > size or len(entries) != len(archive.infolist()):
        raise UnreadableError(f"is damaged, entries of its zip archive overlap or repeat: {AGAIN}")
    _check_layout(archive.infolist(), size)
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
        raise UnreadableError("is a compressed zip archive, which torch.save does not write: save it with torch.save")
    if f"{root}byteorder" in entries and archive.read(f"{root}byteorder") == b"big":
        raise UnreadableError("is in big-endian byte order: save it again on a little-endian machine")

    def fill(key: str, memory: Tensor) -> None:
        entry = entries[f"{root}data/{key}"]
        if entry.file_size != len(memory):
            raise UnreadableError(f"is damaged, storage {_short(key)} is not of the size it should have: {AGAIN}")
        _read_entry(file, entry, memory.numpy())
        if intact is None and zlib.crc32(memory.numpy().data) != entry.CRC:
            raise UnreadableError(f"is damaged, the checksum of storage {_short(key)} does not match: {AGAIN}")

    if (length := entries[f"{root}data.pkl"].file_size) > limit(PICKLE_BYTES):
        raise UnreadableError(
            f"has {length:,} bytes beside its tensors, and at most {limit(PICKLE_BYTES):,} are read; {RAISE}"
        )
    return Machine(size, fill).run(io.BytesIO(archive.read(f"{root}data.pkl")))


class _Guarded:
    """A file for `zipfile`, which reads the directory of an archive at once, whatever its size."""

    def __init__(self, file: IO[bytes], most: int) -> None:
        self._file, self.most = file, most
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        if size > self.most:
            raise UnreadableError(f"has a zip directory of {size:,} bytes, and at most {self.most:,} are read; {RAISE}")
        return self._file.read(size)


def _check_layout(entries: Sequence[zipfile.ZipInfo], size: int) -> None:
    """Raise unless the entries of an archive follow each other without overlap."""
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        if entry.header_offset < end or entry.compress_size != entry.file_size:
            raise UnreadableError(f"is damaged, entries of its zip archive overlap or repeat: {AGAIN}")
        end = entry.header_offset + LOCAL_HEADER + len(entry.orig_filename) + entry.file_size
    if end > size:
        raise UnreadableError(f"is incomplete ({size:,} bytes, {end:,} are named): download it again")


def _read_entry(file: IO[bytes], entry: zipfile.ZipInfo, memory: np.ndarray) -> None:
    """Read the bytes of a stored entry into memory, without the copies that `zipfile` makes."""
    file.seek(entry.header_offset)
    head = file.read(LOCAL_HEADER)
    if len(head) < LOCAL_HEADER or not head.startswith(b"PK\x03\x04"):
        raise UnreadableError(f"is damaged, an entry of its zip archive has no header: {AGAIN}")
    name, extra = struct.unpack("<HH", head[26:])
    file.seek(name + extra, os.SEEK_CUR)
    view = memory.data
    while view:
        count = file.readinto(view)  # pyright: ignore[reportAttributeAccessIssue] - IO[bytes] lacks it
        if not count:
            raise EOFError
        view = view[count:]


def _zip_root(names: list[str]) -> str:
    """Return the folder of `data.pkl` in the archive; its name differs between archives."""
    if any(re.match(r"[^/]+/(code/|constants\.pkl)", name) for name in names):
        raise UnreadableError("is a TorchScript archive, a program: where it was saved, save the model's state_dict()")
    roots = [name.removesuffix("data.pkl") for name in names if re.fullmatch(r"[^/]+/data\.pkl", name)]
    if len(roots) != 1:
        held = ", ".join(_short(name) for name in names[:5]) or "nothing"
        raise UnreadableError(f"is a zip archive but no checkpoint, it holds {held}: unpack it if one of these is")
    return roots[0]


def _read_legacy(stream: mmap.mmap, size: int, *, text: bool) -> Any:
    """Read five pickles (magic, version, machine, content, keys of the storages), then the storages."""
    head = io.BytesIO(stream[: limit(PICKLE_BYTES)])
    try:
        content, keys, machine = _read_pickles(head, size, text=text)
    except (EOFError, ValueError):  # the latter for a text that is cut
        if head.tell() == head.getbuffer().nbytes < size:
            raise UnreadableError(f"has more than {limit(PICKLE_BYTES):,} bytes beside its tensors; {RAISE}") from None
        raise
    stream.seek(head.tell())
    for key in keys:
        _fill_legacy(stream, machine.storages[str(key)].memory, machine.storages[str(key)].itemsize)
    return content


def _read_pickles(stream: IO[bytes], size: int, *, text: bool) -> tuple[Any, list, Machine]:
    """Return the content, the keys of the storages that follow, and the machine that made these."""
    try:
        magic = Machine(size).run(stream)
    except (*BROKEN, UnreadableError):
        if text:
            raise UnreadableError("is text, not a checkpoint: name the .pth, .pt or .safetensors file") from None
        raise
    if type(magic) is not int or magic != LEGACY_MAGIC:
        raise UnreadableError("is a pickle that torch.save did not write: use torch.save(model.state_dict(), path)")
    Machine(size).run(stream)  # the version: always 1001
    if _mapping(Machine(size).run(stream)).get("little_endian") is False:
        raise UnreadableError("is in big-endian byte order: save it again on a little-endian machine")
    machine = Machine(size)
    content, keys = machine.run(stream), Machine(size).run(stream)
    if not isinstance(keys, list) or {str(key) for key in keys if isinstance(key, str | int)} != set(machine.storages):
        raise UnreadableError(f"is damaged, it does not hold the storages that it names: {AGAIN}")
    return content, keys, machine


def _fill_legacy(stream: mmap.mmap, memory: Tensor, itemsize: int) -> None:
    """Fill one storage: a count of elements as int64, then the bytes."""
    head, data = stream.read(8), stream.read(len(memory))
    if len(data) < len(memory) or len(head) < 8:
        raise UnreadableError(f"is incomplete ({stream.size():,} bytes, more are named): download it again")
    if struct.unpack("<q", head)[0] * itemsize != len(memory):
        raise UnreadableError(f"is damaged, a storage is not of the size it should have: {AGAIN}")
    memory.numpy()[:] = np.frombuffer(data, np.uint8)


# ---------------------------------------------------------------- helpers


def _mapping(value: Any) -> Mapping:
    return value if isinstance(value, Mapping) else {}


def _short(key: Any) -> str:
    """Return a key of an unknown file as short text, without control characters and without an object's repr."""
    return ascii(key[:60]) if isinstance(key, str) else f"<{type(key).__name__}>"


def _averages(state: Mapping) -> dict[str, str]:
    """Return parameter name -> name of its moving average in the same state dict, as mmcv 1 writes them."""
    copies = {key: "ema_" + key.replace(".", "_") for key in state if isinstance(key, str)}
    return {key: copy for key, copy in copies.items() if copy in state}
