"""What a checkpoint says about its own network, as plain values: nothing is built here.

A file describes itself if it is of one of our runs, which keeps its recipe, of `fourstage convert` or
`save_pretrained`, which write metadata, or of MMDetection or MMSegmentation, which keep their configuration.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from fourstage.methods import AUTO, BY_DATA, get_method
from fourstage.weights import saved
from fourstage.weights.reading import metadata
from fourstage.weights.reading.safe import Checkpoint

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class NetworkDescription:
    """A network, and how images reach it.

    Attributes:
        task: "classification", "detection", "segmentation", or "backbone" for a dense backbone alone.
        method: of a detector or segmentor, such as "mask_rcnn"; None elsewhere.
        backbone: the name of a network; of a classifier the network itself.
        classes: names in the order of the labels; None where the file has none.
        mean, std: of pixels from 0 to 1; None where the file does not say.
        evaluation: sizes of test images in pixels, as a recipe's section `evaluation` has them.
        over_valid: of a segmentor: its loss is the mean over pixels that have a label.
        palette: red, green, blue of each class; None where the file does not say.
        imports: Python files that the recipe of a run names. They are never run for a checkpoint.
    """

    task: str
    backbone: str
    num_classes: int
    backbone_args: Mapping[str, Any] = field(default_factory=dict)
    method: str | None = None
    method_args: Mapping[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    over_valid: bool = False
    palette: tuple[Colour, ...] | None = None
    imports: tuple[str, ...] = ()


ATTRIBUTE = "network_description"  # of a network that `api.py` has built


def remember(network: nn.Module, description: NetworkDescription) -> nn.Module:
    """Return a network that knows how it was built, so that `save_pretrained` can write it."""
    if isinstance(network, nn.Module):  # a user's own function may return anything; who uses it says so
        setattr(network, ATTRIBUTE, description)
    return network


def description_of(network: nn.Module) -> NetworkDescription | None:
    """Return how a network was built; None for one that `api.py` has not built."""
    found = getattr(network, ATTRIBUTE, None)
    return found if isinstance(found, NetworkDescription) else None


def describe_network(file: Checkpoint) -> NetworkDescription | None:
    """Return the network that a file describes; None where it describes none.

    Raises:
        ValueError: the description is damaged, or is of a network that cannot be built here.
    """
    if "fourstage_format" in file.metadata:
        return saved.network_of(file) if saved.ENTRY in file.metadata else _of_converted(file)
    if file.content.get("fourstage") == 1 and "recipe" in file.content:
        return _of_run(file)
    from fourstage.weights.complete_checkpoints import network_of_tensors  # these import this module
    from fourstage.weights.openmmlab.network import network_of_checkpoint

    return network_of_checkpoint(file) or network_of_tensors(file)


def _of_converted(file: Checkpoint) -> NetworkDescription:
    """Return the network of a file that `fourstage convert` wrote."""
    name, form = file.metadata.get("model"), file.metadata.get("form")
    if not name:
        raise metadata.damaged(file.path, f"model is {name!r}")
    if form not in ("classifier", "dense"):
        raise metadata.damaged(file.path, f"form is {form!r:.40}")
    arguments = metadata.arguments_of(file.metadata, name, file.path)
    if form == "dense":
        return NetworkDescription(task="backbone", backbone=name, num_classes=0, backbone_args=arguments)
    count = arguments.pop("num_classes", None)
    if type(count) is not int or count < 1:
        raise metadata.damaged(file.path, f"arguments.num_classes is {count!r:.40}")
    classes = file.classes
    if "classes" in file.metadata and len(classes or ()) != count:
        named = "is not a list of names" if classes is None else f"has {len(classes)} names"
        raise metadata.damaged(file.path, f"classes {named}, and arguments.num_classes is {count}")
    return NetworkDescription(
        task="classification",
        backbone=name,
        num_classes=count,
        backbone_args=arguments,
        classes=None if classes is None else tuple(classes),
    )


def _of_run(file: Checkpoint) -> NetworkDescription:
    """Return the network that a run trained, by the recipe in its checkpoint."""
    recipe, about = (_mapping(file, file.content.get(key) or {}, key) for key in ("recipe", "about"))
    task, classes = recipe.get("task"), file.classes
    if task not in ("classification", "detection", "segmentation") or not classes:
        raise ValueError(f"{file.path} is damaged (recipe.task is {task!r:.40}); give another checkpoint of the run")
    if not isinstance(imports := recipe.get("imports") or (), list | tuple):
        raise ValueError(
            f"{file.path} is damaged (recipe.imports is {imports!r:.40}); give another checkpoint of the run"
        )
    of_backbone = "model" if task == "classification" else "backbone"
    arguments = _mapping(file, recipe.get(f"{of_backbone}_args", {}), f"recipe.{of_backbone}_args")
    if task == "classification" and "image_size" in recipe:
        arguments = {"img_size": recipe["image_size"], **arguments}
    return NetworkDescription(
        task=task,
        backbone=_text(file, recipe, of_backbone),
        num_classes=len(classes),
        backbone_args=arguments,
        method=None if task == "classification" else _text(file, recipe, "method"),
        method_args={} if task == "classification" else _method_args(file, recipe, about),
        classes=tuple(classes),
        imports=tuple(map(str, imports)),
    )


def _method_args(file: Checkpoint, recipe: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a run's method. Data without masks trained a network of boxes alone.

    Where the recipe has "auto", the value followed from the run's data, and the checkpoint has it.
    """
    written = _mapping(file, recipe.get("method_args", {}), "recipe.method_args")
    chosen = {name: about.get(name) for name in BY_DATA if written.get(name) == AUTO}
    given = {name: value for name, value in {**written, **chosen}.items() if value is not None}  # null: the default
    method = get_method(_text(file, recipe, "method"))
    maskable = method is not None and method.without_masks is not None
    return {"masks": False, **given} if maskable and about and not about.get("masks", True) else given


def _mapping(file: Checkpoint, value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"{file.path} is damaged ({where} is {value!r:.40}); give another checkpoint of the run")
    return {str(key): one for key, one in value.items()}


def _text(file: Checkpoint, recipe: Mapping[str, Any], key: str) -> str:
    if not isinstance(value := recipe.get(key), str):
        raise ValueError(f"{file.path} is damaged (recipe.{key} is {value!r:.40}); give another checkpoint of the run")
    return value
