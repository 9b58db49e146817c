"""Maps that a backbone gives and nothing reads. Processes that train together wait for every gradient."""

from collections.abc import Collection

from torch import nn

from fourstage.backbones.base import Dense
from fourstage.tasks.parts.levels import levels_of


def freeze_unread(backbone: nn.Module, read: Collection[int]) -> bool:
    """Do without gradients for what leads only to maps that are not read; its weights stay, as files have them.

    Args:
        read: numbers of maps among the backbone's `levels`.

    Returns:
        Whether some parameters may still be without a gradient: a backbone of another kind does not say what they are.
    """
    if len(set(read)) == len(levels_of(backbone)):
        return False
    if not isinstance(backbone, Dense):
        return True
    backbone.freeze_unread(read)
    return False
