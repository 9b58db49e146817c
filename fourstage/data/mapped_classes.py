"""The labels of one data set in the classes of another: matched by the names of the classes, not by their positions.

Each file lists its classes in an order of its own. A validation split is therefore read in the classes of the training
split, and data that a checkpoint is evaluated on in the classes of the checkpoint.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from fourstage.data.objects.dataset import ObjectDataset, has_objects
from fourstage.data.sample import IGNORE, Dataset, Objects, Sample

LISTED = 8  # names in a message


class KnownClasses(NamedTuple):
    """The classes that labels are mapped onto."""

    names: tuple[str, ...]
    owner: str  # for messages, such as "the training split"


def map_classes(dataset: Dataset, where: str, known: KnownClasses, spell: Callable[[str], str] = str) -> Dataset:
    """Return the data set with its labels as positions in `known.names`; itself where it lists the same classes.

    A class of the data set that is not known is left out where the data set has no label of it.

    Args:
        where: names the data set in messages.
        spell: names that it turns into one text are one name.

    Raises:
        ValueError: the data set has labels of a class that is not known, or two classes of one name.
    """
    own, names = tuple(map(spell, dataset.classes)), tuple(map(spell, known.names))
    if own == names:
        return dataset
    table_C = match_names(own, where, KnownClasses(names, known.owner), used_labels(dataset))
    return by_table(dataset, table_C, known.names, _note(own, names, known.owner, where))


def match_names(own: tuple[str, ...], where: str, known: KnownClasses, used: set[int] | None) -> np.ndarray:
    """Return (C,) int64: for each name its position among those that are known, or -1.

    Args:
        used: positions of the names that must be known; None: all of them.

    Raises:
        ValueError: a name is not known, or comes twice.
    """
    for names, owner in ((own, where), known):
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(
                f"{owner} has two classes called {twice!r:.80}, so that its classes cannot be matched by name; give "
                "each its own name"
            )
    position = {name: label for label, name in enumerate(known.names)}
    if lacking := [name for i, name in enumerate(own) if name not in position and (used is None or i in used)]:
        raise ValueError(_lacking(lacking, where, known, all_numbered(own)))
    return np.array([position.get(name, -1) for name in own], dtype=np.int64)


def by_table(dataset: Dataset, table_C: np.ndarray, classes: tuple[str, ...], note: str) -> "Mapped":
    """Return the data set with the labels that a table gives its own labels; see `Mapped`."""
    if has_objects(dataset):
        return MappedObjects(dataset, table_C, classes, note)
    return Mapped(dataset, table_C, classes, note)


def used_labels(dataset: Dataset) -> set[int] | None:
    """Return the labels that occur in a data set; None where only reading all of its samples would show them."""
    if (labels_N := getattr(dataset, "labels_N", None)) is not None:
        return set(np.unique(labels_N).tolist())
    label_counts = getattr(dataset, "label_counts", None)
    return None if label_counts is None else set(np.flatnonzero(label_counts()).tolist())


def all_numbered(names: Sequence[str]) -> bool:
    """Return whether the names are mere numbers, which a data set without names gives its classes."""
    return all(name in (str(i), f"class {i}") for i, name in enumerate(names))


class Mapped:
    """A data set with its labels in other classes; the attributes of `Dataset` are those of the data set.

    Args:
        table_C: int64, the new label of each label; -1 where the label does not occur.
        classes: names, by the new labels.

    Attributes:
        listed: the new labels of the classes that the data set itself lists, ascending.
    """

    def __init__(self, dataset: Dataset, table_C: np.ndarray, classes: tuple[str, ...], note: str) -> None:
        self._dataset, self._table_C = dataset, table_C
        self.classes, self.truths = classes, dataset.truths
        self.listed = tuple(sorted(set(table_C[table_C >= 0].tolist())))
        self.note = " ".join(one for one in (getattr(dataset, "note", ""), note) if one)
        self.shard_sizes: tuple[int, ...] = getattr(dataset, "shard_sizes", ())
        if (labels_N := getattr(dataset, "labels_N", None)) is not None:
            self.labels_N: np.ndarray = table_C[labels_N]
        if (stored := getattr(dataset, "stored_values", None)) is not None:
            values = dict(zip(table_C.tolist(), stored, strict=True))
            self.stored_values = tuple(values.get(label, IGNORE) for label in range(len(classes)))
        if (palette := getattr(dataset, "palette", None)) is not None:
            own = {int(label): colour for label, colour in zip(table_C, palette, strict=True)}
            self.palette = (
                tuple(own[i] for i in range(len(classes))) if own.keys() >= set(range(len(classes))) else None
            )

    def __len__(self) -> int:
        return len(self._dataset)

    def id(self, index: int) -> str:
        return self._dataset.id(index)

    def sample(self, index: int) -> Sample:
        return self._mapped(self._dataset.sample(index))

    def _mapped(self, sample: Sample) -> Sample:
        table_C = self._table_C
        if sample.label is not None:
            sample = replace(sample, label=int(table_C[sample.label]))
        if sample.objects is not None:
            sample = replace(sample, objects=self._objects(sample.objects))
        if sample.reference is not None:
            sample = replace(sample, reference=self._reference(sample.reference))
        if sample.label_map_HW is not None:
            table_256 = torch.full((256,), IGNORE, dtype=torch.uint8)
            table_256[: len(table_C)] = torch.from_numpy(np.where(table_C < 0, IGNORE, table_C).astype(np.uint8))
            table_256[IGNORE] = IGNORE
            sample = replace(sample, label_map_HW=table_256[sample.label_map_HW.long()])
        return sample

    def _objects(self, objects: Objects) -> Objects:
        return replace(objects, labels_N=torch.from_numpy(self._table_C)[objects.labels_N])

    def _reference(self, reference: Any) -> dict[str, Any]:
        return {**reference, "labels": [int(self._table_C[label]) for label in reference["labels"]]}


class MappedObjects(Mapped):
    """A data set with objects in other classes; see `Mapped` and `ObjectDataset`.

    Attributes:
        category_ids: the data set's own id of each class, None for a class that it does not list; empty where it has
            no ids.
    """

    def __init__(self, dataset: ObjectDataset, table_C: np.ndarray, classes: tuple[str, ...], note: str) -> None:
        super().__init__(dataset, table_C, classes, note)
        self._of_objects = dataset
        self.has_masks, self.with_reference = dataset.has_masks, dataset.with_reference
        ids = tuple(getattr(dataset, "category_ids", ()))
        own = dict(zip(table_C.tolist(), ids, strict=True)) if ids else {}
        self.category_ids: tuple[Any, ...] = tuple(own.get(label) for label in range(len(classes))) if ids else ()

    def sizes(self, indices: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        return self._of_objects.sizes(indices)

    def counts(self) -> np.ndarray:
        return self._of_objects.counts()

    def path(self, index: int) -> Path:
        return self._of_objects.path(index)

    def objects(self, index: int) -> Objects:
        return self._objects(self._of_objects.objects(index))

    def reference(self, index: int) -> dict[str, Any]:
        return self._reference(self._of_objects.reference(index))


def _lacking(lacking: Sequence[str], where: str, known: KnownClasses, numbered: bool) -> str:
    """Return the message for names that are not known."""
    several = len(lacking) > 1
    close = get_close_matches(lacking[0], known.names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    do = "name its classes in classes.txt" if numbered else f"correct the name{'s' * several} or delete those labels"
    return (
        f"{where} has labels of the class{'es' * several} {_shown(lacking)}, which {known.owner} lacks: {hint}it has "
        f"{_shown(known.names)}; {do}"
    )


def _shown(names: Sequence[str]) -> str:
    text = ", ".join(f"{name!r:.80}" for name in names[:LISTED])
    return f"{text} and {len(names) - LISTED:,} more" if len(names) > LISTED else text


def _note(own: Sequence[str], names: Sequence[str], owner: str, where: str) -> str:
    """Return what differs between the two lists, as one sentence."""
    shared = [name for name in own if name in set(names)]
    order = [name for name in names if name in set(own)]
    differs = ["in another order"] if shared != order else []
    differs += [f"{len(shared):,} of {len(names):,}"] if len(shared) < len(names) else []
    differs += [f"{len(own) - len(shared):,} more without a label"] if len(shared) < len(own) else []
    return f"{where} lists the classes of {owner} differently ({', '.join(differs)}): labels are matched by name."
