"""RoIAlign by several threads is torchvision's, bit for bit; its gradient by products is so up to rounding."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.ops import roi_align as by_torchvision

from fourstage.ops import roi_align, roi_align_gradient


@pytest.fixture(params=[2, 3])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    monkeypatch.setattr(roi_align, "WORTH", 0)
    monkeypatch.setattr(roi_align, "is_quicker", lambda *_: False)
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
    monkeypatch.setattr(roi_align, "_pool", None)
    roi_align.roi_align(torch.randn(1, 2, 8, 8), torch.tensor([[0.0, 1, 1, 6, 7]]), 3, 1.0, 0)


def test_the_plain_form_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    class Regions(nn.Module):
        def forward(self, x_BCHW: Tensor, rois_R5: Tensor) -> Tensor:
            return roi_align.roi_align(x_BCHW, rois_R5, 3, 1.0, 2)

    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(roi_align, "WORTH", 0)
    monkeypatch.setattr(roi_align, "_OwnGradient", None)
    example = torch.randn(1, 2, 8, 8), torch.tensor([[0.0, 1, 1, 6, 7], [0.0, 2, 0, 4, 8]])
    program = torch.export.export(Regions(), example)
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert targets == ["torchvision.roi_align.default"]
    Regions()(*(x.double() for x in example))
    monkeypatch.setenv("FOURSTAGE_OPS", "plain")
    Regions()(*example)


@settings(max_examples=60)
@given(
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 12), st.integers(1, 12)),
    regions=st.integers(0, 9),
    size=st.integers(1, 8),
    samples=st.integers(0, 3),
    seed=st.integers(0, 2**16),
)
def test_products_are_the_gradient(
    sizes: tuple[int, int, int, int], regions: int, size: int, samples: int, seed: int
) -> None:
    """Of any box: within the map, across its borders, far outside, or of no area."""
    torch.manual_seed(seed)
    images, _, height, width = sizes
    corners_R2 = torch.randn(regions, 2) * 2 * torch.tensor([width, height]) + 4
    sides_R2 = (torch.rand(regions, 2) * 24 - 4).clamp(min=0)
    rois_R5 = torch.cat([torch.randint(images, (regions, 1)), corners_R2, corners_R2 + sides_R2], dim=1)
    x_BCHW = torch.randn(sizes, requires_grad=True)
    out_RCMM = by_torchvision(x_BCHW, rois_R5, size, 0.5, samples, aligned=True)
    grad_RCMM = torch.randn_like(out_RCMM)
    (wanted,) = torch.autograd.grad(out_RCMM, x_BCHW, grad_RCMM)
    found = roi_align_gradient.by_products(grad_RCMM, rois_R5, 0.5, samples, sizes)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=2e-6 * max(1.0, float(wanted.abs().max())))


def test_channels_in_parts_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    rois_R5 = torch.tensor([[0.0, 1, 1, 6, 7], [0, 0, 2, 4, 9]])
    args = torch.randn(2, 5, 3, 3), rois_R5, 1.0, 0, (2, 5, 9, 8)
    whole = roi_align_gradient.by_products(*args)
    monkeypatch.setattr(roi_align_gradient, "VALUES", 2 * 2 * 3 * 8)
    torch.testing.assert_close(roi_align_gradient.by_products(*args), whole)
    assert not whole[1].any()


@pytest.mark.parametrize(
    ("regions", "side", "shape", "wanted"),
    [
        (256, 40.0, (8, 64, 32, 32), True),  # digit scenes: 10 for 45 ms
        (100, 300.0, (2, 256, 50, 76), True),  # 54 for 170 ms
        (512, 60.0, (2, 256, 200, 304), False),  # COCO's finest map: 3,100 for 1,400 ms
        (1, 1e30, (1, 64, 32, 32), False),  # never as many points as that
        (4, 0.0, (1, 64, 32, 32), False),
        (0, 1.0, (1, 64, 32, 32), False),
    ],
)
def test_products_where_they_are_quicker(
    regions: int, side: float, shape: tuple[int, int, int, int], wanted: bool
) -> None:
    rois_R5 = torch.tensor([[0.0, 0.0, 0.0, side, side]]).repeat(regions, 1)
    scale = 0.25 if shape[3] != 76 else 1 / 16
    assert roi_align_gradient.is_quicker(rois_R5, 7, scale, 0, shape) is wanted


@pytest.mark.parametrize("quicker", [False, True])
@pytest.mark.parametrize("repeats", [False, True])
def test_the_gradient_is_by_products_where_that_is_quicker_or_must_repeat_itself(
    quicker: bool, repeats: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Tensor] = []
    inner = roi_align_gradient.by_products
    monkeypatch.setattr(roi_align, "by_products", lambda *args: calls.append(args[0]) or inner(*args))
    monkeypatch.setattr(roi_align, "is_quicker", lambda *_: quicker)
    monkeypatch.setattr(roi_align, "must_repeat_itself", lambda _: repeats)
    x_BCHW = torch.randn(1, 2, 8, 8, requires_grad=True)
    roi_align.roi_align(x_BCHW, torch.tensor([[0.0, 1, 1, 6, 7]]), 3, 1.0, 0).sum().backward()
    assert len(calls) == (quicker or repeats)


def test_training_imports_no_python_module_of_torchvision() -> None:
    code = """
import sys, torch
from fourstage.ops.roi_align import roi_align
x_BCHW = torch.ones(1, 2, 16, 16, requires_grad=True)
roi_align(x_BCHW, torch.tensor([[0, 2.0, 2.0, 10.0, 10.0]]), 7, 1.0, 2).sum().backward()
assert "torchvision" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("quicker", [False, True])
def test_a_backward_pass_under_autocast_keeps_the_precision(quicker: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roi_align, "is_quicker", lambda *_: quicker)
    x_BCHW, rois_R5 = torch.randn(1, 4, 12, 12, requires_grad=True), torch.tensor([[0.0, 1, 1, 9, 11]])
    probe_RCMM = torch.randn(1, 4, 5, 5)
    (wanted,) = torch.autograd.grad(by_torchvision(x_BCHW, rois_R5, 5, aligned=True), x_BCHW, probe_RCMM)
    out_RCMM = roi_align.roi_align(x_BCHW, rois_R5, 5, 1.0, 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (found,) = torch.autograd.grad(out_RCMM, x_BCHW, probe_RCMM)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # PyTorch's own
@pytest.mark.parametrize("quicker", [False, True])
@pytest.mark.usefixtures("threads")
def test_gradients_in_a_batch(quicker: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roi_align, "is_quicker", lambda *_: quicker)
    x_BCHW, rois_R5 = torch.randn(1, 4, 12, 12, requires_grad=True), torch.tensor([[0.0, 1, 1, 9, 11]] * 3)
    out_RCMM, probes = roi_align.roi_align(x_BCHW, rois_R5, 5, 1.0, 0), torch.randn(2, 3, 4, 5, 5)

    def gradient(probe: Tensor, *, in_batch: bool = False) -> Tensor:
        return torch.autograd.grad(out_RCMM, x_BCHW, probe, retain_graph=True, is_grads_batched=in_batch)[0]

    wanted = torch.stack([gradient(probe) for probe in probes])
    torch.testing.assert_close(gradient(probes, in_batch=True), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.func.vmap(gradient)(probes), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_forked_process_starts_threads_of_its_own() -> None:
    """The process forks from a thread that has computed nothing, since OpenMP's own threads do not live on either."""
    code = """
import os, threading, time, torch
from fourstage.ops import roi_align
roi_align.WORTH = 0
torch.set_num_threads(2)
given = torch.ones(1, 2, 16, 16), torch.tensor([[0, 2.0, 2.0, 10.0, 10.0]] * 2), 7, 1.0, 2
thread = threading.Thread(target=roi_align.roi_align, args=given)
thread.start()
thread.join()
child = os.fork()
if not child:
    roi_align.roi_align(*given)
    os._exit(0)
for _ in range(200):
    ended, status = os.waitpid(child, os.WNOHANG)
    if ended:
        os._exit(status)
    time.sleep(0.1)
os.kill(child, 9)
os._exit(1)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_gradient_of_the_gradient_is_refused() -> None:
    """Kernels have none: it would be lost."""
    x_BCHW = torch.randn(1, 2, 8, 8, requires_grad=True)
    out_RCMM = roi_align.roi_align(x_BCHW, torch.tensor([[0.0, 1, 1, 6, 7]]), 3, 1.0, 0)
    (grad_BCHW,) = torch.autograd.grad(out_RCMM.square().sum(), x_BCHW, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad_BCHW.sum().backward()
