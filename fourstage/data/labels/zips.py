"""Images in a zip archive, read without unpacking it. N images."""

import os
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np

from fourstage.data.images import LARGEST_FILE
from fourstage.data.limits import packed_names
from fourstage.data.sample import BadImage
from fourstage.documents import in_file
from fourstage.files import RAISE, limit, open_regular, read_at

MEMBERS = 20_000_000  # of an archive; ImageNet-22K has 14 million images
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
            with in_file(path), open_regular(path) as file, zipfile.ZipFile(file) as archive:
                entries = {os.fsencode(info.filename): info for info in archive.infolist()}
        except OSError as error:
            raise ValueError(
                f"{path} cannot be read ({error.strerror}), but its list exists: download the archive"
            ) from error
        except (zipfile.BadZipFile, NotImplementedError, struct.error, UnicodeError) as error:
            raise ValueError(f"{path} is not a complete zip archive ({error}): download or write it again") from error
        if len(entries) > limit(MEMBERS):
            raise ValueError(f"{path} has {len(entries):,} files, and at most {limit(MEMBERS):,} are read; {RAISE}")
        entries_N = np.zeros(len(names), dtype=ENTRY)
        missing: list[int] = []
        for row, name in enumerate(names):
            info = entries.get(name) or entries.get(inside + name)
            if info is None:
                missing.append(row)
                continue
            if info.flag_bits & 1:
                raise ValueError(f"{path} is encrypted; unpack it and write it again without a password")
            if min(info.header_offset, info.compress_size, info.file_size) < 0:
                raise ValueError(
                    f"{path} is not a complete zip archive (it begins before its first byte): download it again"
                )
            entries_N[row] = (info.header_offset, info.compress_size, info.file_size, info.CRC, info.compress_type)
        return cls(path, packed_names(names, path), entries_N), tuple(missing)

    def id(self, row: int) -> str:
        return os.fsdecode(self.names_N[row])

    def where(self, row: int) -> str:
        return f"{self.path}/{self.id(row)}"

    def read(self, row: int) -> bytes:
        entry = self.entries_N[row]
        offset, packed, size = int(entry["offset"]), int(entry["packed"]), int(entry["size"])
        if max(packed, size) > limit(LARGEST_FILE) or offset >= 2**62:
            reason = f"it has {size:,} bytes unpacked, more than the {limit(LARGEST_FILE):,} allowed for an image"
            raise BadImage(self.where(row), reason)
        try:
            head = read_at(self.path, offset, HEAD.size)
            signature, name, extra = HEAD.unpack(head) if len(head) == HEAD.size else (b"", 0, 0)
            data = read_at(self.path, offset + HEAD.size + name + extra, packed)
            if entry["method"] == zipfile.ZIP_DEFLATED:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
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
