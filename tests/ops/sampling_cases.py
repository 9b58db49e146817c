"""Inputs of deformable sampling and its definition. `make gpu` imports this file, with torch and pytest alone."""

from collections.abc import Sequence

import torch
from torch import Tensor


def by_definition(maps: Sequence[Tensor], locations_BQhLP2: Tensor, weights_BQhLP: Tensor) -> Tensor:
    """Every cell counts by how near it is: 1 at no distance, 0 from one cell on, along both axes."""
    out = []
    for i, map_BHWhd in enumerate(maps):
        x, y = locations_BQhLP2[:, :, :, i].unbind(-1)
        height, width = map_BHWhd.shape[1:3]
        share_x = (1 - (x[..., None] - torch.arange(width)).abs()).clamp(min=0)
        share_y = (1 - (y[..., None] - torch.arange(height)).abs()).clamp(min=0)
        weight = weights_BQhLP[:, :, :, i]
        out.append(torch.einsum("bqhp,bqhpy,bqhpx,byxhd->bqhd", weight, share_y, share_x, map_BHWhd))
    return torch.stack(out).sum(0).flatten(2)


def case(seed: int, sizes: Sequence[tuple[int, int]], spread: float = 3.0, batch: int = 2) -> list[Tensor]:
    """Maps, locations around and beyond them, weights: float64, with gradients, off the lines between cells."""
    generator = torch.Generator().manual_seed(seed)
    queries, heads, dim, points = 3, 2, 3, 4
    maps = [torch.randn(batch, h, w, heads, dim, generator=generator, dtype=torch.float64) for h, w in sizes]
    shape = (batch, queries, heads, len(sizes), points)
    size_L12 = torch.tensor([[[w, h]] for h, w in sizes])
    locations = torch.rand(*shape, 2, generator=generator, dtype=torch.float64) * (size_L12 + 2 * spread) - spread
    locations = locations + 2e-2 * ((locations - locations.round()).abs() < 1e-2)
    weights = torch.randn(shape, generator=generator, dtype=torch.float64)
    return [x.requires_grad_() for x in (*maps, locations, weights)]


def gradients(out: Tensor, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    probe = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return torch.autograd.grad((out * probe.to(out.dtype)).sum(), tensors)
