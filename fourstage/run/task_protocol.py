"""What a run asks of a task: one class with defaults, and one subclass for each task in `run/tasks`."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeAlias, TypeVar, cast

from fourstage.api import create_backbone, load_checkpoint
from fourstage.data.sample import Batch, Dataset, Sample, Truth
from fourstage.recipe import Recipe
from fourstage.run.checks import check_same_classes, check_truth
from fourstage.run.complete_checkpoints import classes_in, recipe_with_weights
from fourstage.run.published import takes_those_of_timm, weights_file
from fourstage.run.results import Record, Results
from fourstage.tasks.classification import Classification
from fourstage.tasks.detection.task import Detection
from fourstage.tasks.segmentation.task import Segmentation
from fourstage.user_files import import_files
from fourstage.weights.complete_checkpoints import fill_completely
from fourstage.weights.reading.safe import read_checkpoint

AnyTask: TypeAlias = Classification | Detection | Segmentation
Records = Mapping[str, Record]  # by the sample's id
Transform = Callable[[Sample], Sample]
Mix = Callable[[Batch], Batch]
Scores = Callable[[Records], dict[str, float]]

R = TypeVar("R", bound=Recipe)
T = TypeVar("T", bound=AnyTask)

PROTOCOLS = {
    "classification": "fourstage.run.tasks.classification.ClassificationProtocol",
    "detection": "fourstage.run.tasks.detection.DetectionProtocol",
    "segmentation": "fourstage.run.tasks.segmentation.SegmentationProtocol",
}


def _leave_unchanged(task: object) -> None:
    pass


def _no_scores(records: Records) -> dict[str, float]:
    return {}


@dataclass(frozen=True)
class EvaluationData:
    """The data that a checkpoint is evaluated on, before any image is read, and how to score it."""

    dataset: Dataset
    expect: dict[str, float]  # numbers that were published for exactly this data
    prepare: Callable[[Any], None] = _leave_unchanged  # sets on the task what it needs to know about the data
    extra_scores: Scores = _no_scores  # metrics of this data beside the task's own
    notes: tuple[str, ...] = ()


class TaskProtocol(ABC, Generic[R, T]):
    """Everything that differs between tasks in a run of one recipe.

    A verb makes one with `protocol_of(recipe)` and passes it along. A subclass sets the class attributes, defines the
    abstract methods, and overrides a default only where its task differs.

    Attributes:
        truth: what the task learns from, a name of `Sample`.
        missing_truth: what data without that truth lacks, such as "no boxes"; for a message.
        data_example: data that has it; for the same message.
        class_columns: columns of the table with the results of each class, with their decimal places.
        results: where the predictions of an evaluation go.
    """

    truth: ClassVar[Truth]
    missing_truth: ClassVar[str]
    data_example: ClassVar[str]
    class_columns: ClassVar[tuple[tuple[str, int], ...]]
    results: ClassVar[type[Results]]

    def __init__(self, recipe: R) -> None:
        self.recipe = recipe

    # ---------------------------------------------------------------------------------------------- network and weights

    @abstractmethod
    def build_task(self, classes: tuple[str, ...], metadata: Mapping[str, Any] | None = None) -> T:
        """Build the recipe's network for these classes, as a task with fresh weights.

        Args:
            metadata: what `dataset_metadata` returned for the training data.
        """

    def load_initial_weights(self, task: T, weights: str) -> str:
        """Fill the network from the weights that a recipe starts from; return a line that reports it."""
        if takes_those_of_timm(self.recipe):
            return self._load_weights_of_timm(task)
        path = weights_file(self.recipe, weights)
        return f"starting from {load_checkpoint(task.network, path, fresh_head=True)}"

    def _load_weights_of_timm(self, task: T) -> str:
        recipe: Any = self.recipe
        try:
            source = create_backbone(recipe.backbone, pretrained=True, **recipe.backbone_args)
        except OSError as error:
            raise OSError(
                f"{recipe.backbone} has weights that could not be fetched ({' '.join(str(error).split()):.200}); give "
                f"a file of timm's, weights=FILE, or type weights=none to train from scratch"
            ) from error
        cast(Any, task.network).backbone.load_state_dict(source.state_dict())
        return f"starting from {recipe.backbone}, by timm"

    def load_weights(self, task: T, weights: str | Path, which: str) -> None:
        """Fill a task from a checkpoint that must fit it completely."""
        file = read_checkpoint(weights)
        fill_completely(task.network, file, which)
        check_same_classes(weights, file, task.classes)

    @classmethod
    def from_name(cls, name: str, weights: str | Path | None) -> tuple[Self, T]:
        """Build a named network with its weights.

        Args:
            name: a recipe by name or file; for classification, the name of a model.
            weights: the checkpoint; None: the published one.
        """
        recipe, file, metadata = recipe_with_weights(name, weights)
        import_files(recipe.imports)
        protocol = cls(cast(R, recipe))
        task = protocol.build_task(classes_in(file, recipe), metadata)
        fill_completely(task.network, file)
        return protocol, task

    # ------------------------------------------------------------------------------------------------------------- data

    def check_data(self, dataset: Dataset) -> None:
        """Raise ValueError unless the data has the truth that the task learns from and the recipe's classes."""
        check_truth(self.recipe, dataset, self.truth, self.missing_truth, self.data_example)

    def dataset_metadata(self, dataset: Dataset) -> dict[str, Any]:
        """Return what the task needs to know about its data beside the classes, as JSON; checkpoints keep it."""
        return {}

    def metadata_lines(self, classes: tuple[str, ...], metadata: Mapping[str, Any]) -> tuple[str, ...]:
        """Return a line for each value of the recipe that was fitted to the data, as `dataset_metadata` found it."""
        return ()

    def data_notes(self, dataset: Dataset) -> tuple[str, ...]:
        """Return one sentence for each way in which this training data changes what the recipe's name promises."""
        return ()

    def count_training_images(self, dataset: Dataset) -> int:
        """Return how many images the recipe learns from, as far as that is known before an image is read."""
        return len(dataset)

    def training_data(self, dataset: Dataset) -> Dataset:
        """Return the training images that the recipe learns from. Raises ValueError when none is left."""
        return dataset

    def batch_groups(self, dataset: Dataset) -> bytes:
        """Return one byte per image; a batch holds images of one value. Empty: any images share a batch."""
        return b""

    # ---------------------------------------------------------------------------------------------- images on their way

    @abstractmethod
    def train_transform(self) -> Transform:
        """Return what happens to a training image and its truth."""

    @abstractmethod
    def evaluation_transform(self) -> Transform:
        """Return what happens to a validation image and its truth."""

    @property
    def size_divisor(self) -> int:
        """The number that height and width of a training batch are padded to a multiple of."""
        return 1

    @property
    def repeats(self) -> int:
        """How many times in a row each training image comes, differently augmented."""
        return 1

    def mixing(self, classes: int, batch_size: int) -> Mix | None:
        """Return what mixes the images of a training batch, or None."""
        return None

    # ------------------------------------------------------------------------------------------------------- evaluation

    @abstractmethod
    def open_evaluation(self, weights: str | Path, which: str, *, show: bool) -> EvaluationData:
        """Return the data for evaluating a checkpoint. Raises ValueError for data that the task cannot be scored on."""

    def class_names(self, task: T) -> Sequence[str]:
        """Return the names of the task's classes for a person."""
        return task.classes

    @abstractmethod
    def write_report_samples(self, folder: Path, task: T, val: Dataset, records: Records) -> None:
        """Write the pictures that a report shows, and the predictions for them, into a run folder."""


AnyProtocol: TypeAlias = TaskProtocol[Any, Any]


def protocol_of(recipe: Recipe) -> AnyProtocol:
    """Return the task protocol of a recipe; imports the module of its task now."""
    return protocol_class(recipe.task)(recipe)


def protocol_class(task: str) -> type[AnyProtocol]:
    """Import the protocol class of a task."""
    module, _, name = PROTOCOLS[task].rpartition(".")
    return getattr(import_module(module), name)
