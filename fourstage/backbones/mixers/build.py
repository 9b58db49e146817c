"""Building the mixer of one block from the argument `mixer=`, a name or a class.

B images, H x W cells, C channels.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from fourstage import registry
from fourstage.backbones.mixers.deformable import DeformableMixer
from fourstage.backbones.mixers.depthwise import DepthwiseMixer
from fourstage.backbones.mixers.halo import HaloMixer
from fourstage.backbones.mixers.reduction import ReductionAttention
from fourstage.backbones.mixers.window import WindowAttention

WINDOW = 7  # cells a side
REDUCTIONS = (8, 4, 2, 1)  # by stage: cells a side of the squares that become one key
OFFERED = ("heads", "stage", "block", "map_size")  # keywords that a user's mixer may have

Mixer = str | Callable[..., nn.Module]


@dataclass(frozen=True)
class Place:
    """The place of a mixer in a network."""

    dim: int  # C
    heads: int  # of attention, or groups of channels, at this stage
    stage: int  # from 0
    block: int  # of the stage, from 0
    map_size: tuple[int, int]  # (H, W) of the stage's map where images have `img_size`
    dense: bool  # in the dense form, not in the classifier


def _window(place: Place) -> nn.Module:
    window = WINDOW if place.dense else min(WINDOW, *place.map_size)
    return WindowAttention(place.dim, place.heads, window, shifted=place.block % 2 == 1, dense=place.dense)


def _reduction(place: Place) -> nn.Module:
    return ReductionAttention(place.dim, place.heads, REDUCTIONS[place.stage])


BUILT_IN: dict[str, Callable[[Place], nn.Module]] = {
    "convnext": lambda place: DepthwiseMixer(place.dim),
    "dcn_v3": lambda place: DeformableMixer(place.dim, place.heads),
    "halo": lambda place: HaloMixer(place.dim, place.heads, dense=place.dense),
    "pvt": _reduction,
    "pvt_v2": _reduction,
    "swin": _window,
}
# mixers that do not know positions: a position embedding goes before the first block of each stage
POSITIONED = ("pvt",)


def build_mixer(mixer: Mixer, place: Place) -> nn.Module:
    """Return the mixer for one place.

    Args:
        mixer: a name, or what builds one mixer: it is called with C and those keywords of `OFFERED` that it has.

    Raises:
        ValueError: an unknown name, something that builds no module, or a call that fails.
    """
    if isinstance(mixer, str):
        if mixer in BUILT_IN:
            return BUILT_IN[mixer](place)
        mixer = registry.find_mixer(mixer)
    if isinstance(mixer, nn.Module) or not callable(mixer):
        raise ValueError(
            f"mixer= takes a name, or a class, from which each block builds its own mixer; got {_short(mixer)}"
        )
    arguments = {name: getattr(place, name) for name in _asked_for(mixer)}
    call = ", ".join([f"{_name(mixer)}({place.dim}", *(f"{key}={value}" for key, value in arguments.items())]) + ")"
    try:
        built = mixer(place.dim, **arguments)
    except TypeError as error:
        raise ValueError(
            f"the mixer cannot be built as {call}: {error}; besides C it is given those of {', '.join(OFFERED)} that "
            "its signature names, so any other argument needs a default"
        ) from error
    if not isinstance(built, nn.Module):
        raise ValueError(f"{call} must give a module from (B, H, W, C) to the same; it gave {_short(built)}")
    return built


def _asked_for(build: Callable[..., Any]) -> list[str]:
    """Return the keywords of `OFFERED` in a signature, without those that a `functools.partial` has filled in."""
    try:
        parameters = inspect.signature(build).parameters
    except ValueError:  # built in C: it does not say
        return []
    return [name for name in OFFERED if name in parameters and name not in getattr(build, "keywords", ())]


def _name(build: Callable[..., Any]) -> str:
    return getattr(getattr(build, "func", build), "__name__", type(build).__name__)


def _short(value: object) -> str:
    return f"a {type(value).__name__}" if not isinstance(value, str | int | float) else repr(value)
