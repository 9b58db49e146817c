"""Open a split to learn from or to score against: one function for training and for `data check`, which then agree."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from fourstage.data.formats import open_dataset
from fourstage.data.mapped_classes import KnownClasses, map_classes
from fourstage.data.sample import Dataset, Progress, Split, Truth

InClasses = Callable[[Dataset, str], Dataset]  # returns a data set in other classes; it is given its name for messages
SPLIT_WORDS: dict[Split, str] = {"train": "training", "val": "validation"}


def open_usable(
    data: str | Path,
    split: Split,
    *,
    truth: Truth | None = None,
    mapped: InClasses | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """Open one split; no image is read yet.

    Args:
        data, truth, progress: see `open_dataset`.
        mapped: returns the split in other classes; see `in_classes_of_training`.

    Raises:
        ValueError: the split cannot be opened, or nothing can be learnt from it or scored against it.
    """
    dataset = open_dataset(data, split, truth=truth, progress=progress)
    if truth is not None and truth not in dataset.truths:
        return dataset  # the task says what is missing
    if (refuse := getattr(dataset, "refuse_unlearnable", None)) is not None and len(dataset):
        refuse(split)
    return dataset if mapped is None else mapped(dataset, f"the {SPLIT_WORDS[split]} split of {data}")


def refuse_empty(dataset: Dataset, data: str | Path | None, split: Split) -> None:
    """Raise ValueError where a split has no image."""
    if not len(dataset):
        other = "" if split == "train" else "; or remove this empty split, and a tenth of the others is held out"
        raise ValueError(f"{data} has no images for {split}; add at least two for each class{other}")


def in_classes_of_training(train: Dataset) -> InClasses:
    """Return what reads a validation split in the classes of the training split, matched by name."""
    return partial(map_classes, known=KnownClasses(tuple(train.classes), "the training split"))
