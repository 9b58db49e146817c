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
import zlib
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import IO, Any

END = b"PK\x05\x06"  # begins the last 22 bytes of an archive without a comment; the last two are the comment's length
NO_COMMENT = b"\0\0"
COMMENT = b"fourstage crc32 %08x of %015d bytes"
LENGTH = len(COMMENT % (0, 0))
CHUNK = 2**20  # bytes
ENTRY = "fourstage_crc32"  # in the metadata of a .safetensors file
UNKNOWN = "0" * 8
ENTRY_PATTERN = re.compile(rb'"%s":"(.{8})"' % ENTRY.encode(), re.DOTALL)  # within a text, quotes are escaped
SMALL = 2**18  # bytes, which take 40 us to add up: as long as a thread takes to begin


class _Summing:
    """A file for writing that adds up what passes: large pieces in a thread, while they are written."""

    def __init__(self, file: IO[bytes], thread: Executor) -> None:
        self._file, self._thread, self.sum, self.size = file, thread, 0, 0

    def write(self, data: Any) -> int:
        self.size += len(data)
        if len(data) < SMALL:
            self.sum = zlib.crc32(data, self.sum)
            return self._file.write(data)
        adding = self._thread.submit(zlib.crc32, data, self.sum)
        try:
            return self._file.write(data)
        finally:
            self.sum = adding.result()  # `data` is memory of a tensor, which is valid until this returns

    def flush(self) -> None:
        self._file.flush()


def write_summed(file: IO[bytes], save: Callable[[Any], object]) -> None:
    """Write a zip archive by a function that takes a file, and its sum behind it. `file` is at its beginning."""
    with ThreadPoolExecutor(1) as thread:
        summing = _Summing(file, thread)
        save(summing)
    file.seek(summing.size - len(NO_COMMENT))
    file.write(LENGTH.to_bytes(2, "little"))
    file.write(COMMENT % (summing.sum, summing.size))


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
