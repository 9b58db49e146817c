"""Detectors and segmentors by name, over any backbone, with weights from a file."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from torch import nn

from fourstage.api import create_backbone, load_checkpoint
from fourstage.methods import NETWORKS, find_method, list_methods
from fourstage.tasks.parts.settings import check_counts, check_names

ENDINGS = (".pth", ".pt", ".safetensors", ".ckpt", ".bin")  # of checkpoints


def create_detector(
    method: str | Path,
    backbone: str | nn.Module | None = None,
    num_classes: int | None = None,
    *,
    checkpoint_path: str | Path | None = None,
    backbone_args: Mapping[str, Any] | None = None,
    **arguments: Any,
) -> nn.Module:
    """Build an object detector.

    Args:
        method: "retinanet", "mask_rcnn" or "cascade_mask_rcnn"; or the file of a checkpoint that says itself what it
            is, MMDetection's or one of our runs': then nothing else is given, and its weights are read.
        backbone: what `create_backbone` takes: a name of ours, `"timm/<name>"`, or a module with `levels`.
        num_classes: classes of objects; there is no background among them.
        checkpoint_path: start from this file: a whole detector of MMDetection or ours, or a backbone's weights.
        backbone_args: of the backbone, where it is a name: `{"drop_path_rate": 0.2}`.
        **arguments: of the method, such as `masks=False`. None means the default.

    Returns:
        A network whose `detect(batch)` gives boxes, labels, scores and masks, and whose `losses(batch)` train it.

    Raises:
        ValueError: an unknown name or argument, a value that cannot be, a checkpoint that does not fit.
        FileNotFoundError: there is no such checkpoint.
    """
    return _create("detection", method, backbone, num_classes, checkpoint_path, backbone_args, arguments)


def create_segmentor(
    method: str | Path,
    backbone: str | nn.Module | None = None,
    num_classes: int | None = None,
    *,
    checkpoint_path: str | Path | None = None,
    backbone_args: Mapping[str, Any] | None = None,
    **arguments: Any,
) -> nn.Module:
    """Build a semantic segmentor.

    Args:
        method: "upernet" or "semantic_fpn"; or the file of a checkpoint that says itself what it is,
            MMSegmentation's or one of our runs': then nothing else is given, and its weights are read.
        backbone: what `create_backbone` takes: a name of ours, `"timm/<name>"`, or a module with `levels`.
        num_classes: classes to tell apart, 2 to 255.
        checkpoint_path: start from this file: a whole segmentor of MMSegmentation or ours, or a backbone's weights.
        backbone_args: of the backbone, where it is a name: `{"drop_path_rate": 0.2}`.
        **arguments: of the method, such as `channels`. None means the default.

    Returns:
        A network from (B, 3, H, W) normalised images to (B, num_classes, H, W) logits.

    Raises:
        ValueError: an unknown name or argument, a value that cannot be, a checkpoint that does not fit.
        FileNotFoundError: there is no such checkpoint.
    """
    return _create("segmentation", method, backbone, num_classes, checkpoint_path, backbone_args, arguments)


def _create(
    task: str,
    method: str | Path,
    backbone: str | nn.Module | None,
    num_classes: int | None,
    checkpoint_path: str | Path | None,
    backbone_args: Mapping[str, Any] | None,
    arguments: Mapping[str, Any],
) -> nn.Module:
    method = str(method)
    if method not in list_methods(task) and (Path(method).is_file() or Path(method).suffix in ENDINGS):
        given = (backbone, num_classes, checkpoint_path, backbone_args, *arguments.values())
        return _of_checkpoint(Path(method), task, alone=all(value is None for value in given))
    build = find_method(method, task).builder
    if backbone is None or num_classes is None:
        raise ValueError(f"a {method} needs a backbone and num_classes, such as 'swin_tiny' and 80")
    given = {key: value for key, value in arguments.items() if value is not None}
    check_arguments(build, method, given)
    check_counts(num_classes=num_classes)
    made = create_backbone(backbone, **(backbone_args or {}))
    try:
        network = build(made, num_classes, **given)
    except (TypeError, RuntimeError, ZeroDivisionError) as error:  # of layers, for what nothing above looks at
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{method} cannot be built with {_listed(given)} ({reason}); correct them") from error
    if getattr(network, "method", None) is None:  # of a user's own: loading asks for the name
        cast(Any, network).method = method
    if checkpoint_path is not None:
        load_checkpoint(network, checkpoint_path)
    return network


def _listed(given: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r:.40}" for name, value in given.items()) or "nothing given"


def _of_checkpoint(path: Path, which: str, *, alone: bool) -> nn.Module:
    """The network that a checkpoint of a detector or segmentor describes, with its weights, in evaluation mode."""
    from fourstage.run.predict import task_of_file
    from fourstage.weights.reading.safe import read_checkpoint

    if not alone:
        raise ValueError(f"{path} says itself what it is; give no other argument, or name the method")
    task: Any = task_of_file(read_checkpoint(path))[1]
    if which != type(task).__name__.lower():
        raise ValueError(f"{path} holds no {NETWORKS[which]} but a network of {type(task).__name__.lower()}")
    return task.network.eval()


def check_arguments(build: Callable[..., nn.Module], method: str, given: Mapping[str, Any]) -> None:
    """Raise ValueError for an argument that the method has not."""
    check_names(build, method, given, but=("backbone", "num_classes"))
