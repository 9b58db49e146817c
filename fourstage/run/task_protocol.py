"""What a run asks of a task's own corner. A task is one module beside `classification`, and one row in KINDS."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast

from fourstage.data.sample import Batch, Dataset, Sample
from fourstage.recipe import Recipe
from fourstage.tasks.classification import Classification
from fourstage.tasks.detection.task import Detection
from fourstage.tasks.segmentation.task import Segmentation

if TYPE_CHECKING:
    from PIL.Image import Image

AnyTask: TypeAlias = Classification | Detection | Segmentation
Record = Mapping[str, Any]
Records = Mapping[str, Record]  # by the sample's id
Transform = Callable[[Sample], Sample]
Scores = Callable[[Mapping[str, Record]], dict[str, float]]

KINDS = {task: f"fourstage.run.tasks.{task}" for task in ("classification", "detection", "segmentation")}


def _nothing_to_tell(task: object) -> None:
    pass


def _no_scores(records: Mapping[str, Record]) -> dict[str, float]:
    return {}


@dataclass(frozen=True)
class Opened:
    """What a checkpoint is evaluated on, no image read yet, and how."""

    data: Dataset
    expect: dict[str, float]  # what was published for this very data
    tell: Callable[[Any], None] = _nothing_to_tell  # tells the task what it must know of the data
    further: Scores = _no_scores  # what this data can be scored by beside the task's own metrics
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Seen:
    """What a network saw in one image."""

    text: str  # for a person, one line
    values: dict[str, Any]  # for a program, as JSON has it
    pictures: "Callable[[], dict[str, Image]]"  # what its file's name ends in -> picture; "" is the one to look at


class Kind(Protocol):
    """What such a module has."""

    TRUTH: str  # what the task learns from, a name of `Sample`
    COLUMNS: tuple[tuple[str, int], ...]  # of the table with the results of each class, with decimal places

    def check_data(self, recipe: Recipe, dataset: Dataset) -> None:
        """Raise ValueError unless the data has the truth that the task learns from."""
        ...

    def about(self, dataset: Dataset) -> dict[str, Any]:
        """What the task must know of its data beside the classes, as JSON has it; checkpoints keep it."""
        ...

    def unusual(self, recipe: Recipe, dataset: Dataset) -> tuple[str, ...]:
        """What is other than the recipe's name says, because the training data is as it is; a sentence each."""
        ...

    def build_task(self, recipe: Recipe, classes: tuple[str, ...], about: Mapping[str, Any] | None = None) -> AnyTask:
        """The recipe's network for these classes, as a task with fresh weights."""
        ...

    def start_from(self, task: AnyTask, weights: str) -> str:
        """Fill the network from the checkpoint that a recipe starts from; returns what there is to say about it."""
        ...

    def transforms(self, recipe: Recipe) -> tuple[Transform, Transform]:
        """What happens to training and to validation images."""
        ...

    def for_training(self, recipe: Recipe, dataset: Dataset) -> Dataset:
        """The training images that the recipe learns from. Raises ValueError when none is left."""
        ...

    def groups(self, recipe: Recipe, dataset: Dataset) -> bytes:
        """A byte for each image; those of one value come in the same batch. Empty: any go together."""
        ...

    def divisor(self, recipe: Recipe) -> int:
        """Height and width of a training batch are multiples of it."""
        ...

    def mixing(self, recipe: Recipe, classes: int, part: int) -> Callable[[Batch], Batch] | None:
        """What happens to a whole batch of `part` images, if anything."""
        ...

    def repeats(self, recipe: Recipe) -> int:
        """So often each training image comes in a row."""
        ...

    def load(self, task: AnyTask, weights: str | Path, which: str) -> None:
        """Fill a task from a checkpoint that must fit it whole."""
        ...

    def named(self, model: str, weights: str | Path | None) -> tuple[Recipe, AnyTask]:
        """A published model with its weights, and how images reach it."""
        ...

    def open_evaluation(self, recipe: Recipe, weights: str | Path, which: str, *, show: bool) -> Opened:
        """What the checkpoint is to be evaluated on. Raises ValueError for data that the task cannot be scored on."""
        ...

    def class_names(self, task: AnyTask) -> Sequence[str]:
        """The task's classes for a person."""
        ...

    def keep_samples(self, folder: Path, task: AnyTask, recipe: Recipe, val: Dataset, records: Records) -> None:
        """Write the pictures that a report shows, and what was predicted for them, into a run's folder."""
        ...

    def see(self, task: AnyTask, recipe: Recipe, sample: Sample, title: str) -> Seen:
        """What the task, in evaluation mode on its device, sees in one image as it was read."""
        ...


def kind_of(recipe: Recipe) -> Kind:
    """The module of the recipe's task, imported now."""
    return import_kind(recipe.task)


def import_kind(task: str) -> Kind:
    return cast(Kind, import_module(KINDS[task]))
