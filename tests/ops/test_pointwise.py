"""A 1x1 convolution that a linear layer computes is, to its callers, PyTorch's own."""

from collections.abc import Callable, Iterator

import pytest
import torch
from onednn import need_onednn
from torch import Tensor, nn

from fourstage.ops import matmul, mlp, pointwise, products


@pytest.fixture(autouse=True, params=["onednn,onednn,fused", "convolution,convolution,fused"])
def _products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = list(products._chosen)
    need_onednn(request.param)
    products.use(request.param)
    monkeypatch.setattr(pointwise, "THREADS", 1024)
    yield
    products._chosen[:] = before


def a_map(channels: int = 8) -> Tensor:
    return torch.randn(2, channels, 6, 8).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_its_output_may_be_changed_in_place(mode: Callable[[], torch.no_grad], monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    by_linear_layer = pointwise.by_linear_layer
    monkeypatch.setattr(pointwise, "by_linear_layer", lambda *a: calls.append(1) or by_linear_layer(*a))
    layer, x_BCHW, factor = nn.Conv2d(8, 12, 1), a_map(), nn.Parameter(torch.full((1,), 2.0))
    with mode():
        out_BDHW = pointwise.convolve(layer, x_BCHW)
    assert calls
    assert out_BDHW.is_contiguous(memory_format=torch.channels_last)
    if mode is torch.inference_mode:
        assert not out_BDHW._is_view()
        return
    out_BDHW.mul_(factor)
    torch.testing.assert_close(out_BDHW, 2 * layer(x_BCHW), rtol=1e-4, atol=1e-5)
    out_BDHW.sum().backward()
    torch.testing.assert_close(factor.grad, layer(x_BCHW).sum().view(1), rtol=1e-4, atol=1e-3)


def test_a_weight_of_another_side_than_the_layer_says() -> None:
    layer, x_BCHW = nn.Conv2d(8, 12, 1), a_map()
    layer.weight = nn.Parameter(torch.randn(12, 8, 3, 3))
    assert pointwise.convolve(layer, x_BCHW).shape == (2, 12, 4, 6)


LAYERS: dict[str, Callable[[int], Tensor]] = {
    "convolution": lambda channels: pointwise.convolve(nn.Conv2d(8, 12, 1), a_map(channels)),
    "linear": lambda channels: matmul.linear(nn.Linear(8, 12), torch.randn(48, channels)),
    "linear after GELU": lambda channels: mlp.gelu_linear(nn.Linear(8, 12), torch.randn(48, channels)),
    "mlp": lambda channels: mlp.mlp(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8), torch.randn(48, channels)),
    "second layer": lambda channels: mlp.mlp(nn.Linear(8, 12), nn.GELU(), nn.Linear(channels, 8), torch.randn(48, 8)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("channels", [7, 9])
@pytest.mark.parametrize("gradients", [False, True])
def test_other_channels_are_answered_by_pytorch(
    name: str, channels: int, *, gradients: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its message names the sizes."""
    messages = []
    for switch in ("plain", "fast"):
        monkeypatch.setenv("FOURSTAGE_OPS", switch)
        with torch.set_grad_enabled(gradients), pytest.raises(RuntimeError) as error:
            LAYERS[name](channels)
        messages.append(str(error.value))
    assert messages[0] == messages[1]
