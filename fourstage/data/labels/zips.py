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

HEAD = struct.Struct("<4s22xHH")  # before each file in an archive: a mark, and the lengths of its name and extra field
PLACE = np.dtype([("offset", "u8"), ("packed", "u8"), ("size", "u8"), ("crc", "u4"), ("method", "u2")])


class ZipStore:
    """Some of the files of a zip archive.

    The archive's directory is read once and kept as arrays. Loader processes share those, open the archive for each
    image, and never a million entries of their own.
    """

    def __init__(self, path: Path, names_N: np.ndarray, places_N: np.ndarray) -> None:
        self.path, self.names_N, self.places_N = path, names_N, places_N

    @classmethod
    def open(cls, path: Path, names: Sequence[bytes], inside: bytes = b"") -> tuple[Self, tuple[int, ...]]:
        """The store of `names`, which may lie below a folder `inside` of the archive, and the places of missing ones.

        Raises:
            ValueError: there is no archive, it is no zip file, or was cut off.
        """
        try:
            with zipfile.ZipFile(path) as archive:
                entries = {os.fsencode(info.filename): info for info in archive.infolist()}
        except OSError as error:
            raise ValueError(f"{path} cannot be read ({error.strerror}), and its list is there: fetch it") from error
        except zipfile.BadZipFile as error:
            raise ValueError(f"{path} is no whole zip archive ({error}): fetch or write it again") from error
        places_N = np.zeros(len(names), dtype=PLACE)
        missing: list[int] = []
        for row, name in enumerate(names):
            info = entries.get(name) or entries.get(inside + name)
            if info is None:
                missing.append(row)
                continue
            if info.flag_bits & 1:
                raise ValueError(f"{path} is encrypted; unpack it and write it without a password")
            places_N[row] = (info.header_offset, info.compress_size, info.file_size, info.CRC, info.compress_type)
        return cls(path, np.array(names, dtype=bytes), places_N), tuple(missing)

    def id(self, row: int) -> str:
        return os.fsdecode(self.names_N[row])

    def where(self, row: int) -> str:
        return f"{self.path}/{self.id(row)}"

    def read(self, row: int) -> bytes:
        place = self.places_N[row]
        offset, packed = int(place["offset"]), int(place["packed"])
        try:
            head = read_at(self.path, offset, HEAD.size)
            mark, name, extra = HEAD.unpack(head) if len(head) == HEAD.size else (b"", 0, 0)
            data = read_at(self.path, offset + HEAD.size + name + extra, packed)
            if place["method"] == zipfile.ZIP_DEFLATED:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, int(place["size"]) + 1)
            elif place["method"] != zipfile.ZIP_STORED:
                raise BadImage(self.where(row), f"its compression (method {place['method']}) is not read; use deflate")
        except OSError as error:
            raise BadImage(self.where(row), str(error.strerror).lower()) from error
        except zlib.error as error:
            raise BadImage(self.where(row), "the archive is damaged here") from error
        if mark != b"PK\x03\x04" or len(data) != place["size"] or zlib.crc32(data) != place["crc"]:
            raise BadImage(self.where(row), "the archive is damaged here")
        return data
