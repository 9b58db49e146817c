"""From the configuration in a checkpoint to a description of its network."""

from collections.abc import Callable, Mapping, Sequence
from pkgutil import resolve_name
from typing import Any, TypeAlias

from fourstage.files import typed
from fourstage.methods import all_methods
from fourstage.plurals import plural
from fourstage.weights.description import Colour, NetworkDescription
from fourstage.weights.openmmlab.backbones import backbone_of
from fourstage.weights.openmmlab.config import config_of
from fourstage.weights.openmmlab.evaluation import EvaluationPipeline
from fourstage.weights.openmmlab.section import ConfigSection, MethodSettings, is_byte, mapping
from fourstage.weights.reading.safe import Checkpoint

Reader: TypeAlias = Callable[[ConfigSection, EvaluationPipeline, Mapping[str, Any]], MethodSettings]


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
    model, meta = ConfigSection(config.get("model"), "model", source), mapping(meta)
    type_name, known = model.type_name, _readers()
    if type_name not in known:
        what = (
            f"network type {type_name!r} is not supported" if type_name else "its configuration names no network type"
        )
        raise ValueError(f"{source} cannot be built: {what}; supported types: {', '.join(known)}")
    pipeline = EvaluationPipeline(config, model)
    read: Reader = resolve_name(known[type_name])
    settings = read(model, pipeline, meta)
    backbone, backbone_args = backbone_of(model.section("backbone"))
    mean, std = pipeline.normalisation()
    if classes and len(classes) != settings.num_classes:
        raise ValueError(
            f"{source} names {plural(len(classes), 'class', 'classes')}, and its configuration has "
            f"num_classes={settings.num_classes}; "
            f"name a recipe with --weights {typed(source)}"
        )
    return NetworkDescription(
        task=settings.task,
        backbone=backbone,
        num_classes=settings.num_classes,
        backbone_args=backbone_args,
        method=settings.method,
        method_args=settings.method_args,
        classes=tuple(classes) if classes else None,
        mean=mean,
        std=std,
        evaluation=settings.evaluation,
        over_valid=settings.over_valid,
        palette=_palette(meta, settings.num_classes),
    )


def _readers() -> dict[str, str]:
    """Return the types of networks that can be read, and the addresses of their readers."""
    readable = [(method, method.read_config) for method in all_methods() if method.read_config is not None]
    return {type_name: reader for method, reader in readable for type_name in method.config_types}


def _palette(meta: Mapping[str, Any], classes: int) -> tuple[Colour, ...] | None:
    """Return the colours of the classes, where the file gives one for each."""
    inner = mapping(meta.get("dataset_meta"))
    for palette in (meta.get("PALETTE"), inner.get("palette"), inner.get("PALETTE")):
        if isinstance(palette, list | tuple) and len(palette) == classes and all(map(_is_colour, palette)):
            return tuple((r, g, b) for r, g, b in palette)
    return None


def _is_colour(row: object) -> bool:
    return isinstance(row, list | tuple) and len(row) == 3 and all(map(is_byte, row))
