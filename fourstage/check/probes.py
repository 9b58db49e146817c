"""What the laws are tried on: a mixer in its places of a network, or a backbone.

B images, H x W cells or pixels, C channels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature

import torch
from torch import Tensor, nn

from fourstage import registry
from fourstage.backbones.mixers.build import Place, build_mixer
from fourstage.check.candidates import Candidate
from fourstage.tasks.parts.levels import feature_maps

WIDTHS = (32, 64, 128, 256)  # channels of the places of a mixer, those of the micro networks
SIDE = 128  # pixels of the image whose maps a mixer is built for
SMALLEST = 32  # pixels a side; a stage's smallest map is this over its stride
MORE_CELLS = ((0, 0), (0, 5), (4, 8), (22, 2), (13, 13))  # than the smallest map: a line, odd, narrow, large ones
IMAGE_SIZES = ((32, 32), (33, 47), (64, 96), (97, 65))  # pixels
RECORDED = {"mixer": (16, 18), "backbone": (128, 160)}  # sides of exported examples, larger than a window
BACKBONE_SIDES = (64, 224)  # the first at which a backbone runs is used
NOISE = 0.02  # added to parameters, so that layers that start at zero hide nothing
SEED = 0


@dataclass(frozen=True)
class Probe:
    """One instance to try.

    Attributes:
        where: the place, for messages.
        build: builds an instance.
        shape: of its input, with a batch of 2.
        sides: positions of the two sides in that shape.
        sizes: other sizes that it must take.
        recorded: the size with which a program is exported.
        run: calls it, checks the shapes of what it returns, and returns these tensors.
    """

    where: str
    build: Callable[[], nn.Module]
    shape: tuple[int, int, int, int]
    sides: tuple[int, int]
    sizes: Sequence[tuple[int, int]]
    recorded: tuple[int, int]
    run: Callable[[nn.Module, Tensor], tuple[Tensor, ...]]

    def fresh(self) -> nn.Module:
        """Return a new instance in evaluation mode, the same in every call, with noise on its parameters."""
        torch.manual_seed(SEED)
        module = self.build()
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.is_floating_point():
                    parameter.add_(torch.randn_like(parameter), alpha=NOISE)
        return module.eval()

    def input(self, size: tuple[int, int] | None = None, batch: int = 2) -> Tensor:
        """Return normal noise of this size, the same in every call; None: the size that the instance is built for."""
        shape = list(self.shape)
        shape[0] = batch
        for axis, side in zip(self.sides, size or [shape[axis] for axis in self.sides], strict=True):
            shape[axis] = side
        return torch.randn(shape, generator=torch.Generator().manual_seed(SEED))


def probes_of(candidate: Candidate, stages: Sequence[int] = (0, 1, 2, 3)) -> list[Probe]:
    """Return the places in which a mixer is tried, or the one probe of a backbone."""
    if candidate.kind == "mixer":
        return [_mixer_probe(candidate, stage) for stage in stages]
    return [_backbone_probe(candidate)]


def _mixer_probe(candidate: Candidate, stage: int) -> Probe:
    stride = 4 * 2**stage
    dim, cells, least = WIDTHS[stage], SIDE // stride, SMALLEST // stride
    place = Place(dim, dim // 32, stage, block=stage % 2, map_size=(cells, cells), dense=False)
    return Probe(
        where=f"stage {stage}",
        build=lambda: build_mixer(candidate.build, place),
        shape=(2, cells, cells, dim),
        sides=(1, 2),
        sizes=[(least + h, least + w) for h, w in MORE_CELLS],
        recorded=RECORDED["mixer"],
        run=_run_mixer,
    )


def _run_mixer(mixer: nn.Module, x_BHWC: Tensor) -> tuple[Tensor, ...]:
    mixed: object = mixer(x_BHWC)
    if not isinstance(mixed, Tensor) or mixed.shape != x_BHWC.shape:
        got = tuple(mixed.shape) if isinstance(mixed, Tensor) else f"a {type(mixed).__name__}"
        raise WrongShapeError(f"{tuple(x_BHWC.shape)}, (B, H, W, C), gave {got}")
    return (mixed,)


class WrongShapeError(ValueError):
    """A mixer or a backbone returned an output of the wrong shape."""


def _backbone_probe(candidate: Candidate) -> Probe:
    side = first_side(candidate)
    return Probe(
        where="the backbone",
        build=lambda: build_backbone(candidate, side),
        shape=(2, 3, side, side),
        sides=(2, 3),
        sizes=IMAGE_SIZES,
        recorded=RECORDED["backbone"],
        run=_run_backbone,
    )


def _run_backbone(backbone: nn.Module, image_BCHW: Tensor) -> tuple[Tensor, ...]:
    try:
        return tuple(feature_maps(backbone, image_BCHW))
    except ValueError as error:
        if "levels" in str(error):
            raise WrongShapeError(str(error)) from error
        raise


def build_backbone(candidate: Candidate, side: int) -> nn.Module:
    """Return the backbone, for images of this side where it takes `img_size`.

    Raises:
        ValueError: the candidate builds no module.
    """
    arguments = {"img_size": side} if "img_size" in signature(candidate.build).parameters else {}
    built: object = registry.call(candidate.build, candidate.name, arguments)
    if not isinstance(built, nn.Module):
        raise ValueError(f"{candidate.name} must build a torch.nn.Module; it gave a {type(built).__name__}")
    return built


def first_side(candidate: Candidate) -> int:
    """Return the first side of `BACKBONE_SIDES` at which the backbone runs; none: the first."""
    for side in BACKBONE_SIDES:
        try:
            with torch.no_grad():
                _run_backbone(build_backbone(candidate, side).eval(), torch.zeros(1, 3, side, side))
        except (Exception, SystemExit):  # the user's code may raise anything; the first line of the card reports it
            continue
        return side
    return BACKBONE_SIDES[0]
