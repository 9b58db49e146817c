"""Detectors and segmentors by name, over any backbone, with weights from a file."""

import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from fourstage.api import create_backbone, load_checkpoint
from fourstage.tasks.detection import METHODS

SEGMENTORS = {  # method -> where it is built
    "upernet": "fourstage.tasks.segmentation.upernet:upernet",
    "semantic_fpn": "fourstage.tasks.segmentation.semantic_fpn:semantic_fpn",
}


DETECTORS = {name: f"fourstage.tasks.detection.{name}:{made}" for name, made in METHODS.items()}


def create_detector(
    method: str,
    backbone: str | nn.Module,
    num_classes: int,
    *,
    checkpoint_path: str | Path | None = None,
    backbone_args: Mapping[str, Any] | None = None,
    **arguments: Any,
) -> nn.Module:
    """Build an object detector.

    Args:
        method: "retinanet", "mask_rcnn" or "cascade_mask_rcnn".
        backbone: what `create_backbone` takes: a name of ours, `"timm/<name>"`, or a module with `levels`.
        num_classes: classes of objects; there is no background among them.
        checkpoint_path: start from this file: a whole detector of MMDetection or ours, or a backbone's weights.
        backbone_args: of the backbone, where it is a name: `{"drop_path_rate": 0.2}`.
        **arguments: of the method, such as `masks=False`. None means the default.

    Returns:
        A network whose `detect(batch)` gives boxes, labels, scores and masks, and whose `losses(batch)` train it.

    Raises:
        ValueError: an unknown name or argument, a checkpoint that does not fit.
    """
    return _create(DETECTORS, "detector", method, backbone, num_classes, checkpoint_path, backbone_args, arguments)


def create_segmentor(
    method: str,
    backbone: str | nn.Module,
    num_classes: int,
    *,
    checkpoint_path: str | Path | None = None,
    backbone_args: Mapping[str, Any] | None = None,
    **arguments: Any,
) -> nn.Module:
    """Build a semantic segmentor.

    Args:
        method: "upernet" or "semantic_fpn".
        backbone: what `create_backbone` takes: a name of ours, `"timm/<name>"`, or a module with `levels`.
        num_classes: classes to tell apart, 2 to 255.
        checkpoint_path: start from this file: a whole segmentor of MMSegmentation or ours, or a backbone's weights.
        backbone_args: of the backbone, where it is a name: `{"drop_path_rate": 0.2}`.
        **arguments: of the method, such as `channels`. None means the default.

    Returns:
        A network from (B, 3, H, W) normalised images to (B, num_classes, H, W) logits.

    Raises:
        ValueError: an unknown name or argument, a checkpoint that does not fit.
    """
    return _create(SEGMENTORS, "segmentor", method, backbone, num_classes, checkpoint_path, backbone_args, arguments)


def _create(
    table: Mapping[str, str],
    what: str,
    method: str,
    backbone: str | nn.Module,
    num_classes: int,
    checkpoint_path: str | Path | None,
    backbone_args: Mapping[str, Any] | None,
    arguments: Mapping[str, Any],
) -> nn.Module:
    if method not in table:
        close = get_close_matches(str(method), table, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(table)}"
        raise ValueError(f"no {what} is called {method!r}; {hint}")
    module, _, name = table[method].partition(":")
    build: Callable[..., nn.Module] = getattr(import_module(module), name)
    given = {key: value for key, value in arguments.items() if value is not None}
    check_arguments(build, method, given)
    network = build(create_backbone(backbone, **(backbone_args or {})), num_classes, **given)
    setattr(network, "method", method)  # noqa: B010 - by it load_checkpoint knows whose names a file may have
    if checkpoint_path is not None:
        load_checkpoint(network, checkpoint_path)
    return network


def check_arguments(build: Callable[..., nn.Module], method: str, given: Mapping[str, Any]) -> None:
    """Raise ValueError for an argument that the method has not."""
    known = [name for name in inspect.signature(build).parameters if name not in ("backbone", "num_classes")]
    for name in given:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(known)}"
            raise ValueError(f"{method} has no argument {name!r}; {hint}")
