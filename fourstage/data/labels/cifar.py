"""CIFAR-10 and CIFAR-100 as their authors publish them, for Python or as binary files. N images of 32 x 32 pixels.

The Python files are pickles, which may hold any program. They are read by an unpickler that knows arrays of small whole
numbers and plain containers and nothing else.
"""

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from fourstage.data.sample import Sample, Split

SIDE = 32
PIXELS = 3 * SIDE * SIDE


@dataclass(frozen=True)
class Kind:
    """Where one of the two keeps what."""

    folders: tuple[str, ...]  # as the archives unpack: for Python, binary
    train: tuple[str, ...]
    test: tuple[str, ...]
    names: tuple[str, bytes]  # Python's file of class names, and the key in it
    binary_names: str  # the binary one
    labels: bytes  # the key of the labels in a Python batch
    head: int  # bytes before the pixels of a binary image; the last is the label


TEN = Kind(
    ("cifar-10-batches-py", "cifar-10-batches-bin"),
    tuple(f"data_batch_{i}" for i in range(1, 6)),
    ("test_batch",),
    ("batches.meta", b"label_names"),
    "batches.meta.txt",
    b"labels",
    1,
)
HUNDRED = Kind(
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
        folder, kind, binary = _find(Path(root))
        self.classes = _classes(folder, kind, binary)
        read = _read_binary if binary else _read_pickle
        batches = {name: read(folder, name, kind) for name in (kind.train if split == "train" else kind.test)}
        self.labels_N = np.concatenate([labels for labels, _ in batches.values()]).astype(np.int64)
        self._images_N3HW = np.concatenate([pixels for _, pixels in batches.values()]).reshape(-1, 3, SIDE, SIDE)
        starts = np.cumsum([0, *(len(labels) for labels, _ in batches.values())])[:-1]
        self._starts = dict(zip(batches, starts.tolist(), strict=True))
        self._folder, self.note = (
            folder,
            f"the validation split is {kind.test[0]} of {folder}" if split == "val" else "",
        )
        if len(self.labels_N) and not 0 <= self.labels_N.min() <= self.labels_N.max() < len(self.classes):
            raise ValueError(
                f"{folder} has labels from {self.labels_N.min()} to {self.labels_N.max()}, and {len(self.classes)} "
                "classes; fetch it again"
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
    return _look(root) is not None


def _look(root: Path) -> tuple[Path, Kind, bool] | None:
    """The folder of the files, at `root` or just below it, its kind, and whether it is the binary one."""
    for kind in (TEN, HUNDRED):
        for binary, name in enumerate(kind.folders):
            for folder in (root, root / name):
                if (folder / (kind.binary_names if binary else kind.names[0])).is_file() and any(
                    (folder / f"{batch}{'.bin' * binary}").is_file() for batch in (*kind.train, *kind.test)
                ):
                    return folder, kind, bool(binary)
    return None


def _find(root: Path) -> tuple[Path, Kind, bool]:
    found = _look(root)
    if found is None:
        raise ValueError(f"{root} holds neither cifar-10-batches-py nor cifar-100-python; unpack the archive there")
    return found


def _classes(folder: Path, kind: Kind, binary: bool) -> tuple[str, ...]:
    if binary:
        return tuple((folder / kind.binary_names).read_text().split())
    names = _load(folder / kind.names[0]).get(kind.names[1])
    if not isinstance(names, list) or not all(isinstance(name, bytes) for name in names):
        raise ValueError(f"{folder / kind.names[0]} has no list {kind.names[1].decode()!r}; fetch it again")
    return tuple(name.decode("utf-8", "replace") for name in names)


def _read_binary(folder: Path, name: str, kind: Kind) -> tuple[np.ndarray, np.ndarray]:
    path = folder / f"{name}.bin"
    data = np.frombuffer(_bytes(path), dtype=np.uint8)
    if not len(data) or len(data) % (kind.head + PIXELS):
        raise ValueError(f"{path} holds no whole number of images; it was cut off, so fetch it again")
    rows = data.reshape(-1, kind.head + PIXELS)
    return rows[:, kind.head - 1], rows[:, kind.head :]


def _read_pickle(folder: Path, name: str, kind: Kind) -> tuple[np.ndarray, np.ndarray]:
    content = _load(folder / name)
    labels, pixels = content.get(kind.labels), content.get(b"data")
    array = pixels.value if isinstance(pixels, _Array) else None
    if (
        not isinstance(labels, list)
        or not all(type(label) is int and abs(label) < 2**31 for label in labels)
        or array is None
        or array.shape != (len(labels), PIXELS)
    ):
        raise ValueError(
            f"{folder / name} is not CIFAR's: it needs a list of labels and an array with a row of {PIXELS} bytes "
            "for each; fetch it again"
        )
    return np.array(labels, dtype=np.int64), array


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); unpack the whole archive again") from error


def _load(path: Path) -> dict[bytes, Any]:
    """The dict in a pickle, keys as bytes. Raises ValueError where the file is damaged or wants more than data."""
    try:
        content = _Unpickler(BytesIO(_bytes(path)), encoding="bytes").load()
    except _RefusedError as error:
        raise ValueError(
            f"{path} wants to run {error}, which no file of CIFAR does; nothing was run, and it is not to be trusted"
        ) from error
    except Exception as error:  # a damaged pickle drives the unpickler to anything
        raise ValueError(f"{path} is damaged ({str(error) or type(error).__name__}); fetch it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not CIFAR's: it holds a {type(content).__name__}; fetch it again")
    return {key.encode() if isinstance(key, str) else key: value for key, value in content.items()}


class _RefusedError(Exception):
    pass


class _Kind:
    """Stands for numpy.dtype; one-byte whole numbers are all there is."""

    def __init__(self, code: Any, *_: Any) -> None:
        if code not in ("u1", b"u1", "|u1", b"|u1"):
            raise ValueError(f"an array of {code!r}, where bytes were to be")

    def __setstate__(self, state: Any) -> None:
        pass


class _Array:
    """Stands for numpy's function that makes an empty array, to be filled by the state that follows."""

    value: np.ndarray | None = None

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, by_column, data = state
        if not isinstance(kind, _Kind) or not isinstance(data, bytes):
            raise ValueError("an array that is not made of bytes")
        flat = np.frombuffer(data, dtype=np.uint8)
        self.value = flat.reshape(tuple(map(int, shape)), order="F" if by_column else "C")


def _latin(text: Any, encoding: Any = "latin1") -> bytes:
    """Stands for `_codecs.encode`, by which Python 3 writes bytes into old forms of pickles."""
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
        raise ValueError("text that is not latin1")
    return text.encode("latin1")


class _Unpickler(pickle.Unpickler):
    """Gives the few names that CIFAR's files need stand-ins of this file, and refuses all others."""

    def find_class(self, module: str, name: str) -> Any:
        makers: dict[tuple[str, str], Callable[..., Any] | str] = {
            ("multiarray", "_reconstruct"): _Array,
            ("numpy", "ndarray"): "ndarray",
            ("numpy", "dtype"): _Kind,
            ("_codecs", "encode"): partial(_latin),  # a new one each time: a pickle may change its fields
        }
        last = module.removeprefix("numpy.core.").removeprefix("numpy._core.")
        if (last, name) not in makers:
            raise _RefusedError(f"{module}.{name}")
        return makers[last, name]
