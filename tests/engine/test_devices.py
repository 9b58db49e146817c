"""A task as the processes train it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, nn

from fourstage.backbones.layers import Level
from fourstage.engine.devices import Ranks, wrap
from fourstage.tasks.segmentation.segmentor import Segmentor


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


class Own(nn.Module):
    """A backbone that does not say what leads to which map."""

    levels = (Level(4, 4), Level(6, 8))

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.ModuleList(nn.Conv2d(3, x.channels, x.stride, x.stride) for x in self.levels)

    def forward(self, image_BCHW: Tensor) -> list[Tensor]:
        return [conv(image_BCHW) for conv in self.maps]


class First(nn.Module):
    def forward(self, maps: list[Tensor]) -> Tensor:
        return maps[0]


@pytest.mark.usefixtures("group")
def test_parameters_of_maps_that_nothing_reads_are_not_waited_for() -> None:
    segmentor = Segmentor(Own(), First(), 4, reads=[0])
    task = wrap(segmentor, Ranks(0, 2), torch.device("cpu"))
    for _ in range(3):  # the second step is where it would wait
        task(torch.randn(1, 3, 16, 16)).sum().backward()
    assert {name for name, p in segmentor.named_parameters() if p.grad is not None and p.grad.any()} == {
        "backbone.maps.0.weight",
        "backbone.maps.0.bias",
    }
