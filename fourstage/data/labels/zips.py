"""Images in a zip archive, read without unpacking it. N images."""

import os
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np

from fourstage.data.sample import BadImage
from fourstage.files import read_at

HEAD = struct.Struct("<4s22xHH")  # before each file: a signature, and the lengths of its name and extra field
ENTRY = np.dtype([("offset", "u8"), ("packed", "u8"), ("size", "u8"), ("crc", "u4"), ("method", "u2")])


class ZipStore:
    """Some of the files of a zip archive.

    The archive's directory is read once and kept as an array, which loader processes share; each of them would copy a
    million entries that are objects. The archive is opened for each image.
    """

    def __init__(self, path: Path, names_N: np.ndarray, entries_N: np.ndarray) -> None:
        self.path, self.names_N, self.entries_N = path, names_N, entries_N

    @classmethod
    def open(cls, path: Path, names: Sequence[bytes], inside: bytes = b"") -> tuple[Self, tuple[int, ...]]:
        """Return the store of `names`, which may be below the folder `inside` of the archive, and missing positions.

        Raises:
            ValueError: there is no archive, it is not a zip file, or it was cut off.
        """
        try:
            with zipfile.ZipFile(path) as archive:
                entries = {os.fsencode(info.filename): info for info in archive.infolist()}
        except OSError as error:
            raise ValueError(
                f"{path} cannot be read ({error.strerror}), but its list exists: download the archive"
            ) from error
        except zipfile.BadZipFile as error:
            raise ValueError(f"{path} is not a complete zip archive ({error}): download or write it again") from error
        entries_N = np.zeros(len(names), dtype=ENTRY)
        missing: list[int] = []
        for row, name in enumerate(names):
            info = entries.get(name) or entries.get(inside + name)
            if info is None:
                missing.append(row)
                continue
            if info.flag_bits & 1:
                raise ValueError(f"{path} is encrypted; unpack it and write it again without a password")
            entries_N[row] = (info.header_offset, info.compress_size, info.file_size, info.CRC, info.compress_type)
        return cls(path, np.array(names, dtype=bytes), entries_N), tuple(missing)

    def id(self, row: int) -> str:
        return os.fsdecode(self.names_N[row])

    def where(self, row: int) -> str:
        return f"{self.path}/{self.id(row)}"

    def read(self, row: int) -> bytes:
        entry = self.entries_N[row]
        offset, packed = int(entry["offset"]), int(entry["packed"])
        try:
            head = read_at(self.path, offset, HEAD.size)
            signature, name, extra = HEAD.unpack(head) if len(head) == HEAD.size else (b"", 0, 0)
            data = read_at(self.path, offset + HEAD.size + name + extra, packed)
            if entry["method"] == zipfile.ZIP_DEFLATED:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, int(entry["size"]) + 1)
            elif entry["method"] != zipfile.ZIP_STORED:
                raise BadImage(
                    self.where(row), f"its compression (method {entry['method']}) is not supported; use deflate"
                )
        except OSError as error:
            raise BadImage(self.where(row), str(error.strerror).lower()) from error
        except zlib.error as error:
            raise BadImage(self.where(row), "the archive is damaged here") from error
        if signature != b"PK\x03\x04" or len(data) != entry["size"] or zlib.crc32(data) != entry["crc"]:
            raise BadImage(self.where(row), "the archive is damaged here")
        return data
