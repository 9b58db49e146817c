"""Images on their way into a network: files, addresses, and the images of PIL, numpy and torch. H x W pixels."""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import numpy as np

from fourstage.data.errors import BadImage
from fourstage.data.images import LARGEST_FILE, decode_image, pixels_of, read_image
from fourstage.files import limit

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

WAIT = 30.0  # seconds without a byte from a server
SCHEMES = ("http://", "https://")
ANY_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True)
class InputImage:
    """One image that is to be predicted, before it is read.

    Attributes:
        name: its path or address, or its number among the images that were given.
        title: the text above a drawing.
        read: returns the pixels, (H, W, 3) uint8 RGB. Raises BadImage where they cannot be read.
        readable_again: whether another call of `read` reads a file, so that the pixels need not be kept.
        frame: the number of a video's frame, from 0.
        seconds: the time of that frame.
    """

    name: str
    title: str
    read: Callable[[], np.ndarray]
    readable_again: bool = False
    frame: int | None = None
    seconds: float | None = None

    def with_pixels(self, pixels_HW3: np.ndarray) -> "InputImage":
        """Return the same image with pixels that are read already."""
        return replace(self, read=in_memory(pixels_HW3))


def from_file(path: Path, *, orient: bool) -> InputImage:
    """Return the image of a file, rotated by its EXIF data if `orient`. It is read from any working directory."""
    read = partial(read_image, path.absolute(), orient=orient)
    return InputImage(str(path), path.name, read, readable_again=True)


def in_memory(pixels_HW3: np.ndarray) -> Callable[[], np.ndarray]:
    """Return a function that returns the pixels. No lambda, so that a result can be pickled for another process."""
    return partial(np.asarray, pixels_HW3)


def copied(pixels_HW3: np.ndarray) -> Callable[[], np.ndarray]:
    """Return a function that copies pixels of the caller, who may fill the same memory with the next image."""
    return partial(np.array, pixels_HW3, order="C", subok=False)


def is_address(text: object) -> bool:
    """Return whether a text is the address of a file on a web server."""
    return isinstance(text, str) and text.lower().startswith(SCHEMES)


def is_other_address(text: str) -> bool:
    """Return whether a text is an address of another kind than those that are read, such as ftp://."""
    return not is_address(text) and ANY_SCHEME.match(text) is not None


def from_address(address: str, *, orient: bool) -> InputImage:
    """Return the image at an address. It is fetched once, when it is read.

    Raises:
        BadAddress: it is not an address.
    """
    try:
        title = Path(urlsplit(address).path).name or address
    except ValueError as error:
        raise BadAddress(address, str(error)) from None
    return InputImage(address, title, partial(_fetched, address, orient))


def from_pil(image: "Image", number: int, *, orient: bool) -> InputImage:
    """Return an image of PIL, rotated by its EXIF data if `orient`, as its file would be."""
    name = str(getattr(image, "filename", "") or _numbered(number))
    return InputImage(name, Path(name).name, partial(pixels_of, image, name, orient=orient))


def from_array(array: np.ndarray, number: int) -> InputImage:
    """Return the image of an array.

    Raises:
        ValueError: it is not (H, W, 3) uint8 with at least one pixel. Nothing is guessed, because a wrong order of axes
            or colours gives wrong predictions without a warning.
    """
    needed = "(H, W, 3) uint8, RGB"
    if array.ndim == 3 and array.shape[2] != 3 and array.shape[0] == 3:
        raise _refused(array, needed, "change the order of its axes with image.transpose(1, 2, 0)")
    if array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 1):
        raise _refused(array, needed, "repeat the grey values with np.repeat(image.reshape(H, W, 1), 3, axis=2)")
    if array.ndim == 3 and array.shape[2] == 4:
        raise _refused(array, needed, "leave the transparency out with image[..., :3]")
    if array.ndim == 4:
        raise _refused(array, needed, "give several images as a list: list(images)")
    if array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise _refused(array, needed, "give an image with at least one pixel and three colours")
    if array.dtype != np.uint8:
        hint = "(image * 255).round().astype(np.uint8)" if array.dtype.kind == "f" else "image.astype(np.uint8)"
        raise _refused(
            array, needed, f"convert values that go from 0 to {1 if array.dtype.kind == 'f' else 255}: {hint}"
        )
    return InputImage(_numbered(number), _numbered(number), copied(array))


def is_tensor(value: object) -> "TypeGuard[Tensor]":
    """Return whether a value is a tensor. Where torch is not imported, none is, and it may not be installed."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def from_tensor(tensor: "Tensor", number: int) -> InputImage:
    """Return the image of a tensor: (3, H, W), uint8 or floats from 0 to 1, RGB; floats are rounded to bytes.

    Raises:
        ValueError: another shape or type, or values outside of 0 to 1, as of an image that is normalised already.
    """
    import torch

    needed = "(3, H, W) RGB, uint8 or floats from 0 to 1"
    if tensor.is_meta or tensor.layout != torch.strided:
        hint = "give one with values" if tensor.is_meta else "change it with image.to_dense()"
        raise _refused(tensor, f"dense, {needed}", hint)
    if tensor.ndim != 3 or tensor.shape[0] != 3 or 0 in tensor.shape:
        last = tensor.ndim == 3 and tensor.shape[2] == 3
        hint = "change the order of its axes with image.permute(2, 0, 1)" if last else "convert it to RGB"
        raise _refused(tensor, needed, hint)
    pixels_3HW = tensor.detach().cpu()
    if pixels_3HW.is_floating_point():
        low, high = float(pixels_3HW.min()), float(pixels_3HW.max())
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"{_numbered(number)} has values from {low:.3g} to {high:.3g}, and floats of a tensor go from 0 to 1; "
                f"give it before it is normalised, or as uint8"
            )
        pixels_3HW = (pixels_3HW.float() * 255).round().to(torch.uint8)
    elif pixels_3HW.dtype != torch.uint8:
        raise _refused(tensor, needed, "convert values that go from 0 to 255: image.to(torch.uint8)")
    return InputImage(_numbered(number), _numbered(number), copied(pixels_3HW.permute(1, 2, 0).numpy()))


def _numbered(number: int) -> str:
    return f"image {number}"


def _refused(value: "np.ndarray | Tensor", needed: str, hint: str) -> ValueError:
    kind, dtype = ("a tensor" if is_tensor(value) else "an array"), str(value.dtype).removeprefix("torch.")
    return ValueError(
        f"{kind} of shape {tuple(value.shape)} and type {dtype} is not an image, which is {needed}; {hint}"
    )


def _fetched(address: str, orient: bool) -> np.ndarray:
    """Fetch an image. Raises BadImage where the server does not send one, or one of too many bytes."""
    most = limit(LARGEST_FILE)
    try:
        with urlopen(Request(address, headers={"User-Agent": "fourstage"}), timeout=WAIT) as answer:
            content = answer.read(most + 1)
    except HTTPError as error:
        error.close()
        raise BadAddress(address, f"HTTP {error.code} {error.reason}") from error
    except (URLError, HTTPException, OSError, ValueError) as error:
        raise BadAddress(address, str(getattr(error, "reason", error)) or type(error).__name__) from error
    if len(content) > most:
        raise BadAddress(address, f"it has more than the {most:,} bytes allowed")
    return decode_image(content, address, orient=orient)


class BadAddress(BadImage):
    """An address from which no image came."""

    SENTENCE = "{path} could not be fetched ({reason}); check the address, or download the image and give its path"
