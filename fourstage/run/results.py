"""`fourstage evaluate --results`: the predictions of an evaluation, with the data's own ids and numbers."""

import os
import re
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from fourstage.data.sample import Dataset
from fourstage.engine.devices import Ranks
from fourstage.engine.task import Record
from fourstage.files import MARK, real_path, write_file
from fourstage.predict.outputs import ClassResults, CocoResults

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


class Results(ABC):
    """Where the predictions of an evaluation go.

    Attributes:
        suffixes: endings that the path may have; empty: it is a folder.
    """

    suffixes: ClassVar[tuple[str, ...]]

    def __init__(self, path: Path) -> None:
        self.path = path

    def check(self, keep: Iterable[str | Path] = ()) -> None:
        """Raise ValueError unless the results can be written; they may replace none of the files to keep."""
        if self.path.suffix.lower() not in self.suffixes:
            raise ValueError(
                f"--results {self.path} must end in {' or '.join(self.suffixes)}, the format that this task writes"
            )
        check_new_file(self.path, "--results", keep)

    @contextmanager
    def opened(self, task: Any, dataset: Dataset, ranks: Ranks) -> Generator[None]:
        """Receive the predictions of `task` while it predicts; all processes call this."""
        yield

    @abstractmethod
    def write(self, task: Any, dataset: Dataset, records: Mapping[str, Record]) -> None:
        """Write the records of all processes. The first process calls this, within `opened`."""


class ClassFile(Results):
    """The most probable class of each image; see `ClassResults`."""

    suffixes = (".csv", ".json")

    def write(self, task: Any, dataset: Dataset, records: Mapping[str, Record]) -> None:
        with ClassResults(self.path) as rows:
            for _, id, record in _in_order(dataset, records):
                rows.put(id, [(task.classes[label], score) for label, score in record["top"]])


class CocoFile(Results):
    """Detections in COCO's results format. Images without ids are counted from 1, in the order of the data."""

    suffixes = (".json",)

    def write(self, task: Any, dataset: Dataset, records: Mapping[str, Record]) -> None:
        ids = tuple(getattr(dataset, "category_ids", ()))
        with CocoResults(self.path, task.classes, ids or None) as rows:
            for number, id, record in _in_order(dataset, records):
                truth = record["truth"]
                columns = [record["labels"], record["scores"], record["boxes"]]
                objects: list[dict[str, Any]] = [
                    {"label": label, "score": score, "box": box} for label, score, box in zip(*columns, strict=True)
                ]
                for one, mask in zip(objects, record.get("masks", ()), strict=False):  # boxes alone have no masks
                    one["mask"] = {"size": list(truth["size"]), "counts": mask}
                rows.put(truth.get("image_id", number), id, objects)


class LabelMapFolder(Results):
    """A grey PNG for each image, whose pixels are class numbers as the data's own label maps store them.

    The folder gets its name when all of it is written. Classes that the data has no number for become 255.
    """

    suffixes = ()

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._new, self._failed = path, ""
        self._stored_C = np.zeros(0, np.uint8)

    def check(self, keep: Iterable[str | Path] = ()) -> None:
        if (suffix := self.path.suffix).lower() in (".csv", ".json"):
            raise ValueError(
                f"--results {self.path} is named like a file, and label maps need a folder; leave out {suffix}"
            )
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"--results {self.path} is a file, and label maps need a folder; choose another name")
        if self.path.is_dir() and any(self.path.iterdir()):
            raise ValueError(f"--results {self.path} holds files already; empty it, or choose another folder")
        _check_writable(self.path, "--results")

    @contextmanager
    def opened(self, task: Any, dataset: Dataset, ranks: Ranks) -> Generator[None]:
        _check_names(dataset)
        self._stored_C = np.array(getattr(dataset, "stored_values", range(len(task.classes))), dtype=np.uint8)
        self._new = Path(self._make_folder(ranks))
        held = _hold(self._new) if ranks.first else None
        task.on_label_map = self._write_map
        try:
            yield
            if ranks.any(bool(self._failed)):
                raise OSError(self._failed or f"another process could not write into {self.path}; its message says why")
            if ranks.first:
                self._new.replace(self.path)
        finally:
            task.on_label_map = None
            if ranks.first:
                shutil.rmtree(self._new, ignore_errors=True)
            if held is not None:
                os.close(held)

    def write(self, task: Any, dataset: Dataset, records: Mapping[str, Record]) -> None:
        """Do nothing: every label map was written when it was predicted."""

    def _make_folder(self, ranks: Ranks) -> str:
        """Create the folder that is renamed at the end, in the first process. Returns its path in all of them."""
        made: dict[str, str] = {}
        if ranks.first:
            new = self.path.with_name(f".{self.path.name}.{os.urandom(6).hex()}{MARK}")
            try:
                _remove_abandoned(self.path)
                new.mkdir()
                made = {"folder": str(new)}
            except OSError as error:
                made = {
                    "error": f"{self.path} cannot be created ({error.strerror}); choose another place for --results"
                }
        made = ranks.gather(made)
        if "error" in made:
            raise OSError(made["error"])
        return made["folder"]

    def _write_map(self, id: str, labels_HW: Tensor) -> None:
        """Write one label map. An error is raised at the end, where the other processes do not wait for this one."""
        if not id or self._failed:  # a batch without an image of the data
            return
        from PIL import Image

        path = self._new / _map_name(id)
        picture = Image.fromarray(self._stored_C[labels_HW.cpu().numpy()])
        try:
            if not real_path(path).is_relative_to(real_path(self._new)):
                raise OSError(f"{id} would be written outside of {self.path}; move the image into the data folder")
            path.parent.mkdir(parents=True, exist_ok=True)
            write_file(path, lambda file: picture.save(file, "PNG"))
        except OSError as error:
            self._failed = str(error)


def _map_name(id: str) -> Path:
    return Path(id).with_suffix(".png")


def _check_names(dataset: Dataset) -> None:
    """Raise ValueError where two images would have one label map."""
    first: dict[Path, str] = {}
    for index in range(len(dataset)):
        id = dataset.id(index)
        if (other := first.setdefault(_map_name(id), id)) != id:
            raise ValueError(f"{other} and {id} would both be written as {_map_name(id)}; rename one of the two images")


def _hold(folder: Path) -> int | None:
    """Lock a folder until the handle is closed or this process ends, also when it is killed; None: it is in use.

    Also None where the system or the file system has no such locks.
    """
    if fcntl is None:
        return None
    handle = None
    try:
        handle = os.open(folder, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        if handle is not None:
            os.close(handle)
        return None
    return handle


def _remove_abandoned(path: Path) -> None:
    """Remove unfinished folders of this name that killed processes left."""
    name = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{12}}{re.escape(MARK)}")
    for folder in path.parent.iterdir():
        if not name.fullmatch(folder.name) or folder.is_symlink() or not folder.is_dir():
            continue
        if (held := _hold(folder)) is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(held)


def _in_order(dataset: Dataset, records: Mapping[str, Record]) -> Generator[tuple[int, str, Record]]:
    """Yield each image that was evaluated in the order of the data: its number from 1, its id, its record."""
    for index in range(len(dataset)):
        if (id := dataset.id(index)) in records:
            yield index + 1, id, records[id]


def check_new_file(path: Path, option: str, keep: Iterable[str | Path] = ()) -> Path:
    """Return `path` if a file can be written there. Raises ValueError, also if `path` is one of the files to keep."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give {option} the name of a file in it")
    if path.exists() and any(Path(other).exists() and path.samefile(other) for other in keep):
        raise ValueError(f"{path} is the file to be evaluated; give {option} another name")
    _check_writable(path, option)
    return path


def _check_writable(path: Path, option: str) -> None:
    """Raise ValueError unless the folder of `path` can be written: what is written gets its name by renaming."""
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent):
            return
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error.strerror}); choose another place for {option}") from None
