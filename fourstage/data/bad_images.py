"""Images that cannot be read: find them once, and train without them."""

from collections.abc import Collection

import numpy as np

from fourstage.data.objects.dataset import ObjectSubset, has_objects
from fourstage.data.sample import BadImage, Dataset, Progress
from fourstage.data.subset import Subset
from fourstage.data.threads import map_in_threads


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
