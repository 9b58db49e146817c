"""What a backbone says about its maps, and whether they are so. B images, C channels, H x W pixels, h x w cells."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

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


def feature_maps(backbone: nn.Module, image_BCHW: Tensor) -> Sequence[Tensor]:
    """The maps of a backbone, one (B, level.channels, h, w) for each of its `levels`.

    Raises:
        ValueError: they are not what `levels` say. A graph that is traced holds no such check.
    """
    maps = backbone(image_BCHW)
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
        return maps
    if not _fit(maps, levels := levels_of(backbone), image_BCHW.shape[2:]):
        said = ", ".join(f"{level.channels} channels at stride {level.stride}" for level in levels)
        raise ValueError(
            f"{type(backbone).__name__} makes {_told(maps)} of {_told([image_BCHW])}, and its levels say {said}; "
            "let its forward return a list of maps (B, channels, H / stride, W / stride), one for each level"
        )
    return maps


def _fit(maps: object, levels: Sequence[Level], sides: Sequence[int]) -> bool:
    """Whether these are maps of an image with such sides, up to what is cut off or filled up at borders."""
    if not isinstance(maps, list | tuple) or len(maps) != len(levels):
        return False
    for x, level in zip(maps, levels, strict=True):
        if not isinstance(x, Tensor) or x.ndim != 4 or x.shape[1] != level.channels:
            return False
        covered = [cells * level.stride for cells in x.shape[2:]]
        if any(abs(a - b) > 2 * level.stride + b / 4 for a, b in zip(covered, sides, strict=True)):
            return False
    return True


def _told(maps: object) -> str:
    if not isinstance(maps, list | tuple):
        return f"a {type(maps).__name__}"
    told = [str(tuple(x.shape)) if isinstance(x, Tensor) else f"a {type(x).__name__}" for x in maps]
    return ", ".join(told) or "no map"


def first_at_stride(levels: tuple[Level, ...], stride: int) -> int:
    """Index of the first map at this stride or coarser.

    Raises:
        ValueError: there is none.
    """
    found = next((i for i, level in enumerate(levels) if level.stride >= stride), None)
    if found is None:
        raise ValueError(f"the backbone's maps end at stride {levels[-1].stride}; this needs one at {stride} or more")
    return found
