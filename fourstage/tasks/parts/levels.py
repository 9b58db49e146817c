"""The feature maps of a backbone and the levels that describe them. B images, C channels, H x W pixels, h x w cells."""

from collections.abc import Sequence

from torch import Tensor, nn

from fourstage.backbones.layers import Level
from fourstage.ops.eager import is_recorded


def levels_of(backbone: nn.Module) -> tuple[Level, ...]:
    """Return the backbone's `levels`, in descending resolution.

    Raises:
        ValueError: the backbone has none.
    """
    levels = getattr(backbone, "levels", None)
    if not levels:
        raise ValueError(f"{type(backbone).__name__} has no levels; build it with create_backbone, or set its levels")
    return tuple(levels)


def feature_maps(backbone: nn.Module, image_BCHW: Tensor) -> Sequence[Tensor]:
    """Return the feature maps of an image, one (B, level.channels, h, w) for each of the backbone's `levels`.

    Raises:
        ValueError: the maps do not match the `levels`. A recorded graph holds no such check.
    """
    maps = backbone(image_BCHW)
    if is_recorded():
        return maps
    if not _match(maps, levels := levels_of(backbone), image_BCHW.shape[2:]):
        needed = ", ".join(f"{level.channels} channels at stride {level.stride}" for level in levels)
        raise ValueError(
            f"{type(backbone).__name__} returned {_shapes(maps)} for {_shapes([image_BCHW])}, and its levels promise "
            f"{needed}; let its forward return a list of maps (B, channels, H / stride, W / stride), one for each level"
        )
    return maps


def _match(maps: object, levels: Sequence[Level], sides: Sequence[int]) -> bool:
    """Return whether these can be maps of an image with such sides, which may be cropped or padded at borders."""
    if not isinstance(maps, list | tuple) or len(maps) != len(levels):
        return False
    for x, level in zip(maps, levels, strict=True):
        if not isinstance(x, Tensor) or x.ndim != 4 or x.shape[1] != level.channels:
            return False
        covered = [cells * level.stride for cells in x.shape[2:]]
        if any(abs(a - b) > 2 * level.stride + b / 4 for a, b in zip(covered, sides, strict=True)):
            return False
    return True


def _shapes(maps: object) -> str:
    if not isinstance(maps, list | tuple):
        return f"a {type(maps).__name__}"
    shapes = [str(tuple(x.shape)) if isinstance(x, Tensor) else f"a {type(x).__name__}" for x in maps]
    return ", ".join(shapes) or "no map"


def first_at_stride(levels: tuple[Level, ...], stride: int) -> int:
    """Return the index of the first map at this stride or a larger one.

    Raises:
        ValueError: no map has such a stride.
    """
    index = next((i for i, level in enumerate(levels) if level.stride >= stride), None)
    if index is None:
        raise ValueError(f"the backbone's maps end at stride {levels[-1].stride}; this needs one at {stride} or more")
    return index
