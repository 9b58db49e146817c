"""Data sets whose images each have an annotation file, which names objects and may say the size of the image.

I images, H x W pixels, C classes.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fourstage.data.images import read_image
from fourstage.data.objects.dataset import HeaderSizes, as_bad_objects
from fourstage.data.objects.table import ObjectTable, Row, refuse_unlearnable
from fourstage.data.sample import BadImage, Objects, Sample, Split


class AnnotationFiles(ABC):
    """One split of such a data set. A subclass finds and reads the files, then calls `_hold` with its rows.

    Attributes:
        has_masks: whether objects have masks.
        with_reference: whether samples carry their ground truth for scoring; only in the validation split.
        note: what is unusual; empty otherwise.
    """

    uncounted = ""  # why some objects do not count, for the message where none does

    def __init__(self, root: str | Path, split: Split, files: Sequence[Path], classes: tuple[str, ...]) -> None:
        self._root, self._files = Path(root), files
        self.classes, self.truths = classes, ("objects",)
        self.with_reference, self.note = split == "val", ""
        self._labels = {name: label for label, name in enumerate(classes)}

    def _hold(self, rows: Iterable[Row], stated: Sequence[tuple[int, int] | None]) -> None:
        """Keep the objects of all images, and the (H, W) that files say; None: a file says none."""
        self._stated = stated
        self._sizes = HeaderSizes(np.array([size or (-1, -1) for size in stated], dtype=np.int64).reshape(-1, 2))
        self._table = ObjectTable.of(rows, len(self._files))
        self.has_masks = self._table.has_masks

    def _label(self, position: int, name: str) -> int:
        if name not in self._labels:
            names = ", ".join(self.classes)
            raise ValueError(f"{self._files[position]} has a {name!r}, which is not a class of {names}")
        return self._labels[name]

    @abstractmethod
    def path(self, index: int) -> Path:
        """Return the image file."""

    def __len__(self) -> int:
        return len(self._files)

    def sizes(self, indices: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """(I, 2) int64: height and width of these images (None: of all); from headers where files say none."""
        return self._sizes.of(self, indices)

    def counts(self) -> np.ndarray:
        """(I,) int64: objects of each image, those that do not train too."""
        return self._table.counts_I.copy()

    def refuse_unlearnable(self, split: Split) -> None:
        """Raise ValueError where no object trains, or none counts in a score."""
        refuse_unlearnable(self._table, split, f"the {split} split of {self._root}", self.uncounted)

    def label_counts(self) -> np.ndarray:
        """(C,) int64: objects of each class, those that do not train too."""
        return self._table.label_counts(len(self.classes))

    def id(self, index: int) -> str:
        return self._files[index].relative_to(self._root).with_suffix("").as_posix()

    def sample(self, index: int) -> Sample:
        """Read one image and its objects. Raises BadImage, also when its size is not the one that its file says."""
        image_HW3, stated = read_image(self.path(index), orient=True), self._stated[index]
        size = (image_HW3.shape[0], image_HW3.shape[1])
        if stated not in (None, size):
            reason = f"it is {size[1]} x {size[0]}, but {self._files[index]} says {stated[1]} x {stated[0]}"
            raise BadImage(str(self.path(index)), reason)
        with as_bad_objects(self.path(index)):
            reference = self._table.reference(index, size, partial(self._where, index)) if self.with_reference else None
            objects = self._table.objects(index, size, partial(self._where, index))
        return Sample(self.id(index), image_HW3, size, objects=objects, reference=reference)

    def objects(self, index: int) -> Objects:
        """Return the objects of one image, in its pixels."""
        return self._table.objects(index, self._size(index), partial(self._where, index))

    def reference(self, index: int) -> dict[str, Any]:
        """Return the ground truth of an image; see `ObjectTable.reference`."""
        return self._table.reference(index, self._size(index), partial(self._where, index))

    def _size(self, index: int) -> tuple[int, int]:
        height, width = self.sizes([index])[0].tolist()
        return height, width

    def _where(self, index: int, name: Any) -> str:
        return f"{self._files[index]}, object {name}"
