"""What a run asks of a task's own corner. A task is one module beside `classification`, and one row in KINDS."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast

import numpy as np

from fourstage.data.sample import Batch, Dataset, Sample
from fourstage.recipe import Recipe
from fourstage.tasks.classification import Classification

if TYPE_CHECKING:
    from PIL.Image import Image

AnyTask: TypeAlias = Classification  # a union, as tasks join
Record = Mapping[str, Any]
Transform = Callable[[Sample], Sample]

KINDS = {"classification": "fourstage.run.classification"}


class Kind(Protocol):
    """The functions of such a module."""

    def check_data(self, recipe: Recipe, dataset: Dataset) -> None:
        """Raise ValueError unless the data has the truth that the task learns from."""
        ...

    def build_task(self, recipe: Recipe, classes: tuple[str, ...]) -> AnyTask:
        """The recipe's network for these classes, as a task with fresh weights."""
        ...

    def start_from(self, task: AnyTask, weights: str) -> str:
        """Fill the network from the checkpoint that a recipe starts from; returns what there is to say about it."""
        ...

    def transforms(self, recipe: Recipe) -> tuple[Transform, Transform]:
        """What happens to training and to validation images."""
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

    def samples(self, records: Mapping[str, Record]) -> Sequence[str]:
        """Ids of the samples whose pictures a report shows."""
        ...

    def draw(self, task: AnyTask, image: np.ndarray, record: Record, title: str) -> "Image":
        """One image with what was predicted for it."""
        ...

    def told(self, task: AnyTask, record: Record) -> tuple[str, dict[str, Any]]:
        """A prediction in one line for a person, and as values for JSON."""
        ...


def kind_of(recipe: Recipe) -> Kind:
    """The module of the recipe's task, imported now."""
    return import_kind(recipe.task)


def import_kind(task: str) -> Kind:
    return cast(Kind, import_module(KINDS[task]))
