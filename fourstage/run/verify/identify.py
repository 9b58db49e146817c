"""Which file of which source a checkpoint is, and the network that it fills."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from fourstage.api import build_of_file, create_backbone, create_detector, create_model, create_segmentor
from fourstage.build import fetched
from fourstage.files import is_hub_name
from fourstage.recipe import list_recipes, resolve
from fourstage.registry import find, list_models
from fourstage.weights import catalog, saved
from fourstage.weights.catalog import Weight
from fourstage.weights.complete_checkpoints import (
    count_classes,
    dense_writer_of,
    fill_completely,
    similar_networks,
)
from fourstage.weights.description import NetworkDescription, describe_network, description_of
from fourstage.weights.load import Report, head_classes, load_state, writer_of
from fourstage.weights.reading.download import hash_of
from fourstage.weights.reading.safe import Checkpoint, read_checkpoint


@dataclass(frozen=True)
class Identified:
    """A checkpoint and its network, with fresh weights.

    Attributes:
        weight: the row of the catalogue that the file is; `known_by` says how it was recognised.
        network: what the file should fill; `named_by` says where that comes from.
        described: how it was built.
    """

    file: Checkpoint
    sha256: str
    weight: Weight | None
    known_by: str
    network: nn.Module
    named_by: str
    described: NetworkDescription

    @property
    def is_complete(self) -> bool:
        """Whether the network is a detector or segmentor."""
        return self.described.method is not None

    @property
    def title(self) -> str:
        """Return the network in a few words."""
        forms = {"classification": "the classifier", "backbone": "the dense backbone"}
        described = self.described
        return f"{described.method or forms[described.task]} {'over ' if described.method else ''}{described.backbone}"

    def fill(self) -> Report:
        """Fill the network. Raises ValueError for a key of the file or of the network that has no counterpart."""
        if self.is_complete:
            return fill_completely(self.network, self.file)
        return load_state(self.network, self.file.weights(), source=self.file.path.name)

    def writer(self) -> str:
        """Return the program whose names the file has; "" where they are of none."""
        state = self.file.weights()
        return dense_writer_of(self.network, state) if self.is_complete else writer_of(self.network, state)


def identify(source: str | Path) -> Identified:
    """Return what a file, a folder, a repository of the hub or a row of the catalogue is.

    Raises:
        ValueError, OSError: there is no such source, it is no checkpoint, or it fits no network here.
    """
    path, row = _located(str(source))
    file = read_checkpoint(path)
    sha256 = hash_of(file.path)
    weight, known_by = (row, "the name that was given") if row is not None else _recognised(file, sha256)
    if weight is not None:
        network, described = _of_row(weight)
        return Identified(file, sha256, weight, known_by, network, f"catalogue, by its {known_by}", described)
    described = describe_network(file)
    if described is not None:
        network = build_of_file(described, file)
        return Identified(file, sha256, None, "", network, "description in the file", described)
    network = _of_keys(file)
    found = description_of(network)
    assert found is not None, "create_model and its like describe what they build"
    return Identified(file, sha256, None, "", network, "names and shapes in the file", found)


def _located(source: str) -> tuple[str | Path, Weight | None]:
    """Return the file of a source, and the row of the catalogue that it names."""
    path = Path(source)
    if path.exists() or is_hub_name(source):
        if (path / "recipe.yaml").is_file():
            return path / "checkpoints" / "best.pt", None
        return source, None
    model, tag = catalog.split(source)
    if model not in list_models():
        raise FileNotFoundError(
            f"there is no file {source}, and no published weights have this name; give a checkpoint, or a name such as "
            f"smt_tiny.in1k, see docs/checkpoints.md"
        )
    weight = catalog.find(find(model).name, tag)
    return fetched(weight, "verify"), weight


def _recognised(file: Checkpoint, sha256: str) -> tuple[Weight | None, str]:
    """Return the row that a file is, and how it was recognised."""
    if saved.ENTRY in file.metadata or "fourstage_format" in file.metadata or "fourstage" in file.content:
        return None, ""  # ours: the weights may have been trained on
    return catalog.of_file(file.path.name, sha256) or (None, "")


def _of_row(weight: Weight) -> tuple[nn.Module, NetworkDescription]:
    """Build the network of a row, as the recipe that trains it has it."""
    if weight.method is None:
        network = create_model(weight.model, **weight.network)
    else:
        arguments, settings = dict(weight.arguments), dict[str, Any]()
        if weight.recipe in list_recipes():
            recipe: Any = resolve(str(weight.recipe)).recipe
            arguments, settings = {**arguments, **recipe.backbone_args}, dict(recipe.method_args)
        create = create_segmentor if weight.data == "ade20k" else create_detector
        network = create(weight.method, weight.model, weight.num_classes, backbone_args=arguments, **settings)
    found = description_of(network)
    assert found is not None
    return network, found


def _of_keys(file: Checkpoint) -> nn.Module:
    """Build the network that the names and shapes of a file fit."""
    method, models = similar_networks(file)
    if not models:
        raise ValueError(
            f"{file.path} fits no network of `fourstage models`, and is not recognised by its name or sha256, so there "
            f"is nothing to verify; give a checkpoint of one of these networks"
        )
    state, name = file.weights(), models[0]
    if method is not None:
        create = {"detection": create_detector, "segmentation": create_segmentor}[method.task]
        return create(method.name, name, count_classes(state, method.task) or 80)
    classes = head_classes(create_model(name), state)
    return create_model(name, num_classes=classes) if classes else create_backbone(name)
