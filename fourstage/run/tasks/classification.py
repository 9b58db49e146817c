"""What a run asks of classification."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from fourstage.api import create_model
from fourstage.backbones.base import crop_mode_of
from fourstage.build import fetch_into_cache
from fourstage.data.formats import find_format
from fourstage.data.labels import imagenet_variants as imagenet
from fourstage.data.sample import Dataset, Sample
from fourstage.data.transforms.classification import eval_transform, train_transform
from fourstage.data.transforms.mixing import Mixing
from fourstage.recipe import EMBEDDED
from fourstage.recipe import Classification as ClassificationRecipe
from fourstage.resources import is_out_of_memory
from fourstage.run.checkpoint_classes import among_imagenet, could_be_imagenet, in_classes_of, in_imagenet
from fourstage.run.checks import check_same_classes, failed_on_image
from fourstage.run.described import NO_TRAINING, images_of
from fourstage.run.report_samples import drawn_evenly, keep
from fourstage.run.results import ClassFile
from fourstage.run.splits import open_split
from fourstage.run.task_protocol import (
    EvaluationData,
    Mix,
    Records,
    Scores,
    TaskProtocol,
    Transform,
)
from fourstage.tasks.classification import Classification, share_within
from fourstage.weights import imagenet22k
from fourstage.weights.load import head_classes, load_state
from fourstage.weights.reading.safe import Checkpoint, read_checkpoint

if TYPE_CHECKING:
    from PIL.Image import Image

SHOWN = 24  # pictures of right and of wrong predictions, each, that a run folder keeps


class ClassificationProtocol(TaskProtocol[ClassificationRecipe, Classification]):
    """Images with one class each; checkpoints of ImageNet's classes also know the test sets made for these."""

    truth = "label"
    missing_truth = "no class for each image"
    data_example = "a folder with train/<class>/*.jpg"
    results = ClassFile
    class_columns = (("count", 0), ("top1", 4), ("top5", 4), ("loss", 6))  # per cent, per cent, mean

    def build_task(self, classes: tuple[str, ...], metadata: Mapping[str, Any] | None = None) -> Classification:
        recipe = self.recipe
        torch.manual_seed(recipe.seed)
        arguments = {"img_size": recipe.image_size, **recipe.model_args}
        network = create_model(recipe.model, num_classes=len(classes), **arguments)
        _check_logits(network, recipe, len(classes))
        return Classification(network, classes, smoothing=recipe.augmentation.smoothing)

    def load_weights(self, task: Classification, weights: str | Path, which: str) -> None:
        file = read_checkpoint(weights)
        load_state(task.network, file.weights(which), source=Path(weights).name)
        check_same_classes(weights, file, task.classes)

    @classmethod
    def from_name(cls, name: str, weights: str | Path | None) -> tuple[Self, Classification]:
        if weights is None:
            fetch_into_cache(name, "predict")
        network: Any = create_model(name, weights is None, checkpoint_path=weights)
        classes = read_checkpoint(weights).classes if weights is not None else None
        config = images_of(network, name)
        values = {
            "name": name,
            "model": name,
            "image_size": config["input_size"][-1],
            "mean": config["mean"],
            "std": config["std"],
            "evaluation": {"crop_pct": config["crop_pct"], "crop_mode": crop_mode_of(config)},
            "optimisation": NO_TRAINING,
        }
        task = Classification(network, tuple(classes or _class_names(network.num_classes)))
        return cls(ClassificationRecipe.model_validate(values)), task

    def train_transform(self) -> Transform:
        a = self.recipe.augmentation
        return train_transform(
            self.recipe.image_size,
            scale=a.scale,
            ratio=a.ratio,
            hflip=a.hflip,
            color_jitter=a.color_jitter,
            auto_augment=a.auto_augment,
            reprob=a.reprob,
            remode=a.remode,
            recount=a.recount,
            **self._pixels(),
        )

    def evaluation_transform(self) -> Transform:
        e = self.recipe.evaluation
        return eval_transform(self.recipe.image_size, crop_pct=e.crop_pct, crop_mode=e.crop_mode, **self._pixels())

    def _pixels(self) -> dict[str, Any]:
        recipe = self.recipe
        return {"mean": recipe.mean, "std": recipe.std, "interpolation": recipe.interpolation}

    @property
    def repeats(self) -> int:
        return self.recipe.augmentation.repeats

    def mixing(self, classes: int, batch_size: int) -> Mix | None:
        a = self.recipe.augmentation
        if not a.mixes:
            return None
        if batch_size % 2:
            raise ValueError(
                f"mixing pairs images, but each process has a batch of {batch_size}, an odd number; choose another "
                f"batch_size, or turn mixing off with augmentation.mixup=0 augmentation.cutmix=0"
            )
        return Mixing(
            classes,
            mixup=a.mixup,
            cutmix=a.cutmix,
            prob=a.mixup_prob,
            switch_prob=a.mixup_switch_prob,
            mode=a.mixup_mode,
            smoothing=a.smoothing,
            cutmix_minmax=a.cutmix_minmax,
        )

    def open_evaluation(self, weights: str | Path, which: str, *, show: bool) -> EvaluationData:
        """Return the validation split, or a test set for ImageNet's classes where the checkpoint has these."""
        recipe, variant = self.recipe, _variant(self.recipe, weights, which)
        if variant is None:
            mapped = partial(_in_classes_of, file=read_checkpoint(weights), recipe=recipe, which=which)
            dataset = open_split(self, "val", show=show, mapped=mapped)
            among = among_imagenet(dataset)
            notes = (imagenet.among_note(among),) if among else ()
            expect = {} if among else dict(recipe.expect)
            return EvaluationData(dataset, expect, _limit_to(among), _real_score(recipe, dataset), notes)
        self.check_data(variant)
        limit = _limit_to(variant.among)
        if variant.own_validation:
            return EvaluationData(variant, dict(recipe.expect), limit, _real_score(recipe, variant))
        note = "not ImageNet's own validation images, so the published number does not apply" if recipe.expect else ""
        return EvaluationData(variant, {}, limit, notes=(note,) if note else ())

    def class_names(self, task: Classification) -> Sequence[str]:
        return imagenet.readable_names(task.classes)

    def write_report_samples(self, folder: Path, task: Classification, val: Dataset, records: Records) -> None:
        """Write small pictures of the most confident mistakes and of some right predictions."""

        def draw(sample: Sample, image_HW3: np.ndarray) -> "tuple[Image, dict[str, Any]]":
            return small(image_HW3), dict(records[sample.id])

        keep(folder, val, samples(records), draw)


def _limit_to(among: tuple[int, ...] | None) -> Callable[[Classification], None]:
    def limit(task: Classification) -> None:
        task.among = among

    return limit


def _real_score(recipe: ClassificationRecipe, dataset: Dataset) -> Scores:
    """Return the score `real` where the data has ImageNet-ReaL's labels; else no score."""
    valid = None if recipe.data in (None, *EMBEDDED) else imagenet.read_real(Path(str(recipe.data)), dataset)
    if valid is None:
        return lambda records: {}
    return lambda records: {"real": share_within(records, valid)}


def _variant(recipe: ClassificationRecipe, weights: str | Path, which: str) -> imagenet.Variant | None:
    """Return the recipe's data as a test set for ImageNet's 1000 classes; None where data or checkpoint differ."""
    if recipe.data in (None, *EMBEDDED) or recipe.num_classes not in (None, imagenet.CLASSES):
        return None
    folder = imagenet.find_variant(Path(str(recipe.data)))
    if folder is None or find_format(Path(str(recipe.data))).name != "ImageFolder":  # lists name their own classes
        return None
    file = read_checkpoint(weights)
    trained_by = file.content.get("recipe")
    if isinstance(trained_by, dict) and trained_by.get("data") == recipe.data:
        return None  # its own training data must not serve as a test set
    return imagenet.Variant(folder) if _knows_imagenet(recipe, file, which) else None


def _knows_imagenet(recipe: ClassificationRecipe, file: Checkpoint, which: str) -> bool:
    """Return whether a checkpoint has ImageNet's 1000 classes, or those of ImageNet-22K, which hold them."""
    if file.classes is not None:
        return tuple(file.classes) == imagenet.wnids()
    return _classes_of_head(recipe, file, which) in (imagenet.CLASSES, imagenet22k.CLASSES)


def _in_classes_of(dataset: Dataset, where: str, file: Checkpoint, recipe: ClassificationRecipe, which: str) -> Dataset:
    """Return a data set in the classes of a checkpoint; see `in_classes_of`."""
    few = len(dataset.classes) < imagenet.CLASSES
    if few and could_be_imagenet(dataset) and _knows_imagenet(recipe, file, which):
        return in_imagenet(dataset, where)
    return in_classes_of(dataset, where, file, recipe)


def _classes_of_head(recipe: ClassificationRecipe, file: Checkpoint, which: str) -> int | None:
    """Return the rows of the head of a checkpoint without class names; None where there is no head."""
    with torch.device("meta"):  # names without memory
        network = create_model(recipe.model, **{"img_size": recipe.image_size, **recipe.model_args})
    return head_classes(network, file.weights(which)) or None


def small(image_HW3: np.ndarray, side: int = 192) -> "Image":
    """Return a picture whose longer side has at most `side` pixels."""
    from PIL import Image

    picture = Image.fromarray(image_HW3)
    picture.thumbnail((side, side))
    return picture


def samples(records: Records) -> Sequence[str]:
    """Return ids of the most confident mistakes, and of right predictions drawn evenly over the data."""
    wrong = [id for id, record in records.items() if record["top"][0][0] != record["truth"]]
    wrong.sort(key=lambda id: (-records[id]["top"][0][1], id))  # the same order for any order of the records
    right = [id for id in sorted(records) if records[id]["top"][0][0] == records[id]["truth"]]
    return wrong[:SHOWN] + drawn_evenly(right, SHOWN)


def _check_logits(network: object, recipe: ClassificationRecipe, classes: int) -> None:
    """Raise ValueError unless one image becomes one row of logits: a user's own network may return anything."""
    if not isinstance(network, torch.nn.Module):
        raise ValueError(f"{recipe.model} returns a {type(network).__name__}; it must return a torch.nn.Module")
    if any(parameter.is_meta for parameter in network.parameters()):
        return  # there are no values; the network is built and checked again with memory
    try:
        with torch.inference_mode():
            output = network.eval()(torch.zeros(1, 3, recipe.image_size, recipe.image_size))
    except (RuntimeError, AssertionError, LookupError, TypeError) as error:  # of a user's own network, or of timm's
        if is_out_of_memory(error):
            raise
        raise ValueError(failed_on_image(recipe.model, (recipe.image_size, recipe.image_size), error)) from error
    network.train()
    if not isinstance(output, torch.Tensor) or output.shape != (1, classes):
        actual = (
            f"a tensor of shape {tuple(output.shape)}"
            if isinstance(output, torch.Tensor)
            else f"a {type(output).__name__}"
        )
        raise ValueError(
            f"a classification recipe needs logits of shape (1, {classes}) for one image, but {recipe.model} gives "
            f"{actual}; let its forward return (B, num_classes)"
        )


def _class_names(count: int) -> tuple[str, ...]:
    """Return ImageNet's names for 1000 classes, and numbers for any other count."""
    if count != 1000:
        return tuple(f"class {i}" for i in range(count))
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo()  # reads its tables when it is constructed
    return tuple(info.index_to_description(i) for i in range(count))
