"""Which layer of a network each parameter belongs to, counted from 0 at the image; and which do not learn at all."""

import re
from typing import Any, cast

from torch import nn


def layers_of(task: nn.Module, groups: str) -> dict[str, int]:
    """Name of a parameter -> its layer. What is not of the network itself, such as a detector's head, has the last.

    Args:
        groups: "blocks": as the network's `group_matcher` says, read as timm reads it. "convnext": the twelve groups
            that ConvNeXt's and the unified models' code have, three blocks of the third stage to a group.

    Raises:
        ValueError: the network has no `group_matcher`.
    """
    where, network = backbone_of(task)
    own = [name for name, _ in network.named_parameters()]
    found = {name: convnext_group(name) for name in own} if groups == "convnext" else _by_matcher(network)
    last = max(found.values()) + 1
    prefix = f"{where}." if where else ""
    return {name: found.get(name.removeprefix(prefix), last) for name, _ in task.named_parameters()}


def backbone_of(task: nn.Module) -> tuple[str, nn.Module]:
    """The network inside a task that says what its layers are, with the name it has there."""
    for where, module in task.named_modules():
        if hasattr(module, "group_matcher"):
            return where, module
    raise ValueError(
        "layer_decay and frozen_stages need a network with group_matcher(), which says what its layers are; give "
        "yours one as timm's models have it, or leave them out"
    )


def convnext_group(name: str) -> int:
    """0: stem; 1 and 2: the first stages; 3 to 11: the third by threes; 12: the last; 13: what follows the stages.

    A stage's down-sampling goes with the blocks after it, except before the second and the third stage, where it has
    the number of the stage. Source: ConvNeXt, optim_factory.py, of which the unified models use a copy.
    """
    if name.startswith("stem."):
        return 0
    match = re.match(r"stages\.(\d)\.(embed|blocks\.(\d+))\.", name)
    if match is None:
        return 13
    stage = int(match[1])
    if stage == 3:
        return 12
    return stage + 1 + (int(match[3]) // 3 if stage == 2 and match[3] else 0)


def freeze(task: nn.Module, stages: int) -> list[str]:
    """Let the stem and the first `stages` stages of the task's network stay as they are; returns what was frozen.

    Their norms use their stored statistics while the rest trains.

    Raises:
        ValueError: the network has fewer stages.
    """
    where, network = backbone_of(task)
    groups, count = _by_matcher(network, coarse=True), len(cast(Any, network).feature_info)
    if stages > count:
        raise ValueError(f"frozen_stages={stages}, and the network has {count} stages; choose at most {count}")
    frozen = [name for name, group in groups.items() if group <= stages]
    for name in frozen:
        network.get_parameter(name).requires_grad_(False)
    return [f"{where}.{name}" if where else name for name in frozen]


def norms_of_backbone(task: nn.Module) -> list[str]:
    """Names of the gains and biases of all norms in the task's backbone."""
    network = cast(Any, task).network
    where, inner = ("network.backbone", network.backbone) if hasattr(network, "backbone") else ("network", network)
    return [
        f"{where}.{name}.{own}"
        for name, module in inner.named_modules()
        if "norm" in type(module).__name__.lower()
        for own, _ in module.named_parameters(recurse=False)
    ]


def _by_matcher(network: nn.Module, *, coarse: bool = False) -> dict[str, int]:
    """Name -> 0 for the stem, then blocks (`coarse`: stages) in order, then what follows them."""
    from timm.models import group_parameters

    grouped: Any = group_parameters(network, cast(Any, network).group_matcher(coarse=coarse), reverse=True)
    return {str(name): int(layer) for name, layer in grouped.items()}
