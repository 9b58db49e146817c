"""Images that cannot be read: find them once and train without them, or put others in their place."""

from collections.abc import Callable, Collection

import numpy as np

from fourstage.data.objects.dataset import ObjectSubset, has_objects
from fourstage.data.sample import BadImage, Dataset, Progress, Sample
from fourstage.data.subset import Subset
from fourstage.data.threads import map_in_threads

TRIES = 100  # images in a row; where all of them cannot be read, a disk or a network folder is gone


def find_bad_images(dataset: Dataset, progress: Progress | None = None) -> dict[str, BadImage]:
    """Decode every image of a data set, and return the errors by the sample's id, in the order of the samples."""
    errors = map_in_threads(lambda index: _error(dataset, index), range(len(dataset)), progress)
    return {dataset.id(index): error for index, error in enumerate(errors) if error is not None}


def _error(dataset: Dataset, index: int) -> BadImage | None:
    try:
        dataset.sample(index)
    except BadImage as error:
        return error
    return None


def without(dataset: Dataset, ids: Collection[str]) -> Dataset:
    """Return `dataset` without the samples with these ids, such as the keys that `find_bad_images` returns."""
    kept_n = np.array([index for index in range(len(dataset)) if dataset.id(index) not in ids], dtype=np.int64)
    return ObjectSubset(dataset, kept_n) if has_objects(dataset) else Subset(dataset, kept_n)


def with_replacements(dataset: Dataset) -> Dataset:
    """Return a data set in which the next image that can be read takes the place of one that cannot.

    Length and order stay as they are, so that a training which meets such an image goes on with the same batches as
    before, but for those that would hold it. Where the images are scored, an image counts once, by its id.
    """
    all_n = np.arange(len(dataset), dtype=np.int64)
    return _ReplacedObjects(dataset, all_n) if has_objects(dataset) else _Replaced(dataset, all_n)


class _Replaced(Subset):
    """See `with_replacements`."""

    def sample(self, index: int) -> Sample:
        return _first_readable(super().sample, index, len(self))


class _ReplacedObjects(ObjectSubset):
    """See `with_replacements`."""

    def sample(self, index: int) -> Sample:
        return _first_readable(super().sample, index, len(self))


def _first_readable(read: Callable[[int], Sample], index: int, length: int) -> Sample:
    """Return the sample at a position, or the first behind it that can be read; the data set is a circle.

    Raises:
        BadImage: that of the position itself, if the next `TRIES` cannot be read either.
    """
    first: BadImage | None = None
    for step in range(min(length, TRIES)):
        try:
            return read((index + step) % length)
        except BadImage as error:
            first = first or error
    assert first is not None, "there is a sample at this position"
    raise first
