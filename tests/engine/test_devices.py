"""A task as the processes train it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, nn

from fourstage.backbones.layers import Level
from fourstage.engine.devices import Ranks, choose_device, wrap
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


@pytest.mark.parametrize(("version", "chosen"), [(91900, False), (92600, True), (None, False)])
def test_an_old_cudnn_computes_no_attention(version: int | None, chosen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: version)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        assert choose_device("cpu").type == "cpu"
        assert torch.backends.cuda.cudnn_sdp_enabled()
        assert choose_device("auto", 1) == torch.device("cuda", 1)
        assert torch.backends.cuda.cudnn_sdp_enabled() == chosen
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
