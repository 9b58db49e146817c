"""A trained network that takes images in any form and returns typed results."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar, Union

from fourstage.data.errors import BadImage
from fourstage.plurals import plural
from fourstage.predict.base import PRECISIONS, ImagePredictor, ReadImage, ignore_progress
from fourstage.predict.images import InputImage
from fourstage.predict.inputs import Given, find_images
from fourstage.predict.results import Result
from fourstage.progress import Bar

if TYPE_CHECKING:
    import torch

Prediction: TypeAlias = Result | list[Result] | Iterator[Result]
Item = TypeVar("Item")


class Keeper(Protocol):
    """Saves a predictor's network with everything that it was loaded with."""

    def save(self, folder: str | Path, *, licence: str | None, overwrite: bool) -> Path: ...

    def push(
        self, repository: str, *, private: bool, token: str | None, licence: str | None, exist_ok: bool
    ) -> str: ...


class Predictor:
    """A network that is ready to predict; `fourstage.load` returns one.

    Args:
        task: predicts images, on its device.
        batch_size: images that pass the network together.
        precision: "float32", or "bfloat16" or "float16" for the operations that autocast runs in it.
        show: show a progress bar for the tiles of an image that has several.
        keeper: saves the network; None: it cannot be saved.

    Raises:
        ValueError: an unknown precision, or a batch of no images.
    """

    def __init__(
        self,
        task: ImagePredictor,
        *,
        batch_size: int = 1,
        precision: str = "float32",
        show: bool = False,
        keeper: Keeper | None = None,
    ) -> None:
        check_batch_size(batch_size)
        if precision not in PRECISIONS:
            raise ValueError(f"there is no precision {precision!r}; choose {', '.join(PRECISIONS)}")
        self.task, self.batch_size, self.precision, self.show = task, batch_size, precision, show
        self._keeper = keeper

    @property
    def network(self) -> Any:
        """The network itself, a torch module: a classifier, a detector or a segmentor. An exported file has none.

        Raises:
            ValueError: the predictor runs an exported file.
        """
        module = getattr(self.task, "module", None)
        if module is None:
            raise ValueError("an exported file is run by its runtime and has no torch network; load the run instead")
        return module.get_submodule("network")

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes; a label is a position in here."""
        return self.task.class_names

    @property
    def device(self) -> Union[str, "torch.device"]:
        """The device of the network."""
        return self.task.device

    def __call__(self, images: Given) -> Prediction:
        """Predict images.

        Args:
            images: a path, an http address, an image of PIL, an array (H, W, 3) uint8 RGB, or a tensor (3, H, W), RGB,
                uint8 or floats from 0 to 1. Several: a list of these, a folder, a pattern such as `photos/*.jpg`, or a
                tensor (B, 3, H, W). As a stream: a video, or an iterator.

        Returns:
            One result for one image; a list for several; for a stream an iterator, which predicts as it is read.

        Raises:
            ValueError, OSError: an image cannot be read, or what was given is no image.
        """
        inputs = find_images(images, orient=self.task.orient)
        if inputs.form == "stream":
            return self._read_stream(inputs.images)
        if inputs.form == "one":
            [result] = self._read_stream(inputs.images)
            return result
        return [_without_pixels(result, image) for image, result in self._pairs(inputs.images)]

    def stream(self, images: Given) -> Iterator[Result]:
        """Yield the results of images one by one, whatever was given; see `__call__`."""
        return self._read_stream(find_images(images, orient=self.task.orient).images)

    def each(self, images: Iterable[InputImage]) -> Generator[tuple[InputImage, Result | BadImage]]:
        """Yield every image with its result, or with the error where it cannot be read, in order.

        Each image is read before the next one is asked for: an iterator may give all of them in the same memory.
        """
        for some in _chunks(((image, _read(image)) for image in images), self.batch_size):
            results = iter(self._predict([one for _, one in some if isinstance(one, ReadImage)]))
            for image, one in some:
                yield image, one if isinstance(one, BadImage) else next(results)

    def save_pretrained(self, folder: str | Path, *, licence: str | None = None, overwrite: bool = False) -> Path:
        """Write the network into a folder that `fourstage.load` takes; see `fourstage.save_pretrained`."""
        return self._kept().save(folder, licence=licence, overwrite=overwrite)

    def push_to_hub(
        self,
        repository: str,
        *,
        private: bool = False,
        token: str | None = None,
        licence: str | None = None,
        exist_ok: bool = False,
    ) -> str:
        """Upload the network to `user/name` on Hugging Face's hub; see `fourstage.push_to_hub`."""
        return self._kept().push(repository, private=private, token=token, licence=licence, exist_ok=exist_ok)

    def _kept(self) -> Keeper:
        if self._keeper is None:
            raise ValueError(
                "this predictor has no network of torch to save, such as that of an exported file, which is shared as "
                "it is; load a run or a checkpoint with fourstage.load"
            )
        return self._keeper

    def _pairs(self, images: Iterable[InputImage]) -> Iterator[tuple[InputImage, Result]]:
        for image, result in self.each(images):
            if isinstance(result, BadImage):
                raise result
            yield image, result

    def _read_stream(self, images: Iterable[InputImage]) -> Iterator[Result]:
        return (result for _, result in self._pairs(images))

    def _predict(self, images: Sequence[ReadImage]) -> list[Result]:
        if not images:
            return []
        with self.task.in_precision(self.precision), self._bar(images[0].source.title):
            return self.task.predict(images)

    @contextmanager
    def _bar(self, title: str) -> Generator[None]:
        """Show the progress of tiles while an image is predicted."""
        if not (self.show and self.task.is_tiled):
            yield
            return
        with Bar(f"predicting {title}", 1) as bar:
            self.task.progress = lambda done, total: bar.of(done, total) if total > 1 else None
            try:
                yield
            finally:
                self.task.progress = ignore_progress

    def __repr__(self) -> str:
        classes = plural(len(self.class_names), "class", "classes")
        return f"Predictor({self.task.network_name}, {classes}, {self.device}, {self.precision})"


def check_batch_size(batch_size: object) -> None:
    """Raise ValueError unless it is a whole number from 1 on."""
    if not isinstance(batch_size, Integral) or isinstance(batch_size, bool) or int(batch_size) < 1:
        raise ValueError(f"batch_size is a number of images from 1 on; got {batch_size!r}")


def _chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    remaining = iter(items)
    while some := list(islice(remaining, size)):
        yield some


def _read(image: InputImage) -> ReadImage | BadImage:
    try:
        pixels_HW3 = image.read()
    except BadImage as error:
        return error
    return ReadImage(image.with_pixels(pixels_HW3), pixels_HW3)


def _without_pixels(result: Result, image: InputImage) -> Result:
    """Return a result that reads its file again where it can, so that the results of a folder do not fill memory."""
    return result.with_source(image) if image.readable_again else result
