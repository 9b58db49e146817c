"""`save_pretrained`: a trained network as a folder that loads again, bit for bit, here or through timm.

The folder has `model.safetensors` (weights and description), `config.json` (the same description, with what timm reads)
and `README.md` (the model card).
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fourstage.api import fresh_network
from fourstage.backbones.base import Backbone
from fourstage.backbones.feature_maps import FeatureMaps
from fourstage.files import check_no_links, is_unfinished, real_path, write_file, write_text
from fourstage.plurals import plural
from fourstage.predict.predictor import Predictor
from fourstage.recipe import EMBEDDED, Recipe, is_name_of_weights
from fourstage.run import computation
from fourstage.run.convert import write_safetensors
from fourstage.run.pretrained import card, facts
from fourstage.run.pretrained.config import config_of
from fourstage.run.pretrained.facts import Facts
from fourstage.run.task_protocol import AnyProtocol, AnyTask
from fourstage.weights import saved
from fourstage.weights.description import NetworkDescription, description_of
from fourstage.weights.no_values import without_memory
from fourstage.weights.replaced_tensors import how_to_restore

WEIGHTS, CONFIG, README = "model.safetensors", saved.CONFIG, "README.md"
FILES = (WEIGHTS, CONFIG, README)
OF_THE_RECIPE = ("img_size", "in_chans")  # arguments that a recipe has by other names, or not at all
BESIDE = (".gitattributes", ".git", ".cache")  # what the hub's own tools put into a folder


@dataclass(frozen=True)
class Saveable:
    """A network with what is written beside its weights.

    Attributes:
        recipe: of its task, as plain values; None: of a network alone.
        about: what its task knows of the data.
    """

    network: nn.Module
    description: NetworkDescription
    classes: tuple[str, ...]
    recipe: Mapping[str, Any] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    facts: Facts = field(default_factory=Facts)

    @property
    def entries(self) -> dict[str, str]:
        """Return the metadata of the weights' file."""
        entries = saved.entries_of(self.description, classes=self.classes, recipe=self.recipe, about=self.about)
        return {**entries, facts.ENTRY: json.dumps(self.facts.as_json())}


def save_pretrained(
    network: nn.Module | Predictor,
    folder: str | Path,
    *,
    class_names: Sequence[str] | None = None,
    licence: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a network into a folder from which `fourstage.load`, `from_checkpoint` and timm build it again.

    Args:
        network: what `fourstage.load` returns, with its preprocessing and its numbers; or a network of `create_model`,
            `create_backbone`, `create_detector`, `create_segmentor` or `from_checkpoint`.
        folder: is created where it is missing.
        class_names: in the order of the labels: a list, not a set; None: those that the network has.
        licence: of the weights, such as "mit", for the model card.
        overwrite: replace a network that was saved in the folder before.

    Raises:
        ValueError: the network cannot be described, or the folder has other files; says what to do.
        OSError: the folder cannot be written.
    """
    if isinstance(network, Predictor):
        if class_names is not None:
            raise ValueError("what fourstage.load returns has its class names; leave class_names out")
        return network.save_pretrained(folder, licence=licence, overwrite=overwrite)
    return write(of_network(network, class_names), Path(folder), licence=licence, overwrite=overwrite)


class Keeper:
    """What a predictor saves: its task, and where that came from."""

    def __init__(self, protocol: AnyProtocol, task: AnyTask, find_facts: Callable[[], Facts]) -> None:
        self.protocol, self.task, self.find_facts = protocol, task, find_facts

    def save(self, folder: str | Path, *, licence: str | None, overwrite: bool) -> Path:
        """Write the folder; see `save_pretrained`."""
        return write(self.saveable(), Path(folder), licence=licence, overwrite=overwrite)

    def push(self, repository: str, *, private: bool, token: str | None, licence: str | None, exist_ok: bool) -> str:
        """Upload; see `push_to_hub`."""
        from fourstage.run.pretrained.push import push

        return push(self.saveable, repository, private=private, token=token, licence=licence, exist_ok=exist_ok)

    def saveable(self) -> Saveable:
        """Return the task's network with its recipe and its numbers."""
        alone = of_network(self.task.network, self.task.classes)
        recipe = public_recipe(self.protocol.recipe, alone.description)
        return replace(alone, recipe=recipe, about=_about(self.task), facts=self.find_facts())


def of_network(network: nn.Module, class_names: Sequence[str] | None) -> Saveable:
    """Return a network and its description, which is checked.

    Raises:
        ValueError: nobody could build the network again from its description.
    """
    if not isinstance(network, nn.Module):
        raise ValueError(f"a network is saved, of create_model or fourstage.load; got {network!r:.80}")
    class_names = _as_list(class_names)
    network = _unwrapped(network)
    if isinstance(network, FeatureMaps):
        raise ValueError("a feature extractor has no classifier to save; build the network without features_only")
    described = description_of(network)
    if described is None:
        raise ValueError(
            f"nobody could build this {type(network).__name__} again, because fourstage did not build it by a name; "
            f"register it with fourstage.register, and build it with create_model or create_detector"
        )
    classes = getattr(network, "num_classes", described.num_classes)
    if described.task != "backbone":
        described = replace(described, num_classes=classes)
    if class_names is not None and len(class_names) != described.num_classes:
        raise ValueError(
            f"class_names has {plural(len(class_names), 'name')}, and the network "
            f"{plural(described.num_classes, 'class', 'classes')}; give one name "
            f"for each class"
        )
    if wrong := [name for name in class_names or () if not isinstance(name, str)]:
        raise ValueError(f"class_names are texts; got {wrong[0]!r}, write it as {str(wrong[0])!r}")
    if class_names is not None and len({*class_names}) < len(class_names):
        twice = next(name for name in class_names if class_names.count(name) > 1)
        raise ValueError(f"class_names has {twice!r:.80} twice; give each class its own name")
    known = described.classes or ()
    names = tuple(class_names or (known if len(known) == described.num_classes else ()))
    described = replace(described, classes=names or None, imports=tuple(Path(x).name for x in described.imports))
    if any(value.is_meta for value in network.state_dict().values()):
        raise ValueError(
            "the network is on the meta device and has no weights to save; fill it with load_checkpoint first"
        )
    described = _at_recorded_size(network, described)
    _check_rebuilt(network, described)
    return Saveable(network, described, names)


def _as_list(class_names: Iterable[str] | None) -> list[str] | None:
    """Return class names as a list. Raises ValueError for a set, which has no order."""
    if class_names is None:
        return None
    if isinstance(class_names, Set) or not isinstance(class_names, Iterable):
        raise ValueError(f"class_names is a list of names in the order of the labels; got {class_names!r:.80}")
    return [str(name) if isinstance(name, str) else name for name in class_names]


def _unwrapped(network: nn.Module) -> nn.Module:
    """Return a network without the wrappers of compilation and of parallel training."""
    while True:
        inner = network.__dict__.get("_orig_mod") or network._modules.get("_orig_mod")
        if inner is None and type(network).__name__ in ("DistributedDataParallel", "DataParallel"):
            inner = network._modules.get("module")
        if not isinstance(inner, nn.Module):
            return network
        network = inner


def _at_recorded_size(network: nn.Module, described: NetworkDescription) -> NetworkDescription:
    """Return the description with the size of images that `set_input_size` recorded after the network was built.

    Raises:
        ValueError: a network that is built for this size has other tensors.
    """
    if not isinstance(network, Backbone) or "input_size" not in network.default_cfg:
        return described
    size = [*network.default_cfg["input_size"][1:]]
    resized = replace(described, backbone_args={**described.backbone_args, "img_size": size})
    with without_memory():
        built = fresh_network(described)
        if not isinstance(built, Backbone) or [*built.default_cfg["input_size"][1:]] == size:
            return described
        if _shapes(built) != _shapes(fresh_network(resized)):
            raise ValueError(
                f"a network for images of {size[0]} x {size[1]} pixels has other tensors than this one; build it with "
                f"img_size={(*size,)}, fill it with load_checkpoint and save that"
            )
    return resized


def _check_rebuilt(network: nn.Module, described: NetworkDescription) -> None:
    """Raise ValueError where the description builds a network with other tensors: it was changed after it was built."""
    saved.network_values(described)  # raises for arguments that are no plain values
    try:
        with without_memory():
            shapes = _shapes(fresh_network(described))
    except NotImplementedError:  # of a user's own network that looks at its weights
        shapes = _shapes(fresh_network(described))
    own = _shapes(network)
    if restore := how_to_restore(own.keys() - shapes.keys()):
        raise ValueError(f"the network was changed after it was built: {restore}, and save it then")
    if differing := sorted(key for key in shapes.keys() | own.keys() if shapes.get(key) != own.get(key)):
        more = f" and {len(differing) - 1} more" if differing[1:] else ""
        raise ValueError(
            f"the network was changed after it was built ({differing[0]}{more}), so that nobody could build it again; "
            f"register a function that builds it with fourstage.register, and use that"
        )


def _shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in network.state_dict().items()}


def public_recipe(recipe: Recipe, described: NetworkDescription) -> dict[str, Any]:
    """Return a recipe as plain values without paths of this machine, and with the arguments that were settled."""
    values = recipe.model_dump(mode="json")
    values["data"] = recipe.data if recipe.data in EMBEDDED else None
    values["imports"] = [Path(path).name for path in recipe.imports]
    if recipe.weights is not None and not is_name_of_weights(recipe.weights):
        values["weights"] = None
    network = saved.network_values(described)  # has what weights needed, and such as the queries that suited the data
    if described.task == "classification":
        own = {key: value for key, value in network["backbone_args"].items() if key not in OF_THE_RECIPE}
        return {**values, "model": network["backbone"], "model_args": own}
    return {**values, **{key: network[key] for key in ("backbone", "backbone_args", "method_args")}}


def _about(task: AnyTask) -> dict[str, Any]:
    """Return what a task knows of its data, and what this process computes with."""
    ids, palette = getattr(task, "category_ids", None), getattr(task, "palette", None)
    known: dict[str, Any] = {computation.KEY: computation.current().as_plain()}
    known |= {} if ids is None else {"category_ids": list(ids)}
    known |= {} if palette is None else {"palette": [list(colour) for colour in palette]}
    return known


def write(
    one: Saveable, folder: Path, *, licence: str | None = None, overwrite: bool = False, repository: str | None = None
) -> Path:
    """Write the three files, the weights last: a folder without them is not read.

    Args:
        repository: the name on the hub, for the lines of the card; None: the folder's.

    Raises:
        ValueError: `licence` is no text, or the folder has other files or a saved network.
        OSError: the folder cannot be written.
    """
    if licence is not None and not isinstance(licence, str):
        raise ValueError(f'licence is a text, such as "mit"; got {licence!r}')
    one = replace(one, facts=replace(one.facts, licence=card.licence_id(licence))) if licence else one
    _check_folder(folder, overwrite)
    entries, config = one.entries, config_of(one)
    text = card.text_of(one, f"hf-hub:{repository}" if repository else real_path(folder).name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"{folder} cannot be written ({error.strerror or error}); choose another folder") from None
    tensors = _tensors(one.network)
    needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    (folder / WEIGHTS).unlink(missing_ok=True)  # an older network must not meet the new description
    write_text(folder / CONFIG, json.dumps(config, indent=2) + "\n")
    write_text(folder / README, text)
    write_file(folder / WEIGHTS, lambda stream: write_safetensors(tensors, entries, stream), needed=needed)
    return folder


def _check_folder(folder: Path, overwrite: bool) -> None:
    """Raise ValueError where the folder has other files, or a network that was saved before."""
    if not folder.is_dir():
        if folder.exists() or folder.is_symlink():
            raise ValueError(f"{folder} is a file, and a network is saved as a folder; choose another name")
        return
    check_no_links(folder, FILES)
    others = [path.name for path in folder.iterdir() if not is_unfinished(path)]
    others = sorted(name for name in others if name not in (*FILES, *BESIDE))
    if others:
        raise ValueError(f"{folder} has other files ({others[0]}); choose a folder of its own for the network")
    if (folder / WEIGHTS).exists() and not overwrite:
        raise ValueError(f"{folder} has a saved network already; add overwrite=True, or choose another folder")
    if not os.access(folder, os.W_OK):
        raise OSError(f"{folder} cannot be written; choose another folder")


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a network on the CPU; those that two names share become two, which the format needs."""
    out, storages = dict[str, Tensor](), set[int]()
    for key, value in network.state_dict().items():
        tensor = value.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        whole = tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()
        out[key] = tensor if whole and storage not in storages else tensor.clone()
        storages.add(storage)
    return out
