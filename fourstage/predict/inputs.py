"""Everything that a predictor takes, as a stream of images that are read one by one."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from glob import has_magic
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, Union

import numpy as np

from fourstage.predict import videos
from fourstage.predict.files import find_inputs
from fourstage.predict.images import (
    InputImage,
    from_address,
    from_array,
    from_file,
    from_pil,
    from_tensor,
    in_memory,
    is_address,
    is_other_address,
    is_tensor,
)

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

Given: TypeAlias = Union[str, Path, "Image", np.ndarray, "Tensor", Iterable["Given"]]


@dataclass(frozen=True)
class Inputs:
    """Images to predict.

    Attributes:
        images: each once, in order.
        form: "one" image, "several" whose number is known, or a "stream": a video or an iterator.
    """

    images: Iterator[InputImage]
    form: str


def find_images(given: Given, *, orient: bool) -> Inputs:
    """Return the images that were given.

    Args:
        given: a path, an address, an image of PIL, an array (H, W, 3), a tensor (3, H, W) or (B, 3, H, W), a folder, a
            pattern such as `photos/*.jpg`, a video, or a list or an iterator of images.
        orient: rotate images by their EXIF data.

    Raises:
        ValueError, FileNotFoundError: nothing is there, or an array or a tensor is no image. A list is checked before
            the first of its images is predicted; the images of an iterator are checked one by one.
    """
    if isinstance(given, str | Path) and not is_address(given):
        return _of_path(str(given), orient)
    if is_tensor(given) and given.ndim == 4:
        given = list(given)
    if isinstance(given, list | tuple):
        images = [image for number, one in enumerate(given, 1) for image in _of_item(one, number, orient)]
        return Inputs(iter(images), "several")
    if isinstance(given, Iterator):
        numbered = enumerate(given, 1)
        return Inputs((image for number, one in numbered for image in _of_item(one, number, orient)), "stream")
    return Inputs(iter([_single(given, 1, orient)]), "one")


def _of_path(text: str, orient: bool) -> Inputs:
    path = Path(text)
    if is_other_address(text) and not path.exists():
        raise ValueError(f"{text} is an address that is not read; give one of http:// or https://, or a file")
    if path.is_dir() or not text or (not path.exists() and has_magic(text)):
        return _of_files([text], orient)
    if not path.is_file():
        raise FileNotFoundError(f"there is no image or video {text}; check the path")
    if videos.is_video_name(path.name):
        videos.read_properties(path)  # raises now for a file that is no video
        return Inputs(video_frames(path), "stream")
    return Inputs(iter([from_file(path, orient=orient)]), "one")


def _of_files(paths: Sequence[str], orient: bool) -> Inputs:
    """Return the images of files and folders. Videos among them are left to the caller, who names each alone."""
    found = find_inputs(paths)
    if films := [one for one in found if one.is_video]:
        raise ValueError(f"{films[0].path} is a video among images; give it alone: its frames come one by one")
    return Inputs(iter([from_file(one.path, orient=orient) for one in found]), "several")


def _of_item(one: object, number: int, orient: bool) -> Iterator[InputImage]:
    """Yield the image of one item of a list, or the images of a folder or a pattern."""
    if isinstance(one, str | Path) and not is_address(one):
        inputs = _of_path(str(one), orient)
        if inputs.form == "stream":
            raise ValueError(f"{one} is a video among images; give it alone: its frames come one by one")
        yield from inputs.images
    else:
        yield _single(one, number, orient)


def _single(one: object, number: int, orient: bool) -> InputImage:
    if isinstance(one, str):
        return from_address(one, orient=orient)
    if isinstance(one, np.ndarray):
        return from_array(one, number)
    if is_tensor(one):
        return from_tensor(one, number)
    from PIL.Image import Image

    if isinstance(one, Image):
        return from_pil(one, number, orient=orient)
    raise ValueError(
        f"an object of type {type(one).__name__} is not an image; give a path, an address, an image of PIL, an array "
        f"(H, W, 3) uint8, a tensor (3, H, W), or a list of these"
    )


def video_frames(path: Path) -> Iterator[InputImage]:
    """Yield the frames of a video as they are decoded.

    Raises:
        BadVideo: the file cannot be read as a video.
    """
    rate = videos.read_properties(path).rate
    for number, frame_HW3 in enumerate(videos.frames_of(path)):
        seconds = round(number / rate, 3)
        name, title = f"{path}#{number}", f"{path.name}  {seconds:.1f} s"
        yield InputImage(name, title, in_memory(frame_HW3), frame=number, seconds=seconds)
