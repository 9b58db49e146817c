"""From a checkpoint's configuration to a recipe: each part of it is read where its kind belongs."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fourstage.data.class_names import names_of
from fourstage.methods import all_methods, load_address
from fourstage.recipe import Recipe, from_mapping
from fourstage.run.openmmlab.backbones import backbone_of
from fourstage.run.openmmlab.images import Tested
from fourstage.run.openmmlab.part import Built, Part, Values, is_byte, mapping
from fourstage.weights.openmmlab.config import config_of
from fourstage.weights.reading.safe import Checkpoint


@dataclass(frozen=True)
class Found:
    """A network that a checkpoint describes.

    Attributes:
        classes: names, in the order of the labels.
        about: what the task must know of its data beside them; see `run.kinds`.
        limits: of a detector: what `apply_limits` sets.
    """

    recipe: Recipe
    classes: tuple[str, ...]
    about: Values = field(default_factory=dict)
    limits: Mapping[str, Any] = field(default_factory=dict)


def described(file: Checkpoint) -> Found | None:
    """What a checkpoint's own configuration describes; None where it carries none.

    Raises:
        ValueError: the configuration cannot be read, or describes what cannot be built here.
    """
    config = config_of(file.content, str(file.path))
    if config is None:
        return None
    return from_config(config, str(file.path), meta=file.content.get("meta"), classes=file.classes)


def from_config(
    config: Mapping[str, Any], source: str, *, meta: object = None, classes: Sequence[str] | None = None
) -> Found:
    """The network of a configuration.

    Args:
        source: the file's name, for messages.
        meta: what the checkpoint says beside it: version and palette.
        classes: names, where the checkpoint has them.
    """
    model = Part(config.get("model"), "model", source)
    meta = meta if isinstance(meta, Mapping) else {}
    kind = model.kind
    known = _readers()
    if kind not in known:
        raise ValueError(
            f"{source} holds a {kind or 'network without a name'}, which is not among the networks here "
            f"({', '.join(known)}); give a checkpoint of one of these"
        )
    tested = Tested(config, model)
    read: Callable[[Part, Tested, Mapping[str, Any]], Built] = load_address(known[kind])
    built = read(model, tested, meta)
    values = {
        "name": re.sub(r"\W", "_", Path(source).stem) or "checkpoint",
        "num_classes": built.classes,
        **built.values,
        **backbone_of(model.part("backbone")),
        **tested.normalisation(),
        "optimisation": {"batch_size": 2, "length": "1it", "lr": 1.0},  # nothing is trained
    }
    names = tuple(classes) if classes else names_of(built.classes, values["task"])
    if len(names) != built.classes:
        raise ValueError(
            f"{source} names {len(names)} classes, and its configuration has num_classes={built.classes}; name a "
            f"recipe with --weights {source}"
        )
    return Found(from_mapping(values, source).recipe, names, _palette(meta, built.classes), built.limits)


def _readers() -> dict[str, str]:
    """The types of networks that can be read, and the addresses of their readers."""
    readable = [(method, method.read_config) for method in all_methods() if method.read_config is not None]
    return {kind: reader for method, reader in readable for kind in method.config_types}


def _palette(meta: Mapping[str, Any], classes: int) -> Values:
    """The colours of the classes, where the file gives one for each."""
    inner = mapping(meta.get("dataset_meta"))
    for found in (meta.get("PALETTE"), inner.get("palette"), inner.get("PALETTE")):
        if isinstance(found, list | tuple) and len(found) == classes:
            rows = [list(row) for row in found if isinstance(row, list | tuple)]
            if len(rows) == classes and all(len(row) == 3 and all(is_byte(one) for one in row) for row in rows):
                return {"palette": rows}
    return {}
