"""The share of pixels that each class has in a data set."""

from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from fourstage.data.sample import BadImage, Dataset
from fourstage.plurals import plural

IMAGES = 100  # that are read, at even distances
NAMED = 3  # classes in the line of a run
SMALLEST = 1e-3  # share of a class that is rarer, or absent from these images


def class_shares(dataset: Dataset) -> list[float] | None:
    """Return the share of pixels of each class, rounded, in label maps of some images; None: none can be read.

    Images that cannot be read are left out: checks of the data report them.
    """
    classes = len(dataset.classes)
    counts_C = np.zeros(classes, np.int64)
    for position in np.unique(np.linspace(0, len(dataset) - 1, IMAGES).astype(int)).tolist():
        with suppress(BadImage):
            label_map_HW = dataset.sample(position).label_map_HW
            assert label_map_HW is not None, "checked before"
            counts_C += np.bincount(label_map_HW.numpy().reshape(-1), minlength=256)[:classes]
    if not counts_C.any():
        return None
    return [round(max(float(share), SMALLEST), 4) for share in counts_C / counts_C.sum()]


def shares_line(classes: Sequence[str], prior: Sequence[float] | None) -> str:
    """Return the line on the shares with which the last layer begins, largest first."""
    if prior is None:
        return "prior equal: no label map can be read"
    ranked = sorted(zip(prior, classes, strict=True), key=lambda pair: -pair[0])
    named = ", ".join(f"{name} {100 * share:.3g} %" for share, name in ranked[:NAMED])
    more = f" and {plural(len(ranked) - NAMED, 'class', 'classes')} more" if len(ranked) > NAMED else ""
    return f"prior {named}{more}: shares of pixels in label maps of the training images"
