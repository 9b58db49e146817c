"""A sum over the bytes of a checkpoint: damage is noticed before a network is filled. Any package may import this.

`torch.save` writes a zip archive, whose own sums cover neither its directory nor the layout, and which `torch.load`
does not compare. `write_summed` adds a comment to the archive, which other readers skip, with the CRC-32 of all bytes
before it. A CRC-32 notices any single flipped bit and any damage within 32 bits; it is no signature: who can write the
file can write its sum.
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


def _sum_of(file: IO[bytes], size: int) -> int:
    """Return the sum of the first bytes of an archive and of the comment length with which it was written."""
    file.seek(0)
    found, chunk = 0, memoryview(bytearray(CHUNK))
    while size:
        count = file.readinto(chunk[: min(size, CHUNK)])  # pyright: ignore[reportAttributeAccessIssue] - IO[bytes]
        if not count:
            return -1
        found = zlib.crc32(chunk[:count], found)
        size -= count
    return zlib.crc32(NO_COMMENT, found)
