"""Feature maps of any network, read through hooks from outside. B images, C channels, H x W cells, N tokens."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from fourstage.analysis.unsuitable import UnknownStages, UnsuitableNetwork
from fourstage.backbones.base import Backbone
from fourstage.tasks.parts.levels import feature_maps

LAST = "last"
ONE_CELL = 1.0 + 1e-9  # rounding of a map's sides
FINEST_STRIDE = 4  # timm's networks may give maps at stride 2, which the stages of this package do not have


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode without gradients of its parameters, and restore both afterwards.

    Gradients of the input cost half without them: some layers decide by `requires_grad` what they compute.
    """
    modes = [(module, module.training) for module in network.modules()]
    wanted = [parameter for parameter in network.parameters() if parameter.requires_grad]
    network.eval()
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
        for module, training in modes:
            module.training = training


def taken_by(network: nn.Module, image_BCHW: Tensor) -> Tensor:
    """Return images on the device and in the type of a network's parameters; as they are where it has none."""
    like = next(network.parameters(), image_BCHW)
    return image_BCHW.to(like.device, like.dtype)


def as_float32(x: Tensor) -> Tensor:
    """Return half precision as float32, which NumPy and linear algebra need; float64 stays."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


@contextmanager
def outputs_of(network: nn.Module, names: Sequence[str]) -> Iterator[dict[str, list[Any]]]:
    """Collect what modules return while the context is open, by the modules' names, one entry per call.

    Raises:
        ValueError: there is no module of such a name.
    """
    kept: dict[str, list[Any]] = {name: [] for name in names}
    with ExitStack() as stack:
        for name in names:
            stack.callback(find_module(network, name).register_forward_hook(_keeper(kept[name])).remove)
        yield kept


def _keeper(kept: list[Any]) -> Callable[[nn.Module, Any, Any], None]:
    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        kept.append(output)

    return keep


def find_module(network: nn.Module, name: str) -> nn.Module:
    """Return a module by its name in `named_modules()`. Raises ValueError with similar names where there is none."""
    modules = dict(network.named_modules())
    if name in modules and name:
        return modules[name]
    close = get_close_matches(name, modules, n=3, cutoff=0.5)
    top = [child for child, _ in network.named_children()]
    hint = f"did you mean {', '.join(close)}?" if close else f"its modules are {', '.join(top)}, and those within them"
    stages = "; its stages are stage1, stage2, ..., last" if _has_stages(network) else ""
    raise UnsuitableNetwork(network, f"has no layer {name!r}", f"{hint}{stages}")


def _has_stages(network: nn.Module) -> bool:
    """Return whether `stage_maps` takes a network."""
    if isinstance(backbone := getattr(network, "backbone", None), nn.Module):
        return _has_stages(backbone)
    return bool(getattr(network, "levels", None)) or hasattr(network, "forward_intermediates")


def stage_maps(network: nn.Module, image_BCHW: Tensor, count: int | None = None) -> list[Tensor]:
    """Return the map after each stage, before any output norm where the network can give that.

    Args:
        network: one of ours, a detector or segmentor (its backbone), a module with `levels` that returns its maps, or
            a network of timm.
        count: the number of stages that are needed; a network may return more.

    Returns:
        (B, C, H, W) each, in descending resolution.

    Raises:
        ValueError: the network has no stages that are known here.
    """
    if isinstance(network, Backbone):
        return network.forward_maps(image_BCHW, count=count)
    backbone = getattr(network, "backbone", None)
    if isinstance(backbone, nn.Module):
        return stage_maps(backbone, image_BCHW, count)
    if getattr(network, "levels", None):
        return list(feature_maps(network, image_BCHW))
    if hasattr(network, "forward_intermediates"):
        return _maps_of_timm(network, image_BCHW)
    raise UnknownStages(network)


def _maps_of_timm(network: Any, image_BCHW: Tensor) -> list[Tensor]:
    maps = network.forward_intermediates(image_BCHW, intermediates_only=True)
    strides = [row["reduction"] for row in network.feature_info][-len(maps) :]
    return [x_BCHW for x_BCHW, stride in zip(maps, strides, strict=True) if stride >= FINEST_STRIDE]


def stage_number(tap: str) -> int | None:
    """Return the number of the stage that a tap names, from 1; -1 for the last one; None for a layer."""
    if tap == LAST:
        return -1
    number = tap.removeprefix("stage")
    return int(number) if tap.startswith("stage") and number.isdecimal() else None


def features(network: nn.Module, image_BCHW: Tensor, taps: Sequence[str]) -> list[Tensor]:
    """Return one feature map per tap, as (B, C, H, W).

    Args:
        taps: `stage1`, `stage2`, ..., `last`, or the name of a layer.

    Raises:
        ValueError: the network has no such stage or layer, or a layer returns no map.
    """
    layers = [tap for tap in taps if stage_number(tap) is None]
    stages = [number for tap in taps if (number := stage_number(tap)) is not None]
    with outputs_of(network, layers) as kept:
        maps: Sequence[Tensor] = ()
        if stages:
            maps = stage_maps(network, image_BCHW, None if -1 in stages or layers else max(stages))
        if layers and not all(kept.values()):  # layers behind the stages, such as a head
            for calls in kept.values():
                calls.clear()
            backbone = getattr(network, "backbone", None)  # a detector takes no tensor
            (backbone if isinstance(backbone, nn.Module) else network)(image_BCHW)
    return [_chosen(tap, maps, kept, image_BCHW) for tap in taps]


def _chosen(tap: str, maps: Sequence[Tensor], kept: Mapping[str, list[Any]], image_BCHW: Tensor) -> Tensor:
    number = stage_number(tap)
    if number is None:
        return as_map(_joined(kept[tap], tap, len(image_BCHW)), image_BCHW)
    if number == 0 or number > len(maps):
        raise ValueError(f"there is no {tap}; the network has the stages stage1 to stage{len(maps)}, and last")
    return maps[number - 1] if number > 0 else maps[-1]


def _joined(calls: Sequence[Any], name: str, images: int) -> Tensor:
    """Return the outputs of a layer as one tensor: a stage may be called for some images at a time."""
    tensors = [first_tensor(call, name) for call in calls]
    if not tensors:
        raise ValueError(f"the layer {name!r} was not called; name one that takes part in a forward pass")
    if len(tensors) > 1 and sum(len(x) for x in tensors) == images:
        return torch.cat(tensors)
    return tensors[-1]


def first_tensor(value: Any, name: str) -> Tensor:
    """Return a layer's output, or the first tensor of several. Raises ValueError where it is none."""
    while isinstance(value, list | tuple) and value:
        value = value[0]
    if not isinstance(value, Tensor):
        raise ValueError(f"the layer {name!r} returns a {type(value).__name__}, not a tensor; name another one")
    return value


def as_map(x: Tensor, image_BCHW: Tensor) -> Tensor:
    """Return the output of a layer as a (B, C, H, W) map: of channels-last maps, and of tokens (B, N, C) as well.

    The layout whose strides down and across agree best is taken; (B, C, H, W) where both agree alike.

    Raises:
        ValueError: the tensor is no map.
    """
    height, width = image_BCHW.shape[-2:]
    if x.ndim == 4:
        first, last = (_misfit(x.shape[i], x.shape[i + 1], height, width) for i in (2, 1))
        if min(first, last) <= ONE_CELL:
            return x if first <= last else x.movedim(-1, 1)
    if x.ndim == 3:
        for skipped in (0, 1):  # a class token comes first
            tokens = x.shape[1] - skipped
            rows = round((tokens * height / width) ** 0.5)
            if rows and tokens % rows == 0 and _misfit(rows, tokens // rows, height, width) <= ONE_CELL:
                return x[:, skipped:].movedim(-1, 1).unflatten(2, (rows, tokens // rows))
    raise ValueError(
        f"a layer returned a tensor of shape {tuple(x.shape)} for images of {height} x {width} pixels, which is not a "
        "feature map; name a layer that returns (B, C, H, W), (B, H, W, C) or (B, H * W, C)"
    )


def _misfit(rows: int, columns: int, height: int, width: int) -> float:
    """Return by how many cells a map differs from one whose strides down and across agree; infinite for no map."""
    if min(rows, columns) < 1 or rows > height or columns > width:
        return float("inf")
    return abs(rows * width / height - columns)


def block_taps(network: nn.Module) -> tuple[str, ...]:
    """Return the names of a network's blocks in their order: the children of each `blocks`, or of ResNet's `layerN`.

    Raises:
        ValueError: it has neither.
    """
    names = []
    for name, module in network.named_modules():
        last = name.rpartition(".")[2]
        is_stage = last.startswith("layer") and last.removeprefix("layer").isdecimal()
        if isinstance(module, nn.Sequential | nn.ModuleList) and (last == "blocks" or is_stage):
            names += [f"{name}.{child}" for child, _ in module.named_children()]
    if not names:
        raise UnsuitableNetwork(network, "has no modules called `blocks`", "take its stages, or name its layers")
    return tuple(names)
