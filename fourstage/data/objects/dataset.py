"""What data sets with objects have beyond others, and subsets of them. I images, H x W pixels."""

from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeGuard

import numpy as np

from fourstage.data.images import open_image, orientation
from fourstage.data.sample import BadImage, Dataset, Objects
from fourstage.data.subset import Subset

SWAPS_SIDES = (5, 6, 7, 8)  # orientations in which width and height change places


class ObjectDataset(Dataset, Protocol):
    """A data set with boxes, perhaps with masks.

    Attributes:
        has_masks: whether its objects have masks.
        with_reference: whether samples carry their ground truth for scoring.
        note: one sentence about what is unusual; empty otherwise.
    """

    has_masks: bool
    with_reference: bool
    note: str

    def sizes(self, indices: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """(I, 2) int64: height and width of these images (None: of all), as they are shown.

        Raises BadImage where it takes the header of a file that cannot be read.
        """
        ...

    def counts(self) -> np.ndarray:
        """(I,) int64: annotations of each image, crowd regions and those that do not train too."""
        ...

    def path(self, index: int) -> Path:
        """The image file."""
        ...

    def objects(self, index: int) -> Objects:
        """The objects of one image, in its pixels."""
        ...

    def reference(self, index: int) -> dict[str, Any]:
        """The ground truth of an image; see `ObjectTable.reference`."""
        ...


class BadObjects(BadImage):
    """An image whose objects cannot be used. The message names the object and the reason."""

    SENTENCE: ClassVar[str] = "{reason}"


@contextmanager
def as_bad_objects(image: Path) -> Generator[None]:
    """Raise an object's error as one of its image, which a run can skip like a broken image."""
    try:
        yield
    except BadImage:
        raise
    except ValueError as error:
        raise BadObjects(str(image), str(error)) from error


def has_objects(dataset: Dataset) -> TypeGuard[ObjectDataset]:
    """Whether a data set is an `ObjectDataset`."""
    return "objects" in dataset.truths and hasattr(dataset, "counts")


class ObjectSubset(Subset):
    """Some images of a data set with objects, in the same order and with the same classes."""

    def __init__(self, dataset: ObjectDataset, indices_n: np.ndarray) -> None:
        super().__init__(dataset, indices_n)
        self._objects = dataset
        self.has_masks, self.with_reference = dataset.has_masks, dataset.with_reference
        self.category_ids: tuple[Any, ...] = tuple(getattr(dataset, "category_ids", ()))

    def sizes(self, indices: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        return self._objects.sizes(self._indices_n if indices is None else self._indices_n[indices])

    def counts(self) -> np.ndarray:
        return self._objects.counts()[self._indices_n]

    def path(self, index: int) -> Path:
        return self._objects.path(int(self._indices_n[index]))

    def objects(self, index: int) -> Objects:
        return self._objects.objects(int(self._indices_n[index]))

    def reference(self, index: int) -> dict[str, Any]:
        return self._objects.reference(int(self._indices_n[index]))


def trainable(
    dataset: ObjectDataset, *, filter_empty: bool = True, min_size: int = 32, skip_bad_images: bool = False
) -> ObjectDataset:
    """Return the data set without the images that MMDetection does not train on either.

    Args:
        filter_empty: leave out images without annotations. Those that have only crowd regions or broken boxes stay.
        min_size: leave out images with a shorter side below it, pixels; 0 keeps all.
        skip_bad_images: keep images whose header cannot be read, in whose place others come.

    Raises:
        ValueError: nothing is left.
        BadImage: the header of a file cannot be read.
    """
    large_I = np.ones(len(dataset), dtype=bool)
    if min_size > 0:
        shorter_I = _sizes(dataset, skip_bad_images).min(axis=1, initial=2**62)
        large_I = (shorter_I >= min_size) | (shorter_I < 0)
    kept_I = large_I & (dataset.counts() > 0) if filter_empty else large_I
    if len(dataset) and not kept_I.any():
        do = "add filter_empty=false to train on images without objects" if large_I.any() else "give larger ones"
        raise ValueError(
            f"none of the {len(dataset):,} images is left to train on: all are without objects or below {min_size} "
            f"pixels; {do}"
        )
    return dataset if kept_I.all() else ObjectSubset(dataset, np.flatnonzero(kept_I))


def portrait_flags(dataset: ObjectDataset, *, skip_bad_images: bool = False) -> bytes:
    """Return a byte for each image: 1 where it is higher than wide, else 0; `TrainPlan` groups by them.

    Args:
        skip_bad_images: return 0 for images whose header cannot be read; otherwise they raise BadImage.
    """
    height_I, width_I = _sizes(dataset, skip_bad_images).T
    return (width_I < height_I).astype(np.uint8).tobytes()


def _sizes(dataset: ObjectDataset, skip_bad_images: bool) -> np.ndarray:
    """(I, 2) int64: height and width of each image; where bad images are skipped, -1 for unreadable headers."""
    try:
        return dataset.sizes()
    except BadImage:
        if not skip_bad_images:
            raise
    return np.array([_known_size(dataset, index) for index in range(len(dataset))], dtype=np.int64)


def _known_size(dataset: ObjectDataset, index: int) -> tuple[int, int]:
    try:
        height, width = dataset.sizes([index])[0].tolist()
    except BadImage:
        return -1, -1
    return height, width


class HeaderSizes:
    """Height and width of image files as they are shown, each read from its header when it is first asked for.

    Args:
        sizes_I2: int64, pixels; negative where it is not known yet.
    """

    def __init__(self, sizes_I2: np.ndarray) -> None:
        self._sizes_I2 = sizes_I2

    def of(self, dataset: ObjectDataset, indices: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """(I, 2) int64, see `ObjectDataset.sizes`."""
        wanted_i = np.arange(len(self._sizes_I2)) if indices is None else np.asarray(indices, dtype=np.int64)
        unknown_i = wanted_i[self._sizes_I2[wanted_i, 0] < 0]
        if len(unknown_i):
            with ThreadPoolExecutor() as pool:
                self._sizes_I2[unknown_i] = list(pool.map(lambda i: _read_size(dataset.path(i)), unknown_i.tolist()))
        return self._sizes_I2[wanted_i]


def _read_size(path: Path) -> tuple[int, int]:
    with open_image(path, orient=True) as image:
        width, height = image.size
        return (width, height) if orientation(image) in SWAPS_SIDES else (height, width)
