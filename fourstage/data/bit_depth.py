"""Images of more than eight bits a value, in eight bits.

A file of 16 bits often holds fewer: the twelve of a camera, or of a scanner, would come out near black. Its range is
2^n values, where n is

1. what the file states: `MaxSampleValue` or `BitsPerSample` of a TIFF, `sBIT` of a PNG. A file whose values are larger
   than that was scaled to 16 bits when it was written, as PNG's standard asks, and its n is 16;
2. else the smallest of 8, 10, 12, 14 and 16 in which its largest value fits.

The upper eight of the n bits are kept. H x W pixels.
"""

import sys
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

GREY = ("I;16", "I;16B", "I;16L", "I;16N")  # PIL's modes; it has none for colours of 16 bits, and keeps the upper eight
GREY_AND_ALPHA = "RGBA"  # decodes the four bytes of grey and transparency of 16 bits as they are
DEPTHS = (8, 10, 12, 14, 16)
BITS_PER_SAMPLE, MAX_SAMPLE_VALUE = 258, 281  # tags of TIFF
ORIENTATION = 0x0112
CHUNKS = 1000  # of a PNG that are searched for its bits


def in_eight_bits(image: "Image", reopen: "Callable[[bytes], Image]") -> "Image":
    """Return an image of more than eight bits as one of eight, with its orientation; any other one as it is.

    Args:
        image: opened, not decoded yet.
        reopen: opens the same file again, from its bytes.
    """
    from PIL.Image import fromarray

    if image.mode == "I" and image.format == "PPM":  # PIL scales its range, which every such file states, to 16 bits
        return _with_orientation(fromarray(_upper(np.asarray(image), 16)), image)
    if image.mode in GREY:
        stated = _stated_bits(image)
        values_HW = np.asarray(image)
        return _with_orientation(fromarray(_upper(values_HW, _bits(values_HW, stated))), image)
    other = _other_rawmode(image)
    if other is None:
        return image
    stated, data = _stated_bits(image), _content(image)
    if (
        max(high for _, high in _extrema(image)) >= 1 << DEPTHS[-2] - 8
    ):  # all 16 bits are in use, as PIL takes them to be
        return image
    low: Any = reopen(data)
    low.tile = [tile._replace(args=_with_rawmode(tile.args, other)) for tile in low.tile]
    lower = np.asarray(low)[..., :3] if other != GREY_AND_ALPHA else np.asarray(low)[..., 1:2]
    values = np.asarray(image)[..., :3].astype(np.uint16) << 8 | lower
    return _with_orientation(fromarray(_upper(values, _bits(values, stated))), image)


def _extrema(image: "Image") -> list[tuple[int, int]]:
    """Return the smallest and the largest byte of each colour."""
    return [(int(low), int(high)) for low, high in cast(Any, image.getextrema())[:3]]


def _bits(values: np.ndarray, stated: int | None) -> int:
    most = int(values.max(initial=0)).bit_length()
    if stated is not None:
        return stated if most <= stated else DEPTHS[-1]
    return next(depth for depth in DEPTHS if most <= depth)


def _upper(values: np.ndarray, bits: int) -> np.ndarray:
    """Return the upper eight of `bits` bits, uint8."""
    return (values >> bits - 8 if bits >= 8 else values << 8 - bits).astype(np.uint8)


def _with_orientation(new: "Image", image: "Image") -> "Image":
    """Give a new image the orientation of the one that it was made from, for `ImageOps.exif_transpose`."""
    if (turn := image.getexif().get(ORIENTATION)) is not None:
        new.getexif()[ORIENTATION] = turn
    return new


def _stated_bits(image: "Image") -> int | None:
    """Return the bits of each value by the file's own statement; None: it makes none below 16, or an odd one."""
    stated: list[int] = []
    if image.format == "TIFF":
        tags: Any = getattr(image, "tag_v2", {})
        stated = [value.bit_length() for value in _numbers(tags.get(MAX_SAMPLE_VALUE))]
        stated = stated or [bits for bits in _numbers(tags.get(BITS_PER_SAMPLE)) if bits < DEPTHS[-1]]
    elif image.format == "PNG" and (file := getattr(image, "fp", None)) is not None:
        stated = _significant_bits(file)
    most = max(stated, default=0)
    return most if 0 < most <= DEPTHS[-1] else None


def _numbers(value: Any) -> list[int]:
    values = value if isinstance(value, tuple) else (value,)
    return [one for one in values if isinstance(one, int)]


def _significant_bits(file: IO[bytes]) -> list[int]:
    """Return the values of a PNG's chunk `sBIT` without those of transparency; they come before the pixels."""
    place = file.tell()
    try:
        file.seek(8)
        for _ in range(CHUNKS):
            head = file.read(8)
            length, name = int.from_bytes(head[:4], "big"), head[4:]
            if name == b"sBIT":
                return list(file.read(min(length, 4)))[: 1 if length < 3 else 3]
            if name in (b"IDAT", b"IEND", b""):
                return []
            file.seek(length + 4, 1)
        return []
    finally:
        file.seek(place)


def _content(image: "Image") -> bytes:
    file = getattr(image, "fp", None)
    assert file is not None, "the image is not decoded yet"
    place = file.tell()
    file.seek(0)
    data = file.read()
    file.seek(place)
    return data


def _other_rawmode(image: "Image") -> str | None:
    """Return the name by which PIL decodes the lower byte of each colour of 16 bits; None: it has eight bits.

    PIL decodes the upper bytes by `RGB;16B`, where they come first in the file, and by `RGB;16L`, where they come last.
    """
    for tile in getattr(image, "tile", []):
        rawmode = tile.args[0] if isinstance(tile.args, tuple) else tile.args
        name, _, order = str(rawmode).partition(";16")
        if image.mode == "RGBA" and rawmode == "LA;16B":
            return GREY_AND_ALPHA
        if name in ("RGB", "RGBA", "RGBX") and order in ("B", "L", "N"):
            native = "L" if sys.byteorder == "little" else "B"
            return f"{name};16{'B' if (native if order == 'N' else order) == 'L' else 'L'}"
    return None


def _with_rawmode(args: Any, rawmode: str) -> Any:
    return (rawmode, *args[1:]) if isinstance(args, tuple) else rawmode
