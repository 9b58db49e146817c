"""RoIAlign by several threads is torchvision's, bit for bit."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import roi_align as by_torchvision

from fourstage.ops import roi_align


@pytest.fixture(params=[2, 3])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    monkeypatch.setattr(roi_align, "WORTH", 0)
    calls: list[int] = []
    inner = roi_align._in_threads
    monkeypatch.setattr(roi_align, "_in_threads", lambda *args: calls.append(1) or inner(*args))
    yield request.param
    assert calls
    assert torch.get_num_threads() == request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("regions", [0, 1, 7])
@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize("samples", [0, 2])
@pytest.mark.usefixtures("threads")
def test_forward_and_backward(regions: int, channels: int, samples: int) -> None:
    torch.manual_seed(0)
    maps = [torch.randn(2, channels, 9, 11).to(memory_format=torch.channels_last)] * 2
    maps = [x_BCHW.clone().requires_grad_() for x_BCHW in maps]
    first_R2 = torch.rand(regions, 2) * 40 - 8
    rois_R5 = torch.cat([torch.arange(regions)[:, None] % 2, first_R2, first_R2 + torch.rand(regions, 2) * 30], dim=1)
    found = roi_align.roi_align(maps[0], rois_R5, 3, 0.25, samples)
    wanted = by_torchvision(maps[1], rois_R5, 3, 0.25, samples, aligned=True)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    weight = torch.randn_like(wanted)
    grads = [torch.autograd.grad((weight * x).sum(), map)[0] for x, map in ((found, maps[0]), (wanted, maps[1]))]
    torch.testing.assert_close(*grads, rtol=0, atol=0)


@pytest.mark.usefixtures("threads")
def test_nothing_is_recorded_where_nothing_is_asked_for() -> None:
    x_BCHW, rois_R5 = torch.randn(1, 2, 8, 8, requires_grad=True), torch.tensor([[0.0, 1, 1, 6, 7]] * 4)
    with torch.inference_mode():
        assert roi_align.roi_align(x_BCHW, rois_R5, 3, 1.0, 0).is_inference()
    with torch.no_grad():
        found = roi_align.roi_align(x_BCHW, rois_R5, 3, 1.0, 0)
    assert not found.is_inference()


def test_threads_are_as_many_as_pytorch_has(threads: int) -> None:
    """Not their square, and others that start later have all of PyTorch's."""
    roi_align._pool.cache_clear()
    x_BCHW = torch.randn(1, 2, 8, 8)
    for regions in range(1, 9):
        roi_align.roi_align(x_BCHW, torch.tensor([[0.0, 1, 1, 6, 7]] * regions), 3, 1.0, 0)
    assert roi_align._pool.cache_info().currsize == 1
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == threads
    assert set(roi_align._pool(threads).map(lambda _: torch.get_num_threads(), range(threads))) == {1}


def test_little_is_not_worth_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(roi_align, "_in_threads", None)
    roi_align.roi_align(torch.randn(1, 2, 8, 8), torch.tensor([[0.0, 1, 1, 6, 7]]), 3, 1.0, 0)


def test_the_plain_form_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    class Regions(nn.Module):
        def forward(self, x_BCHW: Tensor, rois_R5: Tensor) -> Tensor:
            return roi_align.roi_align(x_BCHW, rois_R5, 3, 1.0, 2)

    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(roi_align, "WORTH", 0)
    monkeypatch.setattr(roi_align, "_in_threads", None)
    given = torch.randn(1, 2, 8, 8), torch.tensor([[0.0, 1, 1, 6, 7], [0.0, 2, 0, 4, 8]])
    program = torch.export.export(Regions(), given)
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert targets == ["torchvision.roi_align.default"]
    Regions()(*(x.double() for x in given))
    monkeypatch.setenv("FOURSTAGE_OPS", "plain")
    Regions()(*given)
