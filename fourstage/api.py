"""The functions that most users need: networks by name or from a file, with or without weights.

B images, C channels, H x W cells.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from fourstage.backbones.base import Classifier
from fourstage.backbones.feature_maps import FeatureMaps
from fourstage.build import (
    Device,
    build_network,
    built_method,
    check_levels,
    fill,
    own_values,
    placed,
    starting_point,
    try_on_meta,
)
from fourstage.data.class_names import names_of
from fourstage.files import HUB
from fourstage.methods import NETWORKS, find_method, list_methods, register_detector, register_segmentor
from fourstage.registry import list_models, register, register_mixer
from fourstage.user_files import imports_option
from fourstage.weights.complete_checkpoints import count_classes, fill_completely, similar_networks
from fourstage.weights.description import NetworkDescription, describe_network, description_of, remember
from fourstage.weights.load import Report
from fourstage.weights.reading.metadata import check_numbers
from fourstage.weights.reading.safe import Checkpoint, read_checkpoint

__all__ = [
    "create_backbone",
    "create_detector",
    "create_model",
    "create_segmentor",
    "from_checkpoint",
    "list_models",
    "load_checkpoint",
    "register",
    "register_detector",
    "register_mixer",
    "register_segmentor",
]

SAVED_HERE = "local-dir:"  # a folder, as timm writes it
SAVED = (*HUB, SAVED_HERE)
PLACES = ("device", "dtype")  # arguments of a network alone
STARTING_WEIGHTS = ("pretrained", "checkpoint_path")  # arguments that make a network start from another file
FORMS = {**NETWORKS, "classification": "classifier", "backbone": "dense backbone"}  # a task -> its network
CHECKPOINT_ENDINGS = (".pth", ".pt", ".safetensors", ".ckpt", ".bin")


def create_model(
    model_name: str,
    pretrained: bool = False,
    *,
    checkpoint_path: str | Path | None = None,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    device: Device | None = None,
    dtype: torch.dtype | None = None,
    **arguments: Any,
) -> nn.Module:
    """Build an image classifier.

    Args:
        model_name: one of `list_models()`. With the tag of a published weight behind it, `smt_large.in22k`, the network
            is the one that this file is for: its image size, its number of classes and its other arguments, unless you
            give them. `hf-hub:user/name` and `local-dir:folder` are classifiers of `save_pretrained`, in the same way.
        pretrained: start from the published weights, which are fetched once; docs/checkpoints.md says which a name
            without a tag means.
        checkpoint_path: start from this file, ours or the original code's. A head for another number of classes is left
            out if `num_classes` is given, and an error if it is not. A file that `fourstage convert` wrote brings its
            own arguments, unless you give them.
        features_only: return the list of maps instead of logits, as timm does: `.feature_info.channels()`,
            `.reduction()`.
        out_indices: with `features_only`, which maps come out.
        device: where the network is built; "meta": without memory.
        dtype: of its numbers, such as torch.bfloat16.
        **arguments: of the model: num_classes, in_chans, img_size, drop_rate, drop_path_rate and those of its family.
            None means the default.

    Returns:
        A network from (B, in_chans, H, W) to (B, num_classes), or to a list of maps; H and W at least 32.

    Raises:
        ValueError: an unknown name or argument, a checkpoint that does not fit, no weights to download, no such device.
        OSError: no such file, or weights that could not be fetched; says how to give them by hand.
    """
    if out_indices is not None and not features_only:
        raise ValueError(
            "out_indices selects feature maps, which features_only=True returns; add it, or leave out_indices out"
        )
    arguments, out_indices = own_values(arguments), own_values(out_indices)
    saved = None
    if isinstance(model_name, str) and model_name.startswith(SAVED):
        if checkpoint_path is not None:
            raise ValueError(f"{model_name} has weights of its own; leave checkpoint_path out, or name the model")
        saved, file = _saved_classifier(model_name)
        given = {key: value for key, value in arguments.items() if value is not None}
        model_name, arguments = saved.backbone, {**saved.backbone_args, "num_classes": saved.num_classes, **given}
        pretrained, checkpoint_path = False, file.path if pretrained else None
    with placed(device, dtype, filled=pretrained or checkpoint_path is not None) as place:
        model = place(_classifier(model_name, pretrained, checkpoint_path, features_only, out_indices, arguments))
    return model if saved is None else _with_classes(model, saved)


def _saved_classifier(name: str) -> tuple[NetworkDescription, Checkpoint]:
    """Return the description and the file of a classifier of `save_pretrained`.

    Raises:
        ValueError: it is no classifier, or cannot be built here.
    """
    source = name.removeprefix(SAVED_HERE)
    file = read_checkpoint(source)
    described = _description_in(file)
    if described.task != "classification":
        raise ValueError(
            f"{source} holds a {FORMS[described.task]}, and create_model builds classifiers; type "
            f"from_checkpoint({source!r})"
        )
    check_described(described, file)
    return described, file


def _with_classes(model: nn.Module, saved: NetworkDescription) -> nn.Module:
    """Return a classifier with the class names of the file that it was built from, if it has as many classes."""
    own, names = description_of(model), _class_names(saved)
    if own is None or own.num_classes != saved.num_classes:
        return model
    cast(Any, model).class_names = names
    return remember(model, replace(own, classes=names or None))


def _classifier(
    model_name: str,
    pretrained: bool,
    checkpoint_path: str | Path | None,
    features_only: bool,
    out_indices: Sequence[int] | None,
    arguments: Mapping[str, Any],
) -> nn.Module:
    start = starting_point(model_name, pretrained, checkpoint_path, "create_model")
    model = build_network(start, start.entry.classifier, arguments)
    if features_only:
        if not isinstance(model, Classifier):
            raise ValueError(f"features_only is for the networks of this package; {model_name} is your own")
        model = FeatureMaps(model, out_indices)  # before it is filled: a head for any number of classes is left out
    if (file := start.read("create_model")) is not None:
        fill(model, file, fresh_head=arguments.get("num_classes") is not None)
    if features_only:
        return model
    built_with = start.all_arguments(start.entry.classifier, arguments)
    return remember(model, _classifier_of(model, start.entry.name, built_with))


def create_backbone(
    backbone: str | nn.Module,
    pretrained: bool = False,
    *,
    checkpoint_path: str | Path | None = None,
    out_indices: Sequence[int] | None = None,
    device: Device | None = None,
    dtype: torch.dtype | None = None,
    **arguments: Any,
) -> nn.Module:
    """Build a dense backbone: image in, list of maps out, as the source's detection code has it.

    Args:
        backbone: one of `list_models()`, `"timm/<name>"` for a network of timm, or a module that has `levels` and
            returns its maps: such a module is returned as it is.
        pretrained: start from the published weights, as in `create_model`. A detector's tag is for its backbone.
        checkpoint_path: start from this file: a classifier's or a detector's, ours or the original code's.
        out_indices: which maps come out, finest first; None: all.
        device, dtype: as in `create_model`.
        **arguments: of the model: in_chans, img_size, drop_path_rate and those of its family. None means the default.

    Returns:
        A network from (B, in_chans, H, W) to one (B, level.channels, H_i, W_i) per entry of its `levels`.

    Raises:
        ValueError: an unknown name or argument, a checkpoint that does not fit, a module without `levels`.
        OSError: as `create_model`.
    """
    if isinstance(backbone, nn.Module):
        others = (checkpoint_path, out_indices, device, dtype)
        if pretrained or arguments or any(value is not None for value in others):
            raise ValueError("the backbone is built already; give its arguments and weights where it is built")
        return check_levels(backbone, type(backbone).__name__)
    if isinstance(backbone, str) and backbone.startswith(SAVED):
        file = backbone.removeprefix(SAVED_HERE)
        raise ValueError(
            f"create_backbone builds networks by name, and {backbone} is a saved one; type create_backbone(NAME, "
            f"checkpoint_path={file!r}), or from_checkpoint({file!r}) for a saved dense backbone"
        )
    arguments, out_indices = own_values(arguments), own_values(out_indices)
    with placed(device, dtype, filled=pretrained or checkpoint_path is not None) as place:
        return place(_dense(backbone, pretrained, checkpoint_path, out_indices, arguments))


def _dense(
    backbone: str,
    pretrained: bool,
    checkpoint_path: str | Path | None,
    out_indices: Sequence[int] | None,
    arguments: dict[str, Any],
) -> nn.Module:
    if isinstance(backbone, str) and backbone.startswith("timm/"):
        from fourstage.timm_backbone import TimmBackbone

        given = None if checkpoint_path is None else read_checkpoint(checkpoint_path)
        wrapped = TimmBackbone(backbone.removeprefix("timm/"), pretrained and given is None, out_indices, arguments)
        if given is not None:
            fill(wrapped, given, fresh_head=False)
        maps = {} if out_indices is None else {"out_indices": out_indices}
        return remember(wrapped, NetworkDescription("backbone", backbone, 0, {**arguments, **maps}))
    if out_indices is not None:
        arguments = {**arguments, "out_indices": out_indices}
    start = starting_point(backbone, pretrained, checkpoint_path, "create_backbone")
    model = check_levels(build_network(start, start.entry.dense, arguments), backbone)
    if (file := start.read("create_backbone")) is not None:
        fill(model, file, fresh_head=False)
    built_with = start.all_arguments(start.entry.dense, arguments)
    return remember(model, NetworkDescription("backbone", start.entry.name, 0, built_with))


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
        method: "retinanet", "atss", "mask_rcnn", "cascade_mask_rcnn", "sparse_rcnn", "dino", or the name of a detector
            of your own. The file of a checkpoint still works here, with a warning: `from_checkpoint` is the function
            for it.
        backbone: what `create_backbone` takes: a name of ours, `"timm/<name>"`, or a module with `levels`.
        num_classes: classes of objects; there is no background among them.
        checkpoint_path: start from this file: a complete detector of MMDetection or ours, or a backbone's weights.
        backbone_args: of the backbone, where it is a name: `{"drop_path_rate": 0.2}`.
        **arguments: of the method, such as `masks=False`. None means the default.

    Returns:
        A network whose `detect(batch)` gives boxes, labels, scores and masks, and whose `losses(batch)` train it.

    Raises:
        ValueError: an unknown name or argument, a value out of range, a checkpoint that does not fit.
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
        method: "upernet", "semantic_fpn", or the name of a segmentor of your own. The file of a checkpoint still works
            here, with a warning: `from_checkpoint` is the function for it.
        backbone: what `create_backbone` takes: a name of ours, `"timm/<name>"`, or a module with `levels`.
        num_classes: classes of pixels, 2 to 255.
        checkpoint_path: start from this file: a complete segmentor of MMSegmentation or ours, or a backbone's weights.
        backbone_args: of the backbone, where it is a name: `{"drop_path_rate": 0.2}`.
        **arguments: of the method, such as `channels`. None means the default.

    Returns:
        A network from (B, 3, H, W) normalised images to (B, num_classes, H, W) logits.

    Raises:
        ValueError: an unknown name or argument, a value out of range, a checkpoint that does not fit.
        FileNotFoundError: there is no such checkpoint.
    """
    return _create("segmentation", method, backbone, num_classes, checkpoint_path, backbone_args, arguments)


def from_checkpoint(path: str | Path, *, which: str = "model") -> nn.Module:
    """Build the network that a checkpoint describes, and fill it.

    A file describes itself if it is of one of our runs, of `fourstage convert`, of MMDetection or of MMSegmentation.

    Args:
        path: .pth, .pt or .safetensors. Nothing in it is executed, and nothing that it names is imported.
        which: `"model"`, or `"ema"` for the averaged weights if the file has them.

    Returns:
        What `create_model`, `create_backbone`, `create_detector` or `create_segmentor` would build, in evaluation mode.
        Its `class_names` is a tuple in the order of the labels: the file's own names, else COCO's or ADE20K's where a
        detector or segmentor has as many classes, else "class 0", "class 1", ...; () for a dense backbone.

    Raises:
        ValueError: the file does not describe a network, describes one that cannot be built here, or lacks some of its
            weights; says which function builds it by name.
        FileNotFoundError: there is no such file.
    """
    return _build_described(read_checkpoint(path), which)


def load_checkpoint(model: nn.Module, path: str | Path, which: str = "model", *, fresh_head: bool = False) -> Report:
    """Fill a network from a file that this package, the original code or a detector's training wrote.

    Keys are renamed, position tables resized to the network's size. Nothing is left out silently: the report names it.

    Args:
        model: from `create_model`, also with `features_only`, `create_backbone`, `create_detector` or
            `create_segmentor`.
        path: .pth, .pt, .bin or .safetensors, the index of several such files (`model.safetensors.index.json`), or a
            folder with one of Hugging Face's names in it; nothing in it is executed.
        which: `"model"`, or `"ema"` for the averaged weights if the file has them.
        fresh_head: where the file's head is for another number of classes, or missing, leave ours as it was built;
            without this, that is an error.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read, or holds another network (the sentence names the one it fits), or another
            number of classes.
    """
    return fill(model, read_checkpoint(path), which, fresh_head=fresh_head)


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
    if method not in list_methods(task) and (Path(method).is_file() or Path(method).suffix in CHECKPOINT_ENDINGS):
        given = (backbone, num_classes, checkpoint_path, backbone_args, *arguments.values())
        return _from_checkpoint_of(task, Path(method), alone=all(value is None for value in given))
    builder = find_method(method, task).builder
    if backbone is None or num_classes is None:
        raise ValueError(f"a {method} needs a backbone and num_classes, such as 'swin_tiny' and 80")
    classes: int = own_values(num_classes)
    given = {key: own_values(value) for key, value in arguments.items() if value is not None}
    _check_arguments(builder, method, given, classes)
    if placed_alone := [key for key in PLACES if (backbone_args or {}).get(key) is not None]:
        raise ValueError(
            f"backbone_args has {placed_alone[0]}, and the other layers of a {NETWORKS[task]} would be elsewhere; move "
            f"the complete network, as create_{NETWORKS[task]}(...).to({placed_alone[0]}=...)"
        )
    maps_network = create_backbone(backbone, **(backbone_args or {}))
    network = built_method(method, builder, maps_network, classes, given)
    _check_form(network, method, task)
    if getattr(network, "method", None) is None:  # of a user's own: loading asks for the name
        cast(Any, network).method = method
    if checkpoint_path is not None:
        load_checkpoint(network, checkpoint_path)
    described = description_of(maps_network)
    if described is None:  # a backbone that the user has built: nobody else could build the network again
        return network
    return remember(network, replace(described, task=task, method=method, method_args=given, num_classes=classes))


def _classifier_of(model: nn.Module, name: str, arguments: Mapping[str, Any]) -> NetworkDescription:
    """Return the description of a classifier."""
    others = {key: value for key, value in arguments.items() if key != "num_classes"}
    classes = getattr(model, "num_classes", arguments.get("num_classes"))
    return NetworkDescription("classification", name, classes if isinstance(classes, int) else 0, others)


def _check_arguments(
    builder: Callable[..., nn.Module], method: str, given: Mapping[str, Any], num_classes: int
) -> None:
    """Raise ValueError for an argument that the method does not have, and for an invalid number of classes."""
    from fourstage.tasks.parts.settings import check_counts, check_given

    check_given(builder, method, given, but=("backbone", "num_classes"))
    check_counts(num_classes=num_classes)


def _check_form(network: object, method: str, task: str) -> None:
    """Raise ValueError where a user's own builder returned something else than the task needs."""
    from fourstage.tasks.detection.detector import Detector
    from fourstage.tasks.segmentation.segmentor import Segmentor

    wanted = {"detection": Detector, "segmentation": Segmentor}[task]
    if not isinstance(network, wanted):
        kind = "None" if network is None else f"a {type(network).__name__}"
        raise ValueError(f"{method} returned {kind}; a {NETWORKS[task]} is a {wanted.__module__}.{wanted.__name__}")


def _from_checkpoint_of(task: str, path: Path, *, alone: bool) -> nn.Module:
    """Return the network of a file for `create_detector(file)` and `create_segmentor(file)`."""
    if not alone:
        raise ValueError(f"{path} describes its network itself; give no other argument, or name the method")
    network = _build_described(read_checkpoint(path), task=task)
    warnings.warn(
        f"create_{NETWORKS[task]}(file) is deprecated; type fourstage.from_checkpoint({str(path)!r})",
        DeprecationWarning,
        stacklevel=4,  # of who called create_detector or create_segmentor
    )
    return network


def _build_described(file: Checkpoint, which: str = "model", task: str | None = None) -> nn.Module:
    """Build the network that a file describes, and fill it.

    Args:
        task: that of the network; None: any.
    """
    described = _description_in(file)
    if task not in (None, described.task):
        raise ValueError(f"{file.path} contains a {FORMS[described.task]}, not a {FORMS[str(task)]}")
    network = build_of_file(described, file)
    if described.method is None:
        fill(network, file, which, fresh_head=False)
    else:
        fill_completely(network, file, which)
    cast(Any, network).class_names = _class_names(described)
    return remember(network, replace(described, classes=_class_names(described) or None)).eval()


def _description_in(file: Checkpoint) -> NetworkDescription:
    """Return the network that a file describes. Raises ValueError where it describes none."""
    if (described := describe_network(file)) is None:
        raise ValueError(f"{file.path} does not say which network it is for; {_how_to_build(file)}")
    return described


def build_of_file(described: NetworkDescription, file: Checkpoint) -> nn.Module:
    """Build the network that a file describes, with fresh weights, once without memory first.

    Raises:
        ValueError: it cannot be built here.
    """
    check_described(described, file)
    return fresh_network(described)


def check_described(described: NetworkDescription, file: Checkpoint) -> None:
    """Raise ValueError where the network that a file describes cannot be built here."""
    for values in (described.backbone_args, described.method_args, {"num_classes": described.num_classes}):
        check_numbers(values, file.path)
    try:
        try_on_meta(lambda: fresh_network(described), file)
    except (RuntimeError, MemoryError, TypeError, ValueError, ArithmeticError) as error:
        # such as sizes that do not fit in memory
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        trusted = f"if you trust them, import them first, as {imports_option(described.imports)} does"
        hint = f"; its recipe imports Python files: {trusted}" if described.imports else ""
        raise ValueError(f"{file.path} describes a network that cannot be built here ({reason:.200}){hint}") from error


def fresh_network(described: NetworkDescription) -> nn.Module:
    """Build a network from its description, with fresh weights: its file is the only one that is read."""
    left_out = (*STARTING_WEIGHTS, *PLACES)
    arguments = {key: value for key, value in described.backbone_args.items() if key not in left_out}
    if described.task == "backbone":
        return create_backbone(described.backbone, **arguments)
    if described.method is None:
        return create_model(described.backbone, num_classes=described.num_classes, **arguments)
    create = {"detection": create_detector, "segmentation": create_segmentor}[described.task]
    settings = {key: value for key, value in described.method_args.items() if key not in STARTING_WEIGHTS}
    return create(described.method, described.backbone, described.num_classes, backbone_args=arguments, **settings)


def _class_names(described: NetworkDescription) -> tuple[str, ...]:
    if described.task == "backbone":
        return ()
    return described.classes or names_of(described.num_classes, described.task)


def _how_to_build(file: Checkpoint) -> str:
    """Return what to type for a file that does not describe its network."""
    method, models = similar_networks(file)
    if not models:
        return "build it by name, as list_models() has it, and give checkpoint_path="
    path = str(file.path)
    if method is None:
        return f"it looks like {models[0]}: type create_model({models[0]!r}, checkpoint_path={path!r})"
    classes = count_classes(file.weights(), method.task) or "..."
    call = f"create_{NETWORKS[method.task]}({method.name!r}, {models[0]!r}, {classes}, checkpoint_path={path!r})"
    return f"it looks like a {method.name} over {models[0]}: type {call}"
