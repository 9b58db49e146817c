"""CIFAR-10 and CIFAR-100 as their authors publish them, for Python or as binary files. N images of 32 x 32 pixels.

The Python files are pickles, which may hold any program. The unpickler here knows arrays of bytes and plain containers,
and nothing else.
"""

import pickle
import pickletools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from fourstage.data.limits import TEXT_BYTES, check_classes, text_lines
from fourstage.data.sample import Sample, Split
from fourstage.files import limit, read_bytes

SIDE = 32
PIXELS = 3 * SIDE * SIDE
BYTES = 2**28  # of a file; that of CIFAR-100's training images has 155 MB
STEPS = 2_000_000  # of a pickle; CIFAR's have some 200,000


@dataclass(frozen=True)
class Variant:
    """The files of CIFAR-10 or CIFAR-100."""

    folders: tuple[str, ...]  # of the unpacked archives: for Python, binary
    train: tuple[str, ...]
    test: tuple[str, ...]
    names: tuple[str, bytes]  # Python's file of class names, and the key in it
    binary_names: str  # the binary one
    labels: bytes  # the key of the labels in a Python batch
    head: int  # bytes before the pixels of a binary image; the last is the label


TEN = Variant(
    ("cifar-10-batches-py", "cifar-10-batches-bin"),
    tuple(f"data_batch_{i}" for i in range(1, 6)),
    ("test_batch",),
    ("batches.meta", b"label_names"),
    "batches.meta.txt",
    b"labels",
    1,
)
HUNDRED = Variant(
    ("cifar-100-python", "cifar-100-binary"),
    ("train",),
    ("test",),
    ("meta", b"fine_label_names"),
    "fine_label_names.txt",
    b"fine_labels",
    2,
)


class Cifar:
    """One split of CIFAR; the test images are the validation split. Ids are the file and the image's place in it.

    Raises:
        ValueError: a file is missing, was cut off, or is not what CIFAR's authors wrote.
    """

    truths = ("label",)

    def __init__(self, root: str | Path, split: Split) -> None:
        folder, variant, binary = _find(Path(root))
        self.classes = _classes(folder, variant, binary)
        read = _read_binary if binary else _read_pickle
        batches = {name: read(folder, name, variant) for name in (variant.train if split == "train" else variant.test)}
        self.labels_N = np.concatenate([labels for labels, _ in batches.values()]).astype(np.int64)
        self._images_N3HW = np.concatenate([pixels for _, pixels in batches.values()]).reshape(-1, 3, SIDE, SIDE)
        starts = np.cumsum([0, *(len(labels) for labels, _ in batches.values())])[:-1]
        self._starts = dict(zip(batches, starts.tolist(), strict=True))
        self._folder, self.note = (
            folder,
            f"the validation split is {variant.test[0]} of {folder}" if split == "val" else "",
        )
        if len(self.labels_N) and not 0 <= self.labels_N.min() <= self.labels_N.max() < len(self.classes):
            raise ValueError(
                f"{folder} has labels from {self.labels_N.min()} to {self.labels_N.max()}, and {len(self.classes)} "
                "classes; download it again"
            )

    def __len__(self) -> int:
        return len(self.labels_N)

    def id(self, index: int) -> str:
        name, start = next((n, s) for n, s in reversed(self._starts.items()) if s <= index)
        return f"{name}/{index - start:05d}"

    def where(self, index: int) -> str:
        return f"{self._folder}/{self.id(index)}"

    def raw(self, index: int) -> np.ndarray:
        """(32, 32, 3) uint8: there is no file for one image."""
        return np.ascontiguousarray(self._images_N3HW[index].transpose(1, 2, 0))

    def sample(self, index: int) -> Sample:
        return Sample(self.id(index), self.raw(index), (SIDE, SIDE), label=int(self.labels_N[index]))


def is_cifar(root: Path) -> bool:
    return _locate(root) is not None


def _locate(root: Path) -> tuple[Path, Variant, bool] | None:
    """Return the folder of the files, at `root` or in it, the variant, and whether it has the binary files."""
    for variant in (TEN, HUNDRED):
        for binary, name in enumerate(variant.folders):
            for folder in (root, root / name):
                if (folder / (variant.binary_names if binary else variant.names[0])).is_file() and any(
                    (folder / f"{batch}{'.bin' * binary}").is_file() for batch in (*variant.train, *variant.test)
                ):
                    return folder, variant, bool(binary)
    return None


def _find(root: Path) -> tuple[Path, Variant, bool]:
    found = _locate(root)
    if found is None:
        raise ValueError(f"{root} holds neither cifar-10-batches-py nor cifar-100-python; unpack the archive there")
    return found


def _classes(folder: Path, variant: Variant, binary: bool) -> tuple[str, ...]:
    if binary:
        path = folder / variant.binary_names
        return _checked(text_lines(read_bytes(path, TEXT_BYTES), path), path)
    names = _load(folder / variant.names[0]).get(variant.names[1])
    if not isinstance(names, list) or not all(isinstance(name, bytes) for name in names):
        raise ValueError(f"{folder / variant.names[0]} has no list {variant.names[1].decode()!r}; download it again")
    return _checked([name.decode("utf-8", "replace") for name in names], folder / variant.names[0])


def _checked(names: Sequence[str], path: Path) -> tuple[str, ...]:
    """Return the names of the classes. Raises ValueError for more than data may have."""
    check_classes(len(names), path)
    return tuple(names)


def _read_binary(folder: Path, name: str, variant: Variant) -> tuple[np.ndarray, np.ndarray]:
    path = folder / f"{name}.bin"
    data = np.frombuffer(_bytes(path), dtype=np.uint8)
    if not len(data) or len(data) % (variant.head + PIXELS):
        raise ValueError(f"{path} ends in the middle of an image: it was cut off, so download it again")
    rows = data.reshape(-1, variant.head + PIXELS)
    return rows[:, variant.head - 1], rows[:, variant.head :]


def _read_pickle(folder: Path, name: str, variant: Variant) -> tuple[np.ndarray, np.ndarray]:
    content = _load(folder / name)
    labels, pixels = content.get(variant.labels), content.get(b"data")
    array = pixels.value if isinstance(pixels, _Array) else None
    if (
        not isinstance(labels, list)
        or not all(type(label) is int and abs(label) < 2**31 for label in labels)
        or array is None
        or array.shape != (len(labels), PIXELS)
    ):
        raise ValueError(
            f"{folder / name} is not a file of CIFAR: it needs a list of labels and an array with "
            f"a row of {PIXELS} bytes for each; download it again"
        )
    return np.array(labels, dtype=np.int64), array


def _bytes(path: Path) -> bytes:
    try:
        return read_bytes(path, BYTES)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); unpack the archive again") from error


def _load(path: Path) -> dict[bytes, Any]:
    """Return the dict in a pickle, keys as bytes. Raises ValueError where the file is damaged or would run code."""
    data = _bytes(path)
    try:
        _check_steps(data)
        content = _Unpickler(BytesIO(data), encoding="bytes").load()
    except _RefusedError as error:
        raise ValueError(
            f"{path} would run {error}, which no file of CIFAR does; nothing was run: do not trust this file"
        ) from error
    except Exception as error:  # the unpickler raises any error on a damaged pickle
        raise ValueError(f"{path} is damaged ({str(error) or type(error).__name__}); download it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a file of CIFAR: it holds a {type(content).__name__}; download it again")
    return {key.encode() if isinstance(key, str) else key: value for key, value in content.items()}


def _check_steps(data: bytes) -> None:
    """Raise ValueError for a pickle that would take memory for numbers alone, before the unpickler obeys it.

    The unpickler keeps a table as long as the highest number that a step names; a few bytes could ask for gigabytes.
    """
    for steps, (operation, argument, _) in enumerate(pickletools.genops(data), 1):
        if steps > limit(STEPS):
            raise ValueError(f"it has more than {limit(STEPS):,} steps")
        if operation.name in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= int(argument or 0) <= steps:
            raise ValueError(f"it names the place {argument} of a table that has {steps} at most")


class _RefusedError(Exception):
    pass


class _ByteType:
    """A stand-in for numpy.dtype that accepts bytes only."""

    def __init__(self, code: Any, *_: Any) -> None:
        if code not in ("u1", b"u1", "|u1", b"|u1"):
            raise ValueError(f"it has an array of {code!r} instead of bytes")

    def __setstate__(self, state: Any) -> None:
        pass


class _Array:
    """A stand-in for numpy's function that creates an empty array, which the state that follows fills."""

    value: np.ndarray | None = None

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        _, shape, variant, by_column, data = state
        if not isinstance(variant, _ByteType) or not isinstance(data, bytes):
            raise ValueError("it has an array of something else than bytes")
        flat = np.frombuffer(data, dtype=np.uint8)
        self.value = flat.reshape(tuple(map(int, shape)), order="F" if by_column else "C")


def _latin1_bytes(text: Any, encoding: Any = "latin1") -> bytes:
    """Return what `_codecs.encode` does, by which Python 3 writes bytes into pickles of old protocols."""
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
        raise ValueError("it has text that is not latin1")
    return text.encode("latin1")


class _Unpickler(pickle.Unpickler):
    """An unpickler that resolves the few names in CIFAR's files to the stand-ins above, and refuses all others."""

    def find_class(self, module: str, name: str) -> Any:
        makers: dict[tuple[str, str], Callable[..., Any] | str] = {
            ("multiarray", "_reconstruct"): _Array,
            ("numpy", "ndarray"): "ndarray",
            ("numpy", "dtype"): _ByteType,
            ("_codecs", "encode"): partial(_latin1_bytes),  # a new one each time: a pickle may change its fields
        }
        last = module.removeprefix("numpy.core.").removeprefix("numpy._core.")
        if (last, name) not in makers:
            raise _RefusedError(f"{module}.{name}")
        return makers[last, name]
