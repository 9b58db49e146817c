"""Files that a prediction writes bit by bit: they get their names when they are whole."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from fourstage.data.class_names import category_ids


@contextmanager
def set_aside(path: Path) -> Iterator[Path]:
    """The name of a file to write, which takes that of `path` at the end. It vanishes if anything goes wrong before.

    Raises:
        OSError: the folder cannot be written; says what to do.
    """
    aside = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    make_folder(path.parent)
    try:
        yield aside
        with aside.open("rb+") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Raise OSError, with a sentence, if there is no such folder and none can be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"{folder} cannot be made ({error.strerror}); choose another --out") from None


class JsonRows:
    """A file of JSON values, written one by one.

    Args:
        path: of the file.
        whole: as one JSON list; without it each value has a line of its own.
    """

    def __init__(self, path: Path, *, whole: bool) -> None:
        self.path, self.rows = path, 0
        self._aside, self._between = set_aside(path), ",\n" if whole else "\n"
        self._ends = ("[", "]\n") if whole else ("", "\n")
        self._file: IO[str] | None = None

    def __enter__(self) -> Self:
        self._file = self._aside.__enter__().open("w", encoding="utf-8")
        self._file.write(self._ends[0])
        return self

    def add(self, value: Mapping[str, Any]) -> None:
        assert self._file is not None
        try:
            self._file.write((self._between if self.rows else "") + json.dumps(value))
        except OSError as error:
            raise OSError(f"{self.path} could not be written ({error.strerror}); free space and start again") from None
        self.rows += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        try:
            with self._file:
                self._file.write(self._ends[1])
        except OSError as failed:
            self._aside.__exit__(type(failed), failed, None)
            raise OSError(f"{self.path} could not be written ({failed.strerror}); free space and start again") from None
        self._aside.__exit__(kind, error, trace)


class CocoResults(JsonRows):
    """Detections in COCO's results format, a row each; what names an image and a class comes along.

    Args:
        classes: of the labels.
        ids: the number of each. None: COCO's own classes have COCO's numbers, others count from 1.
    """

    def __init__(self, path: Path, classes: Sequence[str], ids: Sequence[int] | None = None) -> None:
        super().__init__(path, whole=True)
        self._classes, self._ids = tuple(classes), tuple(ids or category_ids(tuple(classes)))

    def put(self, image_id: int, name: str, objects: Sequence[Mapping[str, Any]], **more: object) -> None:
        """Add what was found in one image.

        Args:
            objects: `label`, `score`, `box` (x1 y1 x2 y2, pixels), perhaps `mask`.
            more: said of each of them.
        """
        for one in objects:
            x1, y1, x2, y2 = one["box"]
            row = {
                "image_id": image_id,
                "file_name": name,
                **more,
                "category_id": self._ids[one["label"]],
                "category": self._classes[one["label"]],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": one["score"],
            }
            self.add(row | ({"segmentation": one["mask"]} if "mask" in one else {}))
