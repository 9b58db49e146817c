"""From the configuration in a checkpoint to a description of its network."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fourstage.methods import all_methods, load_address
from fourstage.weights.description import Colour, NetworkDescription
from fourstage.weights.openmmlab.backbones import backbone_of
from fourstage.weights.openmmlab.config import config_of
from fourstage.weights.openmmlab.evaluation import Tested
from fourstage.weights.openmmlab.section import Built, Part, is_byte, mapping
from fourstage.weights.reading.safe import Checkpoint


def network_of_checkpoint(file: Checkpoint) -> NetworkDescription | None:
    """Return the network that a checkpoint's own configuration describes; None where it carries none.

    Raises:
        ValueError: the configuration cannot be read, or describes what cannot be built here.
    """
    config = config_of(file.content, str(file.path))
    if config is None:
        return None
    return network_of_config(config, str(file.path), meta=file.content.get("meta"), classes=file.classes)


def network_of_config(
    config: Mapping[str, Any], source: str, *, meta: object = None, classes: Sequence[str] | None = None
) -> NetworkDescription:
    """Return the network of a configuration.

    Args:
        source: the file's name, for messages.
        meta: what the checkpoint says beside it: version and palette.
        classes: names, where the checkpoint has them.

    Raises:
        ValueError: the configuration describes what cannot be built here.
    """
    model, meta = Part(config.get("model"), "model", source), mapping(meta)
    kind, known = model.kind, _readers()
    if kind not in known:
        raise ValueError(
            f"{source} holds a {kind or 'network without a name'}, which is not among the networks here "
            f"({', '.join(known)}); give a checkpoint of one of these"
        )
    tested = Tested(config, model)
    read: Callable[[Part, Tested, Mapping[str, Any]], Built] = load_address(known[kind])
    built = read(model, tested, meta)
    backbone, backbone_args = backbone_of(model.part("backbone"))
    mean, std = tested.normalisation()
    if classes and len(classes) != built.num_classes:
        raise ValueError(
            f"{source} names {len(classes)} classes, and its configuration has num_classes={built.num_classes}; name a "
            f"recipe with --weights {source}"
        )
    return NetworkDescription(
        task=built.task,
        backbone=backbone,
        num_classes=built.num_classes,
        backbone_args=backbone_args,
        method=built.method,
        method_args=built.method_args,
        classes=tuple(classes) if classes else None,
        mean=mean,
        std=std,
        evaluation=built.evaluation,
        over_valid=built.over_valid,
        palette=_palette(meta, built.num_classes),
    )


def _readers() -> dict[str, str]:
    """The types of networks that can be read, and the addresses of their readers."""
    readable = [(method, method.read_config) for method in all_methods() if method.read_config is not None]
    return {kind: reader for method, reader in readable for kind in method.config_types}


def _palette(meta: Mapping[str, Any], classes: int) -> tuple[Colour, ...] | None:
    """Return the colours of the classes, where the file gives one for each."""
    inner = mapping(meta.get("dataset_meta"))
    for palette in (meta.get("PALETTE"), inner.get("palette"), inner.get("PALETTE")):
        if isinstance(palette, list | tuple) and len(palette) == classes and all(map(_is_colour, palette)):
            return tuple((r, g, b) for r, g, b in palette)
    return None


def _is_colour(row: object) -> bool:
    return isinstance(row, list | tuple) and len(row) == 3 and all(map(is_byte, row))
