"""The classes of a checkpoint, and data in them: an evaluation matches classes by name, as a training does."""

from functools import partial
from pathlib import Path

import numpy as np

from fourstage.data.labels.imagenet_variants import CLASSES, wnids
from fourstage.data.mapped_classes import KnownClasses, Mapped, all_numbered, by_table, map_classes, used_labels
from fourstage.data.sample import Dataset
from fourstage.recipe import Recipe
from fourstage.run.checks import simplified
from fourstage.run.complete_checkpoints import classes_in
from fourstage.run.splits import open_split
from fourstage.run.task_protocol import AnyProtocol
from fourstage.weights.reading.safe import Checkpoint, read_checkpoint


def open_in_classes_of(protocol: AnyProtocol, weights: str | Path, *, show: bool) -> Dataset:
    """Open the validation split of the recipe's data in the classes of a checkpoint; see `in_classes_of`."""
    file = read_checkpoint(weights)
    return open_split(protocol, "val", show=show, mapped=partial(in_classes_of, file=file, recipe=protocol.recipe))


def classes_of_run(file: Checkpoint) -> KnownClasses | None:
    """Return the classes of a checkpoint that a run of ours wrote; None for any other file."""
    if file.content.get("fourstage") is None or not file.classes:
        return None
    return KnownClasses(tuple(file.classes), str(file.path))


def in_classes_of(dataset: Dataset, where: str, file: Checkpoint, recipe: Recipe) -> Dataset:
    """Return a data set in the classes of a checkpoint.

    The names of a run's own checkpoint must be those of the data. Foreign checkpoints spell the names of published data
    in their own way, so case and underscores do not count, and data of equally many classes with other names is taken
    by the positions of its classes.

    Args:
        where: the data set, for messages.

    Raises:
        ValueError: the data set has labels of a class that the checkpoint lacks.
    """
    if (known := classes_of_run(file)) is not None:
        return map_classes(dataset, where, known)
    names = tuple(file.classes or ()) or _names_by_number(file, recipe)
    shared = {simplified(name) for name in dataset.classes} & {simplified(name) for name in names}
    complete = len(shared) == len(dataset.classes)
    if not shared or (len(names) == len(dataset.classes) and not complete):
        return dataset  # what does not fit is reported when the network is filled
    return map_classes(dataset, where, KnownClasses(names, str(file.path)), simplified)


def could_be_imagenet(dataset: Dataset) -> bool:
    """Return whether the classes of a data set have names of ImageNet's classes, or mere numbers."""
    return all_numbered(dataset.classes) or set(dataset.classes) <= set(wnids())


def in_imagenet(dataset: Dataset, where: str) -> Mapped:
    """Return a data set in ImageNet's 1000 classes: by their WordNet ids, or by their numbers where it has only these.

    Args:
        where: the data set, for messages.
    """
    own, by_name = tuple(dataset.classes), not all_numbered(dataset.classes)
    position = {name: label for label, name in enumerate(wnids())}
    table_C = np.array([position[name] for name in own]) if by_name else np.arange(len(own))
    listed = tuple(table_C.tolist()) if by_name else _numbers_of(dataset)
    beginning = f"{where} has {len(listed):,} of ImageNet's {CLASSES:,} classes: labels are matched by their "
    mapped = by_table(dataset, table_C, wnids(), f"{beginning}{'names' if by_name else 'numbers'}.")
    mapped.listed = tuple(sorted(listed))
    return mapped


def _numbers_of(dataset: Dataset) -> tuple[int, ...]:
    """Return the numbers of classes that occur in a data set without names; all where only one occurs, or is known."""
    used = used_labels(dataset) or set()  # the highest number alone does not show which classes there are
    return tuple(sorted(used)) if len(used) > 1 else tuple(range(CLASSES))


def among_imagenet(dataset: Dataset) -> tuple[int, ...] | None:
    """Return the labels among which a data set of some of ImageNet's classes is predicted, as `Variant` has them."""
    if not isinstance(dataset, Mapped) or dataset.classes != wnids():
        return None
    return dataset.listed if len(dataset.listed) < CLASSES else None


def _names_by_number(file: Checkpoint, recipe: Recipe) -> tuple[str, ...]:
    try:
        return () if recipe.task == "classification" else classes_in(file, recipe)
    except ValueError:
        return ()
