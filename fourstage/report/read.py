"""Read a run folder into typed values. Missing files give None or empty values; damaged files raise errors."""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from fourstage.documents import YAML_BYTES, parse_yaml, read_json
from fourstage.files import read_bytes, read_text, real_path
from fourstage.plurals import plural
from fourstage.run_folders import no_run

LOG_BYTES = 2**30  # of a log and of records


@dataclass(frozen=True, slots=True)
class TrainLine:
    """One logged training step. Numbers that were not logged are NaN."""

    step: int
    epoch: float
    total: float
    lr: float
    grad_norm: float
    images_per_second: float
    data_wait: float  # share of the time since the previous line, 0 to 1
    seconds: float  # since the run began


@dataclass(frozen=True, slots=True)
class EvaluationLine:
    """One logged evaluation."""

    step: int
    epoch: float
    which: str  # "model" or "ema"
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class ClassRow:
    """The accuracy of one class."""

    name: str
    count: int
    top1: float  # per cent; NaN where no image is of this class
    top5: float = math.nan
    loss: float = math.nan


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The last full evaluation."""

    step: int
    which: str
    metrics: dict[str, float]
    main_metric: str
    classes: tuple[str, ...]
    confusion: np.ndarray | None  # (C, C) int64, rows truth, columns prediction
    per_class: tuple[ClassRow, ...]
    confused: tuple[tuple[int, int, int], ...] = ()  # truth, prediction, count: where there is no `confusion`
    tables: Mapping[str, Any] = field(default_factory=dict)  # as in evaluation.json
    images: int = 0  # 0: of an older version, which did not write it
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # of 95 %, by metric
    interval_method: str = ""


@dataclass(frozen=True, slots=True)
class Records:
    """A summary of all predictions of the last evaluation."""

    count: int
    wrong: int
    confidence_when_right: float  # mean probability of the first guess; NaN when there is none
    confidence_when_wrong: float


@dataclass(frozen=True, slots=True)
class ClassifiedSample:
    """A classified image with its picture."""

    file: Path
    id: str
    truth: int
    top: tuple[tuple[int, float], ...]  # (label, probability), most probable first

    @property
    def right(self) -> bool:
        return bool(self.top) and self.top[0][0] == self.truth


@dataclass(frozen=True, slots=True)
class PredictionPicture:
    """A picture of ground truth and prediction, of detection and segmentation."""

    file: Path
    id: str
    about: Mapping[str, Any]  # the entry of index.json, whose keys depend on the task


@dataclass(frozen=True, slots=True)
class Run:
    """The contents of a run folder."""

    folder: Path
    recipe: dict[str, Any]
    recipe_text: str
    name: str
    source: str  # the argument of `fourstage train`: the name of a recipe, or a file
    changes: dict[str, tuple[Any, Any]]  # key -> (in the named recipe, in this run)
    environment: dict[str, Any]
    train: tuple[TrainLine, ...]
    evaluations: tuple[EvaluationLine, ...]
    seconds: float  # training time of the run; NaN when nothing was logged
    evaluation: Evaluation | None
    records: Records | None
    samples: tuple[ClassifiedSample, ...]  # of classification
    pictures: tuple[PredictionPicture, ...] = ()  # of detection and segmentation
    analyses: tuple[str, ...] = ()  # pages of `fourstage analyze` in this folder, such as analysis/erf/erf.html

    @property
    def title(self) -> str:
        """The name of the folder; several runs of one recipe differ in it."""
        return real_path(self.folder).name or self.name

    @property
    def images(self) -> int:
        """The number of images of the last full evaluation; 0: unknown."""
        known = self.evaluation.images if self.evaluation else 0
        return known or (self.records.count if self.records else 0)

    @property
    def task(self) -> str:
        return str(self.recipe.get("task", "classification"))

    @property
    def class_count(self) -> int:
        """The number of classes; 0: unknown."""
        return len(self.evaluation.classes) if self.evaluation else 0

    @property
    def step(self) -> int:
        """The last step in the log."""
        return max((line.step for line in (*self.train, *self.evaluations)), default=0)

    @property
    def steps_per_epoch(self) -> float:
        lines = [line for line in (*self.train, *self.evaluations) if line.epoch > 0]
        return lines[-1].step / lines[-1].epoch if lines else math.nan

    @property
    def finished(self) -> bool:
        return self.step > self.planned_steps() - 0.5

    def planned_steps(self) -> float:
        """Return the length of the recipe in steps; NaN when it is unknown."""
        optimisation = self.recipe.get("optimisation")
        length = optimisation.get("length") if isinstance(optimisation, Mapping) else self.recipe.get("length")
        match = re.fullmatch(r"([\d.]+)(ep|it)", str(length))
        if not match:
            return math.nan
        return float(match[1]) * (self.steps_per_epoch if match[2] == "ep" else 1)

    def label(self, index: int) -> str:
        """Return the name of a class, or its number when the names are unknown."""
        classes = self.evaluation.classes if self.evaluation else ()
        return classes[index] if 0 <= index < len(classes) else f"class {index}"


def read_run(folder: Path) -> Run:
    """Read a folder that `fourstage train` wrote.

    Raises:
        ValueError: the folder holds no recipe.yaml, or one of its files is damaged.
    """
    if not (folder / "recipe.yaml").is_file():
        raise ValueError(no_run(folder))
    with damage(folder):
        return _read_run(folder)


# What damaged or hostile values raise where numbers, lists and mappings are expected.
BROKEN = (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError, MemoryError)


@contextmanager
def damage(*folders: Path) -> Iterator[None]:
    """Turn what values of a wrong type raise into one sentence. Sentences that name a file already are kept."""
    try:
        yield
    except BROKEN as error:
        if any(str(folder) in str(error) for folder in folders):
            raise
        where = " or ".join(map(str, folders))
        raise ValueError(
            f"a file in {where} is damaged ({type(error).__name__}: {error!s:.100}); remove it, or restore the folder"
        ) from error


def _read_run(folder: Path) -> Run:
    recipe_text = read_text(folder / "recipe.yaml", YAML_BYTES)
    changes, log = _mapping(folder / "changes.json"), list(_lines(folder / "log.jsonl"))
    recipe = _recipe(folder / "recipe.yaml", recipe_text)
    name = str(recipe.get("name") or real_path(folder).name)
    classifies = recipe.get("task", "classification") == "classification"
    return Run(
        folder=folder,
        analyses=tuple(sorted(page.relative_to(folder).as_posix() for page in folder.glob("analysis/*/*.html"))),
        recipe=recipe,
        recipe_text=recipe_text,
        name=name,
        source=str(changes.get("recipe") or name),
        changes={str(key): (old, new) for key, (old, new) in (changes.get("changes") or {}).items()},
        environment=_mapping(folder / "environment.json"),
        train=tuple(_train(line) for line in log if line.get("kind") == "train"),
        evaluations=tuple(_evaluated(line) for line in log if line.get("kind") == "evaluation"),
        seconds=_seconds(log),
        evaluation=_evaluation(folder / "evaluation.json", classifies=classifies),
        records=_records(folder / "records.jsonl") if classifies else None,
        samples=_samples(folder / "samples") if classifies else (),
        pictures=() if classifies else _pictures(folder / "samples"),
    )


def number(value: object) -> float:
    """Return a logged number, which may be a string such as "NaN"; NaN for a value that was not logged."""
    if not isinstance(value, int | float | str):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan


def _recipe(path: Path, text: str) -> dict[str, Any]:
    recipe = parse_yaml(text, path)
    if not isinstance(recipe, dict):
        raise ValueError(
            f"{path} should hold the recipe's keys and values; got {type(recipe).__name__}; train into a new folder"
        )
    return recipe


def _read_json(path: Path) -> Any:
    try:
        return read_json(path)
    except ValueError as error:
        reason = str(error).removeprefix(f"{path} ").partition("; ")[0]
        raise ValueError(f"{path} is damaged ({reason}); remove it and write the report again") from error


def _mapping(path: Path) -> dict[str, Any]:
    content = _read_json(path) if path.is_file() else {}
    if not isinstance(content, dict):
        raise ValueError(f"{path} should hold a JSON object; got {type(content).__name__}; remove the file")
    return content


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of a file, one a line. An incomplete last line, which a killed run leaves, is skipped."""
    if not path.is_file():
        return
    *complete, rest = read_bytes(path, LOG_BYTES).split(b"\n")
    for i, line in enumerate([*complete, rest]):
        if not line.strip():
            continue
        try:
            yield _object(line)
        except (ValueError, RecursionError) as error:
            if i == len(complete):
                return
            raise ValueError(f"{path}, line {i + 1}, is damaged ({error}); remove that line") from error


def _object(line: bytes) -> dict[str, Any]:
    """Return the JSON object in a line of a log. Raises ValueError for anything else."""
    content = json.loads(line)
    if not isinstance(content, dict):
        raise ValueError("it is not a JSON object")
    return content


def _train(line: Mapping[str, Any]) -> TrainLine:
    timing = line.get("timing") or {}
    return TrainLine(
        step=int(line["step"]),
        epoch=number(line.get("epoch")),
        total=number(line.get("total")),
        lr=number(line.get("lr")),
        grad_norm=number(line.get("grad_norm")),
        images_per_second=number(timing.get("images_per_second")),
        data_wait=number(timing.get("data_wait")),
        seconds=number(timing.get("seconds")),
    )


def _evaluated(line: Mapping[str, Any]) -> EvaluationLine:
    metrics = {str(key): number(value) for key, value in (line.get("metrics") or {}).items()}
    return EvaluationLine(int(line["step"]), number(line.get("epoch")), str(line.get("which", "model")), metrics)


def _seconds(log: list[dict[str, Any]]) -> float:
    """Return the seconds from the start of the run to its last logged step."""
    times = [number((line.get("timing") or {}).get("seconds")) for line in log if line.get("kind") == "train"]
    return next((seconds for seconds in reversed(times) if math.isfinite(seconds)), math.nan)


def _evaluation(path: Path, *, classifies: bool) -> Evaluation | None:
    if not path.is_file():
        return None
    content = _mapping(path)
    tables = content.get("tables") or {}
    metrics = {str(key): number(value) for key, value in (content.get("metrics") or {}).items()}
    classes = tuple(str(name) for name in content.get("labels") or content.get("classes") or ())
    common = Evaluation(
        step=int(content.get("step", 0)),
        which=str(content.get("which", "model")),
        metrics=metrics,
        main_metric=str(content.get("main_metric") or next(iter(metrics), "top1" if classifies else "")),
        classes=classes,
        confusion=None,
        per_class=(),
        images=int(content.get("images", 0)),
        intervals={
            str(key): (number(low), number(high)) for key, (low, high) in (content.get("intervals") or {}).items()
        },
        interval_method=str(content.get("interval_method", "")),
    )
    if not classifies:
        return replace(common, tables=tables)
    return replace(
        common,
        confusion=_confusion(path, tables, len(classes)),
        per_class=tuple(_class_rows(tables, classes)),
        confused=tuple((int(a), int(b), int(n)) for a, b, n in tables.get("confused") or ()),
    )


def _confusion(path: Path, tables: Mapping[str, Any], classes: int) -> np.ndarray | None:
    if not tables.get("confusion"):
        return None
    confusion = np.asarray(tables["confusion"], dtype=np.int64)
    if confusion.shape != (classes, classes):
        raise ValueError(
            f"{path} names {plural(classes, 'class', 'classes')}, but its confusion table has the shape "
            f"{confusion.shape}; remove it"
        )
    return confusion


def _class_rows(tables: Mapping[str, Any], classes: Sequence[str]) -> Iterator[ClassRow]:
    for i, row in enumerate(tables.get("per_class") or ()):
        name = classes[i] if i < len(classes) else str(row["name"])
        yield ClassRow(name, int(row["count"]), *(number(row.get(key)) for key in ("top1", "top5", "loss")))


def _records(path: Path) -> Records | None:
    right, wrong = [], []
    for record in _lines(path):
        label, probability = (record.get("top") or [(None, math.nan)])[0]
        (right if label == record.get("truth") else wrong).append(number(probability))
    if not right and not wrong:
        return None
    mean = [float(np.mean(values)) if values else math.nan for values in (right, wrong)]
    return Records(len(right) + len(wrong), len(wrong), *mean)


def _samples(folder: Path) -> tuple[ClassifiedSample, ...]:
    if not (folder / "index.json").is_file():
        return ()
    samples = []
    for entry in _read_json(folder / "index.json"):
        top = tuple((int(label), number(probability)) for label, probability in entry["top"])
        file = folder / Path(entry["file"]).name  # a path that leads out of the folder is not followed
        if file.is_file():
            samples.append(ClassifiedSample(file, str(entry["id"]), int(entry["truth"]), top))
    return tuple(samples)


def _pictures(folder: Path) -> tuple[PredictionPicture, ...]:
    if not (folder / "index.json").is_file():
        return ()
    entries = [(folder / Path(entry["file"]).name, entry) for entry in _read_json(folder / "index.json")]
    return tuple(PredictionPicture(file, str(entry["id"]), entry) for file, entry in entries if file.is_file())
