"""Result files that a prediction writes row by row; they get their names when they are complete."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from fourstage.data.class_names import category_ids
from fourstage.files import atomic_path, csv_cell
from fourstage.resources import full_disk_text, is_disk_full


def make_folder(folder: Path) -> None:
    """Create a folder. Raises OSError with the option to change where that is not possible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"{folder} cannot be created ({error.strerror}); choose another --out") from None


class Rows:
    """A text file that is written row by row.

    Args:
        path: the file; it gets this name when it is complete.
        between: what separates two rows.
        ends: what comes before the first row and after the last one.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, between: str, ends: tuple[str, str]) -> None:
        self.path, self.rows = path, 0
        self._new: AbstractContextManager[Path] = atomic_path(path)
        self._between, self._ends = between, ends
        self._file: IO[str] | None = None

    def __enter__(self) -> Self:
        make_folder(self.path.parent)
        try:
            self._file = self._new.__enter__().open("w", encoding="utf-8")
        except OSError as error:
            raise self._not_written(error) from None
        self._file.write(self._ends[0])
        return self

    def write(self, row: str) -> None:
        assert self._file is not None
        try:
            self._file.write((self._between if self.rows else "") + row)
        except OSError as error:
            raise self._not_written(error) from None
        self.rows += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        try:
            with self._file:
                self._file.write(self._ends[1])
        except OSError as failed:
            self._new.__exit__(type(failed), failed, None)
            raise self._not_written(failed) from None
        self._new.__exit__(kind, error, trace)

    def _not_written(self, error: OSError) -> OSError:
        reason = full_disk_text(self.path.parent, error) if is_disk_full(error) else error.strerror
        return OSError(f"{self.path} could not be written: {reason}; free space and start again")


class JsonRows(Rows):
    """A file of JSON values, written one by one.

    Args:
        as_list: write one JSON list; else each value has a line of its own.
    """

    def __init__(self, path: Path, *, as_list: bool) -> None:
        super().__init__(path, *((",\n", ("[", "]\n")) if as_list else ("\n", ("", "\n"))))

    def add(self, value: Mapping[str, Any]) -> None:
        self.write(json.dumps(value))


class ClassResults(Rows):
    """The most probable class of each image: a CSV of file, class and score, or a JSON list with more classes.

    Args:
        path: a name that ends in .csv or .json.
    """

    def __init__(self, path: Path) -> None:
        self._as_json = path.suffix.lower() == ".json"
        super().__init__(path, *((",\n", ("[", "]\n")) if self._as_json else ("", ("file,class,score\n", ""))))

    def put(self, name: str, top: Sequence[tuple[str, float]]) -> None:
        """Add an image, with its classes and their probabilities, best first."""
        (best, score), *_ = top
        if self._as_json:
            every = [{"class": one, "score": probability} for one, probability in top]
            self.write(json.dumps({"file": name, "class": best, "score": score, "top": every}))
        else:
            self.write(csv_row([name, best, f"{score:.6f}"]) + "\n")


def csv_row(cells: Sequence[str]) -> str:
    """Return a line of CSV, see `csv_cell`; bytes of a name that are no UTF-8 become U+FFFD."""
    text = io.StringIO()
    clean = (cell.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for cell in cells)
    csv.writer(text, lineterminator="").writerow(map(csv_cell, clean))
    return text.getvalue()


class CocoResults(JsonRows):
    """Detections in COCO's results format, one row each, with the names of image and class added.

    Args:
        classes: class names, in the order of the labels.
        ids: the category id of each class; detections of a class without one are left out. None: COCO's ids for COCO's
            own classes, else ids from 1.

    Attributes:
        left_out: how many detections were left out.
    """

    def __init__(self, path: Path, classes: Sequence[str], ids: Sequence[int | str | None] | None = None) -> None:
        super().__init__(path, as_list=True)
        self._classes, self._ids = tuple(classes), tuple(ids or category_ids(tuple(classes)))
        self.left_out = 0

    def put(self, image_id: int | str, name: str, objects: Iterable[Mapping[str, Any]], **more: object) -> None:
        """Add the detections in one image.

        Args:
            objects: `label`, `score`, `box` (x1 y1 x2 y2, pixels), perhaps `mask`.
            more: further columns of each row.
        """
        for one in objects:
            if self._ids[one["label"]] is None:
                self.left_out += 1
                continue
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
