"""The averages of UPerNet's pyramid in exported graphs, which serve maps of any size."""

from itertools import product

import torch
from torch import nn

from fourstage.ops import pooling


def test_averages_by_products_are_those_of_adaptive_pooling() -> None:
    for height, width, side in product(range(1, 16), (1, 4, 7, 16), (1, 2, 3, 6)):
        x_BCHW = torch.randn(2, 3, height, width)
        wanted = nn.functional.adaptive_avg_pool2d(x_BCHW, side)
        torch.testing.assert_close(pooling.by_products(x_BCHW, side), wanted, rtol=0, atol=1e-5)


def test_autocast_leaves_the_precision() -> None:
    x_BCHW = torch.randn(2, 3, 9, 7)
    wanted = nn.functional.adaptive_avg_pool2d(x_BCHW, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(pooling.by_products(x_BCHW, 3), wanted, rtol=0, atol=1e-5)


def test_one_graph_averages_maps_of_any_size() -> None:
    class Pool(nn.Module):
        def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
            return pooling.average_cells(x_BCHW, 3)

    dims = {2: torch.export.Dim("height", min=2, max=64), 3: torch.export.Dim("width", min=2, max=64)}
    graph = torch.export.export(Pool(), (torch.randn(1, 2, 7, 10),), dynamic_shapes=(dims,)).module()
    for height, width in ((2, 3), (5, 40), (19, 8)):
        x_BCHW = torch.randn(1, 2, height, width)
        torch.testing.assert_close(graph(x_BCHW), nn.functional.adaptive_avg_pool2d(x_BCHW, 3), rtol=0, atol=1e-5)
