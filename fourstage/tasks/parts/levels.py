"""What a backbone says about its maps."""

from torch import nn

from fourstage.backbones.layers import Level


def levels_of(backbone: nn.Module) -> tuple[Level, ...]:
    """Its `levels`, finest first.

    Raises:
        ValueError: it has none.
    """
    levels = getattr(backbone, "levels", None)
    if not levels:
        raise ValueError(f"{type(backbone).__name__} has no levels; build it with create_backbone, or set its levels")
    return tuple(levels)


def from_stride(levels: tuple[Level, ...], stride: int) -> int:
    """Index of the first map at this stride or coarser.

    Raises:
        ValueError: there is none.
    """
    found = next((i for i, level in enumerate(levels) if level.stride >= stride), None)
    if found is None:
        raise ValueError(f"the backbone's maps end at stride {levels[-1].stride}; this needs one at {stride} or more")
    return found
