"""Hostile image files, which any format may hold, and things that are no files. B: bytes."""

import os
import socket
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

from data.hostile.sound import png
from PIL import Image


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_of(width: int, height: int, data: bytes, *before: bytes, mode: int = 2, depth: int = 8) -> bytes:
    """Return a PNG that declares a size; `data` is its compressed content."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, mode, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(before) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def zeros(count: int) -> bytes:
    """Return compressed zeros, without holding them."""
    packer, out, block = zlib.compressobj(1), BytesIO(), bytes(1 << 20)
    for start in range(0, count, len(block)):
        out.write(packer.compress(block[: min(len(block), count - start)]))
    out.write(packer.flush())
    return out.getvalue()


def large_png(side: int) -> bytes:
    """Return a PNG of side x side black pixels: some hundred kilobytes for half a gigabyte."""
    return png_of(side, side, zeros((3 * side + 1) * side))


def progressive(scans: int, side: int = 2048) -> bytes:
    """Return a progressive JPEG whose last scan is repeated many times."""
    file = BytesIO()
    Image.new("L", (side, side)).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    start = data.rindex(b"\xff\xda")
    return data[:start] + data[start:-2] * scans + data[-2:]


def animation() -> bytes:
    file = BytesIO()
    frames = [Image.new("P", (64, 64), i % 256) for i in range(3000)]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], loop=0)
    return file.getvalue()


def pages() -> bytes:
    """Return a TIFF whose pages form a ring."""
    file = BytesIO()
    Image.new("L", (40, 40)).save(file, "TIFF")
    data = bytearray(file.getvalue())
    first = struct.unpack_from("<I", data, 4)[0]
    entries = struct.unpack_from("<H", data, first)[0]
    struct.pack_into("<I", data, first + 2 + 12 * entries, first)
    return bytes(data)


def tiff(tags: dict[int, tuple[int, int, int]]) -> bytes:
    """Return a TIFF of 40 x 40 pixels with tags of its own: number -> (type, count, value)."""
    file = BytesIO()
    Image.new("L", (40, 40)).save(file, "TIFF")
    data = bytearray(file.getvalue())
    first = struct.unpack_from("<I", data, 4)[0]
    for i in range(struct.unpack_from("<H", data, first)[0]):
        place = first + 2 + 12 * i
        number = struct.unpack_from("<H", data, place)[0]
        if number in tags:
            struct.pack_into("<HHII", data, place, number, *tags[number])
    return bytes(data)


def postscript() -> bytes:
    """Return a program that Ghostscript would run."""
    return (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\n"
        b"(EXECUTED) (w) file closefile\nshowpage\n%%EOF\n"
    )


def exif_bomb() -> bytes:
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 65535) + struct.pack("<HHII", 0x0112, 3, 2**31 - 1, 8) * 5000
    file = BytesIO()
    Image.new("RGB", (40, 40)).save(file, "JPEG", exif=exif[:65000])
    return file.getvalue()


def saved(mode: str, format: str) -> bytes:
    file = BytesIO()
    Image.new(mode, (40, 40)).save(file, format)
    return file.getvalue()


BYTES: dict[str, Callable[[], bytes]] = {  # name -> content; the name has the suffix
    "huge.png": lambda: png_of(10**9, 10**9, zlib.compress(b"")),
    "most.png": lambda: png_of(2**31 - 1, 2**31 - 1, zlib.compress(b"")),
    "zero.png": lambda: png_of(0, 0, zlib.compress(b"")),
    "wide.png": lambda: png_of(10**9, 1, zlib.compress(b"")),
    "thin.png": lambda: png_of(1, 170_000_000, zeros(170_000_000 * 4)),
    "large.png": lambda: large_png(11_500),
    "above.png": lambda: large_png(12_000),
    "cut.png": lambda: png(1)[:200],
    "empty.png": lambda: b"",
    "zeros.png": lambda: bytes(100_000),
    "text.png": lambda: png_of(40, 40, zeros(121 * 40), chunk(b"zTXt", b"k\0\0" + zeros(1 << 30))),
    "texts.png": lambda: png_of(40, 40, zeros(121 * 40), *[chunk(b"zTXt", b"k\0\0" + zeros(1 << 20))] * 200),
    "plain_text.png": lambda: png_of(40, 40, zeros(121 * 40), chunk(b"tEXt", b"k\0" + b"a" * (100 << 20))),
    "profile.png": lambda: png_of(40, 40, zeros(121 * 40), chunk(b"iCCP", b"k\0\0" + zeros(1 << 30))),
    "surplus.png": lambda: png_of(40, 40, zeros(1 << 31)),
    "crc.png": lambda: png(2)[:-20] + b"\xff" * 20,
    "chunks.png": lambda: png_of(40, 40, zeros(121 * 40), chunk(b"abCd", b"") * 400_000),
    "ppm.ppm": lambda: b"P6 999999999 999999999 255\n",
    "digits.ppm": lambda: b"P6 " + b"9" * 100_000 + b" 1 255\n",
    "range.pgm": lambda: b"P5 40 40 1e400\n" + bytes(1600),
    "plain.ppm": lambda: b"P3 11500 11500 255\n" + b"1 " * 1000,
    "scans.jpg": lambda: progressive(5000),
    "animation.gif": animation,
    "gif.gif": lambda: b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b"\x2c" + bytes(9) + b"\x08\x00;",
    "frames.gif": lambda: animation()[:-1] + b"\x21\xf9\x04\0\0\0\0\0" * 100_000 + b";",
    "pages.tif": pages,
    "strips.tif": lambda: tiff({273: (4, 2**31 - 1, 8), 279: (4, 2**31 - 1, 8)}),
    "sides.tif": lambda: tiff({256: (4, 1, 2**32 - 1), 257: (4, 1, 2**32 - 1)}),
    "samples.tif": lambda: tiff({277: (3, 1, 65535), 258: (3, 65535, 8)}),
    "float.tif": lambda: saved("F", "TIFF"),
    "integers.tif": lambda: saved("I", "TIFF"),
    "bmp.bmp": lambda: b"BM" + struct.pack("<IIIIiiHH", 54, 0, 54, 40, 2**31 - 1, -(2**31), 1, 24) + bytes(24),
    "runs.bmp": lambda: (
        b"BM"
        + struct.pack("<IIIIiiHHIIIIII", 1078, 0, 1078, 40, 11500, 11500, 1, 8, 1, 0, 0, 0, 0, 0)
        + bytes(1024)
        + b"\0\2\xff\xff" * 1000
    ),
    "webp.webp": lambda: b"RIFF" + struct.pack("<I", 2**32 - 1) + b"WEBPVP8X" + struct.pack("<I", 10) + b"\xff" * 10,
    "postscript.jpg": postscript,
    "exif.jpg": exif_bomb,
    "sixteen.png": lambda: png_of(40, 40, zeros(81 * 40), mode=0, depth=16),
    "palette.png": lambda: png_of(40, 40, zeros(41 * 40), mode=3),
    "script.png": lambda: b"#!/bin/sh\ntouch EXECUTED\n",
    "page.jpg": lambda: b"<html><script>1</script></html>" * 1000,
    "svg.png": lambda: b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="1e9" height="1e9"/>',
    "pickle.png": lambda: b"\x80\x04cos\nsystem\n(S'touch EXECUTED'\ntR.",
}


def pipe(path: Path) -> None:
    os.mkfifo(path)


def server(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        before = Path.cwd()
        os.chdir(path.parent)  # addresses have at most a hundred letters
        one.bind(path.name)
        os.chdir(before)


def folder(path: Path) -> None:
    path.mkdir()


def dangling(path: Path) -> None:
    path.symlink_to("nowhere.png")


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def memory(path: Path) -> None:
    path.symlink_to("/proc/self/mem")


def sparse(path: Path) -> None:
    path.write_bytes(png(3))
    os.truncate(path, 1 << 40)


def sparse_noise(path: Path) -> None:
    path.write_bytes(b"no image")
    os.truncate(path, 1 << 40)


PLACES: dict[str, Callable[[Path], None]] = {  # things that are no plain files, and files of a terabyte
    "pipe.jpg": pipe, "server.jpg": server, "folder.jpg": folder, "dangling.png": dangling, "loop.png": loop,
    "device.png": device, "memory.png": memory, "sparse.png": sparse, "sparse_noise.png": sparse_noise,
}  # fmt: skip
