"""Parameters that no loss reaches. Processes that train together wait for the gradients of all the others."""

from collections.abc import Collection

from torch import nn

from fourstage.backbones.base import Dense
from fourstage.tasks.parts.levels import levels_of


def freeze_unused(backbone: nn.Module, read: Collection[int]) -> bool:
    """Freeze parameters that feed only unused maps; their values stay, and checkpoints hold them.

    Args:
        read: numbers of the maps that are used, among the backbone's `levels`.

    Returns:
        Whether some parameters may still get no gradient: only our own dense backbones can freeze theirs.
    """
    if len(set(read)) == len(levels_of(backbone)):
        return False
    if not isinstance(backbone, Dense):
        return True
    backbone.freeze_unused(read)
    return False
