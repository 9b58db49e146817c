"""From the description of a network in a checkpoint to a recipe that predicts and evaluates with it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from fourstage.api import CHECKPOINT_ENDINGS
from fourstage.data.class_names import names_of
from fourstage.files import is_hub_name
from fourstage.recipe import Recipe, from_mapping
from fourstage.weights import saved
from fourstage.weights.description import NetworkDescription, describe_network
from fourstage.weights.reading.metadata import check_numbers
from fourstage.weights.reading.safe import Checkpoint, read_checkpoint

MOST_EVALUATED = 8192  # pixels, of a side of the images that a recipe in a file evaluates
OF_IMAGES = ("input_size", "mean", "std", "crop_pct")  # keys of `default_cfg`
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


def checkpoint_of(source: str | Path, weights: str | Path | None) -> Checkpoint | None:
    """Return the checkpoint that a user names where a recipe or a run folder may be named; None: it is none.

    Raises:
        ValueError: it cannot be read, or `weights` names another one.
    """
    path = Path(source)
    if path.suffix in CHECKPOINT_ENDINGS and not path.exists() and not is_hub_name(str(source)):
        raise FileNotFoundError(f"there is no checkpoint {source}; check the path")
    is_file = path.is_file() and path.suffix not in (".yaml", ".yml")
    if not (is_file or (path.is_dir() and saved.is_folder(path)) or (is_hub_name(str(source)) and not path.exists())):
        return None
    if weights is not None:
        raise ValueError(f"{source} has its own weights; leave the other ones out, or name a recipe before them")
    return read_checkpoint(source)


def stored_values(file: Checkpoint, described: NetworkDescription | None = None) -> dict[str, Any]:
    """Return the values of the recipe by which a checkpoint is evaluated: its own, or one of its description.

    Args:
        described: the network, where it is known already.

    Raises:
        ValueError: it has none; says what to type.
    """
    stored = saved.stored_recipe(file)
    if stored is None:
        described = described or describe_network(file)
    if stored is None and described is not None and described.method is not None:
        stored = recipe_of(described, file.path).model_dump(mode="json")
    if stored is None:
        raise ValueError(
            f"{file.path} has no recipe that says how to evaluate it; type fourstage evaluate RECIPE --weights "
            f"{file.path} --data PATH"
        )
    return {**stored, "weights": None}


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


def images_of(network: nn.Module, name: str) -> Mapping[str, Any]:
    """Return how a network reads images: its `default_cfg`, as timm's networks have it.

    Raises:
        ValueError: it lacks some of that, as a network of one's own may; the message has what to write.
    """
    config = getattr(network, "default_cfg", None)
    if isinstance(config, Mapping) and all(key in config for key in OF_IMAGES):
        return config
    lacking = [key for key in OF_IMAGES if not isinstance(config, Mapping) or key not in config]
    example = 'network.default_cfg = {"input_size": (3, 224, 224), "mean": ..., "std": ..., "crop_pct": 0.875}'
    raise ValueError(
        f"{name} does not say how it reads images: its default_cfg lacks {', '.join(lacking)}; set {example} where it "
        f"is built, or name a run or a checkpoint of a run"
    )


def metadata_of(description: NetworkDescription) -> dict[str, Any]:
    """Return what the task needs to know about its data beside the classes; see `TaskProtocol.dataset_metadata`."""
    return {"palette": [list(colour) for colour in description.palette]} if description.palette else {}
