"""Attention to a few learned points of several maps, https://arxiv.org/abs/2010.04159.

B images, L levels of H x W cells, N cells of all levels, h heads, P points a head and a level, Q queries, C channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import pi
from typing import cast

import torch
from torch import Tensor, nn

from fourstage.ops.matmul import linear
from fourstage.ops.sampling import deformable_sample
from fourstage.ops.shapes import sides_like
from fourstage.tasks.detection.boxes import as_float32
from fourstage.tasks.parts.settings import check_counts


@dataclass(frozen=True)
class Memory:
    """The cells of all levels, level after level, row after row.

    Attributes:
        sizes: (H, W) of each level.
        padding_BN: True where a cell is padding; None: no cell is.
        valid_BL2: share of each level's width and height that the image covers; None: all of it.
    """

    cells_BNC: Tensor
    sizes: tuple[tuple[int, int], ...]
    padding_BN: Tensor | None = None
    valid_BL2: Tensor | None = None


class DeformableAttention(nn.Module):
    """Each query reads `points` places of each level for each head, near its own reference, and weighs them.

    Args:
        channels: of queries and cells.
        levels, heads, points: how many.

    Raises:
        ValueError: the channels do not split evenly over the heads, or a count is not positive.
    """

    def __init__(self, channels: int, levels: int, heads: int = 8, points: int = 4) -> None:
        super().__init__()
        check_counts(channels=channels, levels=levels, heads=heads, points=points)
        if channels % heads:
            raise ValueError(f"{channels} channels do not split over {heads} heads; choose channels=k*{heads}")
        self.levels, self.heads, self.points = levels, heads, points
        self.offsets = nn.Linear(channels, heads * levels * points * 2)
        self.weights = nn.Linear(channels, heads * levels * points)
        self.value, self.out = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Let every head look in a direction of its own, its points one after the other, with equal weights."""
        for layer in (self.offsets, self.weights):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        angle_h = torch.arange(self.heads) * (2 * pi / self.heads)
        direction_h2 = torch.stack([angle_h.cos(), angle_h.sin()], dim=-1)
        direction_h2 = direction_h2 / direction_h2.abs().amax(dim=-1, keepdim=True)
        far_P = torch.arange(1, self.points + 1)
        offsets_hLP2 = (direction_h2[:, None, None] * far_P[:, None]).expand(-1, self.levels, -1, -1)
        with torch.no_grad():
            self.offsets.bias.copy_(offsets_hLP2.flatten())
        for layer in (self.value, self.out):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, query_BQC: Tensor, references: Tensor, memory: Memory) -> Tensor:
        """Return (B, Q, C).

        Args:
            references: (B, Q, L, 2) points or (B, Q, L, 4) boxes (centre, width and height), as shares of each level,
                float32; B may be 1. Offsets are in cells around a point, and in sides around a box.
        """
        value_BNC = linear(self.value, memory.cells_BNC)
        if memory.padding_BN is not None:
            value_BNC = value_BNC.masked_fill(memory.padding_BN[..., None], 0.0)
        maps = split_levels(value_BNC.unflatten(2, (self.heads, -1)), memory.sizes)
        locations_BQhLP2, weights_BQhLP = self.points_of(query_BQC, references, memory.sizes)
        return linear(self.out, deformable_sample(maps, locations_BQhLP2, weights_BQhLP))

    def points_of(
        self, query_BQC: Tensor, references: Tensor, sizes: Sequence[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        """Return (B, Q, h, L, P, 2) places in cells, (0, 0) the centre of the first, and (B, Q, h, L, P) weights."""
        shape = (self.heads, self.levels, self.points)
        # float32, because half precision cannot tell neighbouring cells of a large map apart
        offsets_BQhLP2 = as_float32(linear(self.offsets, query_BQC)).unflatten(2, (*shape, 2))
        weights_BQhLP = as_float32(linear(self.weights, query_BQC)).unflatten(2, (self.heads, -1)).softmax(-1)
        sides = [side for height, width in sizes for side in (width, height)]
        size_L2 = sides_like(references, sides).unflatten(0, (-1, 2))
        centers = (references[..., :2] * size_L2 - 0.5)[:, :, None, :, None]
        if references.shape[-1] == 4:
            reach = (references[..., 2:] * size_L2 * (0.5 / self.points))[:, :, None, :, None]
            offsets_BQhLP2 = offsets_BQhLP2 * reach
        return centers + offsets_BQhLP2, weights_BQhLP.unflatten(3, shape[1:])


def split_levels(cells_BN: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """(B, N, ...) to one (B, H, W, ...) for each level."""
    parts = cells_BN.split([height * width for height, width in sizes], dim=1)
    return [cast(Tensor, part).unflatten(1, size) for part, size in zip(parts, sizes, strict=True)]
