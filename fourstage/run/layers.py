"""The layer that each parameter of a network belongs to, counted from 0 at the image; frozen stages."""

import re
from typing import Any, cast

from torch import nn

from fourstage.backbones.base import Backbone
from fourstage.backbones.feature_maps import FeatureMaps
from fourstage.backbones.recomputation import count_statistics_once

AFTER_CONVNEXT = 13  # group of what follows the twelve groups and the stem


def layers_of(task: nn.Module, groups: str) -> dict[str, int]:
    """Return the layer of each parameter by name. Parameters outside the backbone, such as heads, have the last layer.

    Args:
        groups: "blocks": the layers of the network's `group_matcher`, in timm's sense. "convnext": the twelve groups
            in the code of ConvNeXt and of the unified models, with three blocks of the third stage in each group.

    Raises:
        ValueError: the network has no `group_matcher`, or no layer of the twelve groups.
    """
    where, network = backbone_of(task)
    own = [name for name, _ in network.named_parameters()]
    layers = {name: convnext_group(name) for name in own} if groups == "convnext" else _by_matcher(network)
    if groups == "convnext" and min(layers.values()) == AFTER_CONVNEXT:
        raise ValueError(
            "layer_groups=convnext is for networks with stem and stages, as the unified models have them, and this "
            "network has neither; write layer_groups=blocks"
        )
    last = max(layers.values()) + 1
    prefix = f"{where}." if where else ""
    return {name: layers.get(name.removeprefix(prefix), last) for name, _ in task.named_parameters()}


def backbone_of(task: nn.Module) -> tuple[str, nn.Module]:
    """Return the network inside a task that has a `group_matcher`, with its name in the task.

    Raises:
        ValueError: no network in it has one.
    """
    for where, module in task.named_modules():
        if hasattr(module, "group_matcher"):
            return where, module
    raise ValueError(
        "layer_decay and frozen_stages need a network with group_matcher(), which names its layers; give your network "
        "one in the form of timm's models, or leave both out of the recipe"
    )


def recompute(task: nn.Module) -> None:
    """Recompute the activations of the task's network in the backward pass, which changes no number.

    Raises:
        ValueError: no network in it can.
    """
    network: Any = next((module for module in task.modules() if hasattr(module, "set_grad_checkpointing")), None)
    if network is None:
        raise ValueError(
            "grad_checkpointing needs a network with set_grad_checkpointing(enable), which recomputes activations in "
            "the backward pass; give your network one in the form of timm's models, or leave it out of the recipe"
        )
    try:
        network.set_grad_checkpointing(True)
    except AssertionError as error:  # what timm's networks raise
        raise ValueError(
            f"{type(network).__name__} cannot recompute activations in the backward pass; leave grad_checkpointing out"
        ) from error
    if not isinstance(network, Backbone | FeatureMaps):  # those count batch statistics once
        count_statistics_once(network)


def convnext_group(name: str) -> int:
    """Return the group of a parameter.

    0 is the stem, 1 and 2 are the first two stages, 3 to 11 the third in threes, 12 the last, 13 all that follows. In
    group 11 are also the blocks of the third stage after the 27th, for which the source has no group.
    Down-sampling belongs to the blocks after it, except before the second and the third stage, where it has the number
    of the stage. Source: ConvNeXt, optim_factory.py, of which the unified models use a copy.
    """
    if name.startswith("stem."):
        return 0
    match = re.match(r"stages\.(\d)\.(embed|blocks\.(\d+))\.", name)
    if match is None:
        return AFTER_CONVNEXT
    stage = int(match[1])
    if stage == 3:
        return 12
    return stage + 1 + (min(int(match[3]) // 3, 8) if stage == 2 and match[3] else 0)


def freeze(task: nn.Module, stages: int) -> list[str]:
    """Freeze the stem and the first `stages` stages of the task's network; return the names of frozen parameters.

    Frozen norms use their stored statistics while the rest trains.

    Raises:
        ValueError: the network has fewer stages, or nothing but these.
    """
    where, network = backbone_of(task)
    groups = _by_matcher(network, coarse=True)
    count = len(network.strides) if isinstance(network, Backbone) else max(groups.values())
    if stages > count:
        raise ValueError(f"frozen_stages={stages}, but the network has {count} stages; choose at most {count}")
    frozen = [name for name, group in groups.items() if group <= stages]
    for name in frozen:
        network.get_parameter(name).requires_grad_(False)
    if not any(parameter.requires_grad for parameter in task.parameters()):
        raise ValueError(f"frozen_stages={stages} freezes every parameter; choose a smaller number")
    return [f"{where}.{name}" if where else name for name in frozen]


def norms_of_backbone(task: nn.Module) -> list[str]:
    """Return the names of the gains and biases of all norms in the task's backbone."""
    network = cast(Any, task).network
    where, inner = ("network.backbone", network.backbone) if hasattr(network, "backbone") else ("network", network)
    return [
        f"{where}.{name}.{own}"
        for name, module in inner.named_modules()
        if "norm" in type(module).__name__.lower()
        for own, _ in module.named_parameters(recurse=False)
    ]


def _by_matcher(network: nn.Module, *, coarse: bool = False) -> dict[str, int]:
    """Return name -> 0 for the stem, then blocks (`coarse`: stages) in order, then what follows them."""
    from timm.models import group_parameters

    grouped: Any = group_parameters(network, cast(Any, network).group_matcher(coarse=coarse), reverse=True)
    return {str(name): int(layer) for name, layer in grouped.items()}
