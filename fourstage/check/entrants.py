"""Networks to compare: the user's mixer or backbone, and the five built-in mixers in the same frame at equal width.

B images, C channels, H x W cells.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fourstage.backbones.layers import Level
from fourstage.backbones.mixers.build import Mixer
from fourstage.backbones.unified import Design, classifier
from fourstage.check.candidates import Candidate
from fourstage.check.probes import SEED, WIDTHS, build_backbone, first_side
from fourstage.tasks.parts.levels import feature_maps, levels_of

FIVE = ("convnext", "dcn_v3", "halo", "pvt", "swin")
DEPTHS = (1, 1, 2, 1)  # blocks: in the third stage, U-Swin shifts its windows
CLASSES = 10
HEAD_WIDTH = {"dcn_v3": 16}  # channels of a group; 32 of all others, as in the micro networks


@dataclass(frozen=True)
class Entrant:
    """One network of the comparison.

    Attributes:
        build: builds it for square images of a side, with ten classes, the same in every call.
    """

    name: str
    build: Callable[[int], nn.Module]


def entrants_of(candidate: Candidate) -> list[Entrant]:
    """Return the user's network first, then those of the five built-in mixers."""
    if candidate.kind == "mixer":
        own, widths = _mixed(candidate.name, candidate.build, WIDTHS), WIDTHS
    else:
        widths = _widths_of(levels_of(build_backbone(candidate, first_side(candidate))))
        own = Entrant(candidate.name, _seeded(lambda side: PooledBackbone(build_backbone(candidate, side))))
    return [own, *(_mixed(name, name, widths) for name in FIVE)]


def _mixed(name: str, mixer: Mixer, widths: tuple[int, ...]) -> Entrant:
    heads = tuple(width // HEAD_WIDTH.get(name, 32) for width in widths)
    design = Design("swin", widths, DEPTHS, heads, eps=1e-6)

    def build(side: int) -> nn.Module:
        # without layer scales, which would hide the mixer for the first thousand steps
        return classifier(design, num_classes=CLASSES, img_size=side, mixer=mixer, init_values=0)

    return Entrant(name, _seeded(build))


def _seeded(build: Callable[[int], nn.Module]) -> Callable[[int], nn.Module]:
    def seeded(side: int) -> nn.Module:
        torch.manual_seed(SEED)
        return build(side)

    return seeded


def _widths_of(levels: tuple[Level, ...]) -> tuple[int, ...]:
    """Return four widths near those of a backbone's maps: multiples of 32, the first ones halved where maps lack."""
    widths = [max(32, round(level.channels / 32) * 32) for level in levels[-4:]]
    while len(widths) < 4:
        widths.insert(0, max(32, widths[0] // 64 * 32))
    return tuple(widths)


class PooledBackbone(nn.Module):
    """A backbone with the head of a classifier: the last map's mean, then a linear layer. (B, 3, H, W) to (B, K)."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.levels = levels_of(backbone)
        self.head = nn.Linear(self.levels[-1].channels, CLASSES)

    def forward_maps(self, image_BCHW: Tensor) -> list[Tensor]:
        return list(feature_maps(self.backbone, image_BCHW))

    def forward(self, image_BCHW: Tensor) -> Tensor:
        return self.head(self.forward_maps(image_BCHW)[-1].mean(dim=(2, 3)))
