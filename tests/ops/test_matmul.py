"""Every product of linear layers and attention gives the numbers and gradients of the plain one."""

import itertools
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from onednn import need_onednn
from torch import Tensor, nn

from fourstage.ops import attention, matmul, mlp, products

axes = st.lists(st.sampled_from([1, 3, 4, 8, 9]), min_size=1, max_size=3)


@pytest.fixture(autouse=True)
def _unchosen() -> Iterator[None]:
    before, threads = list(products._chosen), torch.get_num_threads()
    yield
    products._chosen[:] = before
    torch.set_num_threads(threads)


def assert_same(ours: Tensor, plain: Tensor) -> None:
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5 * float(plain.detach().abs().max() + 1))


@pytest.mark.parametrize("name", matmul.PRODUCTS)
@pytest.mark.parametrize("threads", [1, 2])
@given(front=axes, channels=st.integers(1, 40), out=st.integers(1, 40), biased=st.booleans(), gelu=st.booleans())
@settings(max_examples=25, deadline=None)
def test_linear_layers(
    name: str, threads: int, front: list[int], channels: int, out: int, biased: bool, gelu: bool
) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    grad = name != "onednn"
    tensors = [torch.randn(*front, channels), torch.randn(out, channels), *([torch.randn(out)] if biased else [])]
    results = []
    for product in (
        matmul.PRODUCTS[name],
        lambda x, w, b, gelu: F.gelu(F.linear(x, w, b)) if gelu else F.linear(x, w, b),
    ):
        leaves = [tensor.clone().requires_grad_(grad) for tensor in tensors]
        y = product(leaves[0], leaves[1], leaves[2] if biased else None, gelu)
        probe = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
        results.append([y, *(torch.autograd.grad((y * probe).sum(), leaves) if grad else [])])
    for ours, plain in zip(*results, strict=True):
        assert_same(ours, plain)


@pytest.mark.parametrize("names", list(itertools.product(matmul.PASS_PRODUCTS, repeat=3)), ids="-".join)
@given(front=axes, channels=st.integers(1, 40), out=st.integers(1, 40), biased=st.booleans(), frozen=st.booleans())
@settings(max_examples=10, deadline=None)
def test_linear_layers_by_passes(
    names: tuple[str, ...], front: list[int], channels: int, out: int, biased: bool, frozen: bool
) -> None:
    need_onednn("".join(names))
    torch.manual_seed(0)
    tensors = [torch.randn(*front, channels), torch.randn(out, channels), *([torch.randn(out)] if biased else [])]
    results = []
    for run in (matmul.LinearByPasses.apply, lambda x, w, b, names: F.linear(x, w, b)):
        leaves = [tensor.clone().requires_grad_(not (frozen and i)) for i, tensor in enumerate(tensors)]
        y = run(leaves[0], leaves[1], leaves[2] if biased else None, names)
        probe = torch.randn(y.shape[::-1], generator=torch.Generator().manual_seed(1)).permute(*range(y.ndim)[::-1])
        results.append([y, *torch.autograd.grad(y, [x for x in leaves if x.requires_grad], probe)])
    for ours, plain in zip(*results, strict=True):
        assert_same(ours, plain)


@pytest.mark.parametrize("rows", [130, 1000])
@pytest.mark.parametrize(("channels_in", "channels_out"), [(8, 96), (96, 8), (24, 24), (64, 72)])
def test_the_gradient_of_a_weight(rows: int, channels_in: int, channels_out: int) -> None:
    """Of a narrow input and of a wide one: they are copied in another order."""
    grad_ND, x_NC = torch.randn(rows, channels_out), torch.randn(rows, channels_in)
    expected = grad_ND.double().t() @ x_NC.double()
    for name in matmul.PASS_PRODUCTS if products.has_onednn() else ("blas",):
        got = matmul.weight_pass(name, grad_ND, x_NC)
        assert got.is_contiguous()
        torch.testing.assert_close(got, expected.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("names", [("blas", "blas", "blas"), ("onednn", "onednn", "onednn")], ids="-".join)
def test_the_output_by_passes_may_be_changed_in_place(names: tuple[str, ...]) -> None:
    need_onednn("".join(names))
    x, weight_DC = torch.randn(2, 5, 8), torch.randn(6, 8)
    results = []
    for run in (matmul.LinearByPasses.apply, lambda x, w, b, names: F.linear(x, w, b)):
        leaves = [tensor.clone().requires_grad_() for tensor in (x, weight_DC)]
        y = F.relu(run(leaves[0], leaves[1], None, names), inplace=True)
        results.append([y, *torch.autograd.grad(y.sum(), leaves)])
    for ours, plain in zip(*results, strict=True):
        assert_same(ours, plain)


@pytest.mark.parametrize("middle", [(2, 3), (2, 5, 3)])
def test_attention_with_masks(middle: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(*middle, 4, 8), torch.randn(*middle, 6, 8), torch.randn(*middle, 6, 8)
    masks = [torch.randn(3, 4, 6), *([torch.randn(5, 1, 4, 6)] if len(middle) == 3 else [])]
    expected = (q @ k.transpose(-2, -1) * 0.3 + sum(masks)).softmax(-1) @ v
    results = []
    for product in attention.PRODUCTS.values():
        leaves = [x.clone().requires_grad_() for x in (q, k, v, *masks)]
        out = product(leaves[0], leaves[1], leaves[2], list(leaves[3:]), 0.3)
        assert_same(out, expected)
        results.append(torch.autograd.grad(out.square().sum(), leaves))
    for ours, plain in zip(*results, strict=True):
        assert_same(ours, plain)
    assert_same(attention.attend(q, k, v), (q @ k.transpose(-2, -1) * 8**-0.5).softmax(-1) @ v)


@pytest.mark.parametrize("front", [(2, 5, 3), (2, 1, 1), (1, 5, 1), (1, 1, 3)])
@pytest.mark.parametrize("product", attention.PRODUCTS)
def test_attention_in_windows_with_masks_of_each_image(product: str, front: tuple[int, ...]) -> None:
    q, k, v, mask = torch.randn(2, 5, 3, 4, 8), *torch.randn(2, 2, 5, 3, 6, 8), torch.randn(*front, 4, 6)
    expected = (q @ k.transpose(-2, -1) * 0.3 + mask).softmax(-1) @ v
    assert_same(attention.PRODUCTS[product](q, k, v, [mask], 0.3), expected)


def test_few_rows_are_left_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    products.use("convolution,convolution,fused")
    monkeypatch.setitem(matmul.PRODUCTS, "convolution", None)
    matmul.linear(nn.Linear(8, 8), torch.randn(matmul.FEW - 1, 8))
    mlp.mlp(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8), torch.randn(matmul.FEW - 1, 8))


def test_products_are_chosen_by_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    products.use("convolution,blas,plain")
    calls: list[str] = []
    for table in (matmul.PRODUCTS, attention.PRODUCTS):
        for name, product in table.items():
            monkeypatch.setitem(table, name, lambda *a, name=name, product=product: calls.append(name) or product(*a))
    layer, x = nn.Linear(8, 8), torch.randn(matmul.FEW, 8)
    matmul.linear(layer, x)
    with torch.no_grad():
        matmul.linear(layer, x)  # blas is the layer itself
    assert calls == ["convolution"]
    monkeypatch.setattr(attention, "by_two_products", lambda *_: calls.append("two products"))
    q, mask = torch.randn(2, 3, 4, 8), torch.randn(4, 4)
    attention.attend(q, q, q, [mask])
    attention.attend(q, q, q)  # with gradients and without a mask the kernel is faster
    assert calls[1:] == ["two products"]


@pytest.mark.parametrize("trained", list(itertools.product((False, True), repeat=5)), ids=str)
def test_parts_of_an_mlp_are_trained(trained: tuple[bool, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Input, weight and bias of the first layer, and of the second one."""
    for name in ("CHUNK", "ALONE"):
        monkeypatch.setattr(mlp, name, 2**13)  # three chunks
    expand, reduce, x_NC = nn.Linear(8, 16), nn.Linear(16, 8), torch.randn(300, 8)
    leaves = [x_NC, *expand.parameters(), *reduce.parameters()]
    for leaf, wanted in zip(leaves, trained, strict=True):
        leaf.requires_grad_(wanted)
    results = []
    for run in (mlp.mlp, lambda expand, act, reduce, x_NC: reduce(act(expand(x_NC)))):
        y = run(expand, nn.GELU(), reduce, x_NC)
        assert y.requires_grad == any(trained)
        results.append(
            [y, *(torch.autograd.grad(y.sum(), [x for x in leaves if x.requires_grad]) if any(trained) else ())]
        )
    for ours, plain in zip(*results, strict=True):
        assert_same(ours, plain)


@pytest.mark.parametrize("trained", ["biases", "second layer"])
def test_frozen_layers_take_tensors_of_inference_mode(trained: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Autograd keeps none of them, so that nothing that needs no gradient of its own may be kept."""
    need_onednn()
    products.use("onednn,onednn,fused")
    expand, reduce = nn.Linear(8, 16), nn.Linear(16, 8)
    expand.weight.requires_grad_(False)
    expand.bias.requires_grad_(trained == "biases")
    with torch.inference_mode():
        x_NC = torch.randn(48, 8)
    leaves = [x for x in (*expand.parameters(), *reduce.parameters()) if x.requires_grad]
    results = []
    for switch in ("plain", "fast"):
        monkeypatch.setenv("FOURSTAGE_OPS", switch)
        y = mlp.mlp(expand, nn.GELU(), reduce, x_NC)
        z = matmul.linear(expand, x_NC)
        results.append([y, z, *torch.autograd.grad(y.sum() + z.sum(), leaves)])
    for ours, plain in zip(*results, strict=True):
        assert_same(ours, plain)


def test_a_layers_tensors_may_change_before_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """As an optimiser's step between the two does, where no gradient depends on them."""
    need_onednn()
    products.use("onednn,onednn,fused")
    x_NC = torch.randn(48, 8)
    for switch in ("plain", "fast"):
        monkeypatch.setenv("FOURSTAGE_OPS", switch)
        layer = nn.Linear(8, 16)
        y = matmul.linear(layer, x_NC)
        with torch.no_grad():
            layer.weight.add_(1)
            layer.bias.add_(1)
        y.sum().backward()
        assert layer.weight.grad is not None
        torch.testing.assert_close(layer.weight.grad, x_NC.sum(0).expand(16, 8), rtol=1e-4, atol=1e-4)
