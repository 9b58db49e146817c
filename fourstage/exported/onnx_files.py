"""The other files that an ONNX file names for its weights, read from its bytes without the package onnx.

An ONNX file is a message of Protocol Buffers: fields, each with a number and a wire type. Only fields that may hold a
tensor are followed. https://github.com/onnx/onnx/blob/main/onnx/onnx.proto has the numbers.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path

from fourstage.files import open_regular, real_path

# message -> number of a field -> the message in it
MESSAGES: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
LOCATION = b"location"
DEEPEST = 64  # graphs in graphs
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types


def check_weight_files(path: Path) -> None:
    """Raise ValueError unless all other files that an ONNX file names are in its own folder.

    Raises:
        ValueError: a file of another place, or bytes that are no ONNX file.
    """
    folder = real_path(path).parent
    for name in sorted(set(weight_files(path))):
        plain = Path(name).name == name and "\\" not in name and "\0" not in name
        if not plain or real_path(folder / name).parent != folder:
            raise ValueError(
                f"{path} takes weights from {name!r:.200}, which is outside of its folder, and only files beside it "
                f"are read; export the network again"
            )
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{path} takes weights from {name}, which is missing; put it into the same folder")


def weight_files(path: Path) -> Iterator[str]:
    """Yield the names of files that hold weights of an ONNX file.

    Raises:
        ValueError: the file is damaged.
    """
    with open_regular(path) as file:
        if not file.seek(0, 2):
            raise _damaged(path)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                yield from _locations(content, 0, len(content), "model", 0)
            except (IndexError, ValueError) as error:
                raise _damaged(path) from error


def _locations(content: mmap.mmap, start: int, end: int, message: str, depth: int) -> Iterator[str]:
    if depth > DEEPEST:
        raise ValueError("too deep")
    if message == "entry":
        values = {number: content[first:last] for number, first, last in _fields(content, start, end)}
        if values.get(1) == LOCATION:
            yield values.get(2, b"").decode("utf-8", "surrogateescape")
        return
    inside = MESSAGES[message]
    for number, first, last in _fields(content, start, end):
        if number in inside:
            yield from _locations(content, first, last, inside[number], depth + 1)


def _fields(content: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield the number, the first byte and the end of every field of bytes; others are skipped."""
    place = start
    while place < end:
        key, place = _varint(content, place)
        kind = key & 7
        if kind == BYTES:
            length, place = _varint(content, place)
            if place + length > end:
                raise ValueError("a field ends behind its message")
            yield key >> 3, place, place + length
            place += length
        elif kind == VARINT:
            _, place = _varint(content, place)
        elif kind in (FIXED64, FIXED32):
            place += 8 if kind == FIXED64 else 4
        else:
            raise ValueError("an unknown wire type")
    if place != end:
        raise ValueError("a field ends behind its message")


def _varint(content: mmap.mmap, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if not byte & 0x80:
            return value, place
        if shift > 63:
            raise ValueError("a number is too long")


def _damaged(path: Path) -> ValueError:
    return ValueError(f"{path} is not an ONNX file, or is damaged; export the network again")
