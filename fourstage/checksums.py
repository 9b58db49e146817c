"""A sum over the bytes of a checkpoint: damage is noticed before a network is filled. Any package may import this.

`torch.save` writes a zip archive, whose own sums cover neither its directory nor the layout, and which `torch.load`
does not compare. `write_summed` adds a comment to the archive, which other readers skip, with the CRC-32 of all bytes
before it. A CRC-32 notices any single flipped bit and any damage within 32 bits; it is no signature: who can write the
file can write its sum.

A .safetensors file has no place for a comment. Its metadata has an entry with the CRC-32 of all bytes, of which the
digits themselves count as zeros.
"""

import os
import re
import struct
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import IO, Any

END = b"PK\x05\x06"  # begins the last 22 bytes of an archive without a comment; the last two are the comment's length
NO_COMMENT = b"\0\0"
COMMENT = b"fourstage crc32 %08x of %015d bytes"
LENGTH = len(COMMENT % (0, 0))
CHUNK = 2**20  # bytes
ENTRY = "fourstage_crc32"  # in the metadata of a .safetensors file
UNKNOWN = "0" * 8
ENTRY_PATTERN = re.compile(rb'"%s":"(.{8})"' % ENTRY.encode(), re.DOTALL)  # within a text, quotes are escaped
SMALL = 2**16  # bytes, which take 10 us to add up, as long as to take their sum from the archive
POLYNOMIAL = 0xEDB88320  # of CRC-32, in the order of bits of `zlib`


class _Summing:
    """A file for writing that adds up what passes.

    `torch.save` writes each tensor as one piece and then 16 or 24 bytes with the tensor's CRC-32, which it has computed
    anyway. That sum is taken for the piece. `sum` is None after a piece that no such sum followed.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._large = file, 0
        self.sum: int | None = 0
        self.size = 0

    def write(self, data: Any) -> int:
        self._add(data)
        self.size += len(data)
        return self._file.write(data)

    def _add(self, data: Any) -> None:
        """Add a piece, or only keep its size where its sum is about to follow."""
        if self._large:
            of_large = _announced_sum(data, self._large)
            known = self.sum is not None and of_large is not None
            self.sum = combined(self.sum or 0, of_large or 0, self._large) if known else None
            self._large = 0
        if len(data) >= SMALL:
            self._large = len(data)
        elif self.sum is not None:
            self.sum = zlib.crc32(data, self.sum)

    def flush(self) -> None:
        self._file.flush()


def _announced_sum(descriptor: Any, size: int) -> int | None:
    """Return the CRC-32 of a member of `size` bytes from the data descriptor behind it; None: these bytes are none."""
    layout = {16: "<4sIII", 24: "<4sIQQ"}.get(len(descriptor))
    if layout is None:
        return None
    mark, found, *sizes = struct.unpack(layout, descriptor)
    return found if mark == b"PK\x07\x08" and sizes == [size, size] else None


def combined(first: int, second: int, size: int) -> int:
    """Return the CRC-32 of two texts in a row from the CRC-32 of each; `size`: the bytes of the second one.

    A CRC-32 is a remainder of polynomials over GF(2). Bytes that follow multiply the first remainder by a power of x.
    """
    return _product(_power_of_x(8 * size), first) ^ second


@cache
def _power_of_x(exponent: int) -> int:
    """Return x^exponent modulo the polynomial of CRC-32; bit 31 stands for x^0, as in `zlib`."""
    if exponent == 0:
        return 1 << 31
    half = _power_of_x(exponent // 2)
    square = _product(half, half)
    return _times_x(square) if exponent % 2 else square


def _product(a: int, b: int) -> int:
    product = 0
    for bit in range(31, -1, -1):
        if a >> bit & 1:
            product ^= b
        b = _times_x(b)
    return product


def _times_x(a: int) -> int:
    return a >> 1 ^ POLYNOMIAL if a & 1 else a >> 1


def write_summed(file: IO[bytes], save: Callable[[Any], object]) -> None:
    """Write a zip archive by a function that takes a file, and its sum behind it.

    Args:
        file: at its beginning; open for reading too.
    """
    summing = _Summing(file)
    save(summing)
    found = summing.sum
    if found is None:
        found = _add(file, 0, summing.size, 0)
    file.seek(summing.size - len(NO_COMMENT))
    file.write(LENGTH.to_bytes(2, "little"))
    file.write(COMMENT % (found, summing.size))


def is_intact(file: IO[bytes]) -> bool | None:
    """Return whether an open zip archive has the bytes that its sum is of; None: it has no sum.

    Files of older versions and of other programs have none. The position in the file is not kept.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - LENGTH - 22))
    tail = file.read(LENGTH + 22)
    written = re.fullmatch(rb"fourstage crc32 ([0-9a-f]{8}) of (\d{15}) bytes", tail[-LENGTH:])
    at = tail.rfind(END)
    announced = int.from_bytes(tail[at + 20 : at + 22], "little") if at >= 0 else 0
    if written is None and (at < 0 or announced == len(tail) - at - 22 != LENGTH):
        return None  # a comment of another program, or none
    if written is None or announced != LENGTH or at:
        return False  # the sum itself is damaged or cut
    archive = size - LENGTH
    return int(written[2]) == archive and int(written[1], 16) == _sum_of(file, archive - len(NO_COMMENT))


def with_sum(header: bytes, data: bytes | memoryview) -> bytes:
    """Return the head of a .safetensors file, length and JSON, with the sum in place of `UNKNOWN` in its entry.

    Args:
        header: the JSON, whose metadata has the entry `ENTRY` with the value `UNKNOWN`.
        data: all that follows it in the file.
    """
    head = len(header).to_bytes(8, "little") + header
    [found] = ENTRY_PATTERN.finditer(head)
    return head[: found.start(1)] + b"%08x" % zlib.crc32(data, zlib.crc32(head)) + head[found.end(1) :]


def is_intact_safetensors(file: IO[bytes], header: int) -> bool | None:
    """Return whether an open .safetensors file has the bytes that its sum is of; None: it has no sum.

    Args:
        header: the bytes of its JSON, which is read at once.
    """
    file.seek(0)
    head = file.read(8 + header)
    found = list(ENTRY_PATTERN.finditer(head))
    if not found:
        return None
    zeros = UNKNOWN.encode().join((head[: found[0].start(1)], head[found[0].end(1) :]))
    rest = file.seek(0, os.SEEK_END) - len(head)
    return found[0][1] == b"%08x" % _add(file, len(head), rest, zlib.crc32(zeros))


def sum_of_file(path: Path) -> int:
    """Return the CRC-32 of all bytes of a file."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        return _add(file, 0, size, 0)


def _sum_of(file: IO[bytes], size: int) -> int:
    """Return the sum of the first bytes of an archive and of the comment length with which it was written."""
    return zlib.crc32(NO_COMMENT, _add(file, 0, size, 0))


def _add(file: IO[bytes], start: int, size: int, found: int) -> int:
    """Return the sum `found` with the next `size` bytes from `start` on added."""
    file.seek(start)
    chunk = memoryview(bytearray(CHUNK))
    while size:
        count = file.readinto(chunk[: min(size, CHUNK)])  # pyright: ignore[reportAttributeAccessIssue] - IO[bytes]
        if not count:
            break  # the file has become shorter meanwhile
        found = zlib.crc32(chunk[:count], found)
        size -= count
    return found
