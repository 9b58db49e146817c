"""From the description of a network in a checkpoint to a recipe that predicts and evaluates with it."""

import re
from pathlib import Path
from typing import Any

from fourstage.data.class_names import names_of
from fourstage.recipe import Recipe, from_mapping
from fourstage.weights.description import NetworkDescription
from fourstage.weights.reading.metadata import check_numbers
from fourstage.weights.reading.safe import Checkpoint

MOST_EVALUATED = 8192  # pixels, of a side of the images that a recipe in a file evaluates
NO_TRAINING = {"batch_size": 2, "length": "1it", "lr": 1.0}  # a recipe has these values, and nothing uses them


def recipe_of(description: NetworkDescription, source: Path) -> Recipe:
    """Return the recipe of the detector or segmentor that a file describes.

    Args:
        source: the file, for the recipe's name and for messages.
    """
    values: dict[str, Any] = {
        "name": re.sub(r"\W", "_", source.stem) or "checkpoint",
        "task": description.task,
        "method": description.method,
        "method_args": dict(description.method_args),
        "backbone": description.backbone,
        "backbone_args": dict(description.backbone_args),
        "num_classes": description.num_classes,
        "evaluation": dict(description.evaluation),
        "optimisation": NO_TRAINING,
    }
    values |= {key: value for key in ("mean", "std") if (value := getattr(description, key)) is not None}
    values |= {"over_valid": description.over_valid} if description.task == "segmentation" else {}
    return from_mapping(values, str(source)).recipe


def is_training(recipe: Recipe) -> bool:
    """Return whether a recipe trains: one that is made for a file only predicts and evaluates."""
    return any(getattr(recipe.optimisation, key) != value for key, value in NO_TRAINING.items())


def check_recipe_of_file(recipe: Recipe, file: Checkpoint) -> None:
    """Raise ValueError where the recipe in a file has sizes that would fill any memory."""
    values = recipe.model_dump(mode="json")
    keys = ("model_args", "method_args", "backbone_args", "image_size", "num_classes")
    check_numbers({key: values[key] for key in keys if key in values}, file.path)
    check_numbers(values.get("evaluation"), file.path, most=MOST_EVALUATED)


def classes_of(description: NetworkDescription) -> tuple[str, ...]:
    """Return the names that the file has, or COCO's or ADE20K's by their number, or numbers."""
    return description.classes or names_of(description.num_classes, description.task)


def metadata_of(description: NetworkDescription) -> dict[str, Any]:
    """Return what the task needs to know about its data beside the classes; see `TaskProtocol.dataset_metadata`."""
    return {"palette": [list(colour) for colour in description.palette]} if description.palette else {}
