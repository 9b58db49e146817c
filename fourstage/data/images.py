"""Read one image file, and recognise image files by their names."""

import ctypes
import threading
import warnings
from contextlib import nullcontext
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fourstage.data.bit_depth import ORIENTATION, in_eight_bits
from fourstage.data.errors import BadImage
from fourstage.files import LIMITS, kind_of, limit, open_regular

if TYPE_CHECKING:
    from PIL.Image import Image

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".webp", ".avif", ".tif", ".tiff", ".gif"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".tga"),
)
LARGEST = 2**27  # pixels, such as 11,585 x 11,585: with all copies on the way into a batch, less than 2 GB
LONGEST = 2**17  # pixels of a side; PIL takes memory for each row
LARGEST_FILE = 4 * LARGEST  # bytes; uncompressed pixels with transparency
LARGE = 2**25  # pixels; images above it are decoded one at a time, however many threads ask
SCANS = 100  # of a progressive JPEG; encoders write about ten, and each may cost as much time as a complete image
REFUSED = ("EPS",)  # formats that PIL gives to another program: PostScript is one, which Ghostscript would run

# PIL warns about odd EXIF and large sizes while it reads a header; catching warnings is not safe between threads.
_header_lock = threading.Lock()
_large_lock = threading.Lock()


def is_image_name(name: str) -> bool:
    """Whether a file of this name should hold an image. Hidden ones do not: macOS writes `._cat.jpg` beside cat.jpg."""
    return not name.startswith(".") and name.lower().endswith(EXTENSIONS)


def read_image(path: str | Path, *, orient: bool = False) -> np.ndarray:
    """Decode an image file by PIL.

    Transparency is dropped as torchvision and timm do (the colour below it stays). Of more than eight bits the upper
    eight are kept, see `bit_depth.py`. Of an animation, the first frame is read.

    Args:
        orient: rotate the image according to its EXIF data. Classification data is not rotated (torchvision, timm);
            detection and segmentation data is (OpenCV, hence OpenMMLab).

    Returns:
        (H, W, 3) uint8 RGB, not writable; neighbouring pixels may be four bytes apart.

    Raises:
        BadImage: the file is missing, truncated, not an image, has no agreed range of values, or is absurdly large, or
            the path is no file.
    """
    try:
        return _decoded(open_image(path, orient=orient), orient)
    except BadImage:
        raise
    except Exception as error:  # decoders raise any error on a broken file
        raise BadImage(str(path), _reason(error)) from error


def decode_image(data: bytes, name: str, *, orient: bool = False) -> np.ndarray:
    """Decode the bytes of an image file; `name` is its place in an archive or a table. See `read_image`.

    Raises:
        BadImage: as `read_image`.
    """
    try:
        return _decoded(open_image(BytesIO(data), orient=orient, name=name), orient)
    except BadImage:
        raise
    except Exception as error:
        raise BadImage(name, _reason(error)) from error


def pixels_of(image: "Image", name: str, *, orient: bool = False) -> np.ndarray:
    """Return a copy of the pixels of a PIL image, as `read_image` returns those of its file. The image stays open.

    Raises:
        BadImage: as `read_image`.
    """
    from PIL import ImageOps

    _check_size(image, name)
    try:
        picture = in_eight_bits(image, lambda data: open_image(BytesIO(data)))
        picture = ImageOps.exif_transpose(picture) if orient else picture
        return np.array(_as_rgb(picture))
    except BadImage:
        raise
    except Exception as error:  # an image that is decoded only now may be broken in any way
        raise BadImage(name, _reason(error)) from error


def _decoded(image: "Image", orient: bool) -> np.ndarray:
    from PIL import ImageOps

    width, height = image.size
    with _large_lock if width * height > LARGE else nullcontext():
        with image:
            _check_scans(image)
            picture = in_eight_bits(image, lambda data: open_image(BytesIO(data)))
            if orient:
                ImageOps.exif_transpose(picture, in_place=True)
            picture = _as_rgb(picture)
            picture.load()
        return as_pixels(picture)


def _check_scans(image: "Image") -> None:
    """Raise ValueError for a progressive JPEG with absurdly many scans. PIL decodes them all."""
    file = getattr(image, "fp", None)
    if not image.info.get("progressive") or file is None:
        return
    place = file.tell()
    file.seek(0)
    scans = file.read().count(b"\xff\xda")
    file.seek(place)
    if scans > limit(SCANS):
        raise ValueError(f"a progressive JPEG of {scans:,} scans, and at most {limit(SCANS):,} are read; save it again")


def read_stored(path: str | Path) -> bytes:
    """Return the bytes of an image file. Raises BadImage where it is missing, no file, or too large for an image."""
    try:
        check_file(path)
        with open_regular(path) as file:
            return file.read(limit(LARGEST_FILE) + 1)
    except (OSError, ValueError) as error:
        raise error if isinstance(error, BadImage) else BadImage(str(path), _reason(error)) from error


def check_file(path: str | Path) -> None:
    """Raise BadImage unless a path is a regular file of a size that an image may have. OSError: there is none."""
    status = Path(path).stat()
    if (kind := kind_of(status.st_mode)) != "file":
        raise BadImage(str(path), f"it is a {kind}, not a file")
    if status.st_size > limit(LARGEST_FILE):
        raise BadImage(str(path), f"it has {status.st_size:,} bytes, more than the {limit(LARGEST_FILE):,} allowed")


def open_image(path: str | Path | BytesIO, *, orient: bool = False, name: str = "") -> "Image":
    """Open a file as a PIL image: size, mode and format are known, no pixel is decoded yet.

    Args:
        orient: read EXIF now, while its warnings are caught, because it is needed later.
        name: for messages, where `path` is not a path.

    Raises:
        BadImage: as `read_image`.
    """
    name = name or str(path)
    try:
        if not isinstance(path, BytesIO):
            check_file(path)
        image = _opened(path, orient)
    except BadImage:
        raise
    except Exception as error:
        raise BadImage(name, _reason(error)) from error
    try:
        _check_size(image, name)
    except BadImage:
        image.close()
        raise
    if image.format in REFUSED:
        image.close()
        raise BadImage(name, "PostScript is a program, which is not run; save the picture as PNG or JPEG")
    return image


def _check_size(image: "Image", name: str) -> None:
    width, height = image.size
    if not width * height:
        raise BadImage(name, f"its {width} x {height} pixels hold no image")
    if width * height > limit(LARGEST) or max(width, height) > limit(LONGEST):
        raise BadImage(name, f"{width} x {height} pixels are {_too_many()}")


def _opened(path: str | Path | BytesIO, orient: bool) -> "Image":
    from PIL import Image

    with _header_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        usual = Image.MAX_IMAGE_PIXELS  # PIL refuses twice as many on its own
        try:
            Image.MAX_IMAGE_PIXELS = limit(LARGEST)
            image = Image.open(path)
        finally:
            Image.MAX_IMAGE_PIXELS = usual
        if orient and image.format != "PNG":  # PIL would have to decode a PNG for it
            image.getexif()
    return image


def orientation(image: "Image") -> int:
    """Return how the EXIF of an image that is open and not decoded yet turns it, 2 to 8; 1: not, also if broken."""
    if image.format == "PNG" and "exif" not in image.info:  # PIL would have to decode it
        return 1
    with _header_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            stated = image.getexif().get(ORIENTATION, 1)
        except Exception:  # EXIF may hold anything, and PIL raises any error on it
            return 1
    return stated if stated in range(2, 9) else 1


def _too_many() -> str:
    most = f"{limit(LARGEST):,}, or {limit(LONGEST):,} a side,"
    return f"more than the {most} allowed; shrink it first, or raise all limits with {LIMITS}=10"


class _Memory:
    """The pixels of a PIL image where they are, for numpy: PIL stores four bytes for each, the fourth unused.

    Raises:
        ValueError, AttributeError: Pillow gives no access: it is older than 11.2, or the image is in several chunks.
    """

    def __init__(self, picture: "Image") -> None:
        self.picture = picture  # keeps the memory
        width, height = picture.size
        _, capsule = picture.__arrow_c_array__()
        values = _Arrow.from_address(_pointer(capsule, b"arrow_array")).children[0].contents
        if picture.mode != "RGB" or values.length != width * height * 4:
            raise ValueError("not four bytes for each pixel")
        self.__array_interface__ = {
            "version": 3,
            "data": (values.buffers[1], True),  # read only
            "shape": (height, width, 3),
            "strides": (width * 4, 4, 1),
            "typestr": "|u1",
        }


class _Arrow(ctypes.Structure):
    """`ArrowArray` of https://arrow.apache.org/docs/format/CDataInterface.html."""


_Arrow._fields_ = [
    *((name, ctypes.c_int64) for name in ("length", "null_count", "offset", "n_buffers", "n_children")),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(_Arrow))),
    *((name, ctypes.c_void_p) for name in ("dictionary", "release", "private_data")),
]
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


def as_pixels(picture: "Image") -> np.ndarray:
    """Return (H, W, 3) uint8 of an RGB image: PIL's own memory where it gives access, else a copy."""
    try:
        return np.asarray(_Memory(picture))
    except (ValueError, AttributeError):
        return np.asarray(picture) if picture.width * picture.height <= LARGE else _in_strips(picture)


def _in_strips(picture: "Image") -> np.ndarray:
    """Return the pixels of a large image, which numpy alone would copy twice at once."""
    pixels_HW3 = np.empty((picture.height, picture.width, 3), dtype=np.uint8)
    rows = max(1, LARGE // picture.width)
    for top in range(0, picture.height, rows):
        bottom = min(top + rows, picture.height)
        pixels_HW3[top:bottom] = np.asarray(picture.crop((0, top, picture.width, bottom)))
    return pixels_HW3


def as_picture(pixels_HW3: np.ndarray) -> "Image":
    """Return the PIL image of an array, without a copy where `read_image` returned the array. It is read-only."""
    from PIL import Image

    memory = pixels_HW3.base  # of a slice it is the array
    return memory.picture if isinstance(memory, _Memory) else Image.fromarray(pixels_HW3)


def _as_rgb(image: "Image") -> "Image":
    if image.mode == "RGB":
        return image
    if image.mode in ("I", "F"):
        raise ValueError("32-bit pixels have no agreed range from black to white; save it with 8 or 16 bits")
    if image.mode == "PA" or (
        image.mode == "P" and "transparency" in image.info
    ):  # by way of RGBA, or PIL warns about such palettes
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def _reason(error: Exception) -> str:
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, UnidentifiedImageError):
        return "PIL does not recognise the image format"
    if isinstance(error, Image.DecompressionBombError):
        return f"its pixels are {_too_many()}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error).strip().rstrip(".") or type(error).__name__
