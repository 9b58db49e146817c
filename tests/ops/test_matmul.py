"""Every way to a product gives the same numbers and gradients as the plain one."""

from collections.abc import Iterator
from dataclasses import astuple

import pytest
import torch
import torch.nn.functional as F
from backbones.forms import FORMS, build
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fourstage.backbones import layers
from fourstage.backbones.layers import Mlp
from fourstage.ops import matmul as products

axes, seeds = st.lists(st.sampled_from([1, 3, 4, 8, 9]), min_size=1, max_size=3), st.integers(0, 2**31)


@pytest.fixture(autouse=True)
def _untaken() -> Iterator[None]:
    before, threads = list(products._taken), torch.get_num_threads()
    yield
    products._taken[:] = before
    torch.set_num_threads(threads)


def assert_same(ours: Tensor, plain: Tensor) -> None:
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5 * float(plain.detach().abs().max() + 1))


@pytest.mark.parametrize("way", products.LINEAR)
@pytest.mark.parametrize("threads", [1, 2])
@given(front=axes, channels=st.integers(1, 40), out=st.integers(1, 40), biased=st.booleans(), gelu=st.booleans())
@settings(max_examples=25, deadline=None)
def test_linear_layers(
    way: str, threads: int, front: list[int], channels: int, out: int, biased: bool, gelu: bool
) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    grad = way in products.TRAINING
    tensors = [torch.randn(*front, channels), torch.randn(out, channels), *([torch.randn(out)] if biased else [])]
    results = []
    for product in (
        products.LINEAR[way],
        lambda x, w, b, gelu: F.gelu(F.linear(x, w, b)) if gelu else F.linear(x, w, b),
    ):
        leaves = [tensor.clone().requires_grad_(grad) for tensor in tensors]
        y = product(leaves[0], leaves[1], leaves[2] if biased else None, gelu)
        probe = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
        results.append([y, *(torch.autograd.grad((y * probe).sum(), leaves) if grad else [])])
    for ours, plain in zip(*results, strict=True):
        assert_same(ours, plain)


@pytest.mark.parametrize("middle", [(2, 3), (2, 5, 3)])
def test_attention_with_masks(middle: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(*middle, 4, 8), torch.randn(*middle, 6, 8), torch.randn(*middle, 6, 8)
    masks = [torch.randn(3, 4, 6), *([torch.randn(5, 1, 4, 6)] if len(middle) == 3 else [])]
    expected = (q @ k.transpose(-2, -1) * 0.3 + sum(masks)).softmax(-1) @ v
    results = []
    for way in products.ATTENTION.values():
        leaves = [x.clone().requires_grad_() for x in (q, k, v, *masks)]
        out = way(leaves[0], leaves[1], leaves[2], list(leaves[3:]), 0.3)
        assert_same(out, expected)
        results.append(torch.autograd.grad(out.square().sum(), leaves))
    for ours, plain in zip(*results, strict=True):
        assert_same(ours, plain)
    assert_same(products.attend(q, k, v), (q @ k.transpose(-2, -1) * 8**-0.5).softmax(-1) @ v)


def test_the_ways_are_chosen_taken_and_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    found = products.measured()
    assert found.training in products.TRAINING
    assert found.inference in products.LINEAR
    products._taken.clear()
    assert products.ways() == found
    assert products.take(str(found)) == found
    products._taken.clear()
    monkeypatch.setenv("FOURSTAGE_PRODUCTS", "convolution, blas, plain")
    assert astuple(products.ways()) == ("convolution", "blas", "plain")
    for wrong in ("blas", "onednn,blas,plain", "blas,blas,slow", ""):
        with pytest.raises(ValueError, match="FOURSTAGE_PRODUCTS names how to train"):
            products.take(wrong)


@pytest.mark.parametrize("names", ["blas,blas,fused", "convolution,convolution,plain", "blas,onednn,plain"])
def test_layers_go_the_way_that_was_taken(names: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if names.split(",")[1] not in products.inference_ways():
        pytest.skip("this PyTorch was built without oneDNN")
    products.take(names)
    training, inference, attention = names.split(",")
    went = []
    for table in (products.LINEAR, products.ATTENTION):
        for name, way in table.items():
            monkeypatch.setitem(table, name, lambda *a, name=name, way=way: went.append(name) or way(*a))
    layer, x = products.Linear(8, 8), torch.randn(products.FEW, 8)
    layer(x)
    with torch.no_grad():
        layer(x)
        layer(x[:1])  # too few rows to bother
    assert went == [training, inference, "blas"]
    q, mask = torch.randn(2, 3, 4, 8), torch.randn(4, 4)
    products.attend(q, q, q, [mask])
    products.attend(q, q, q)
    assert went[3:] == [attention, "fused"]


def test_routes_are_closed_where_they_would_not_be_seen() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    products.take("blas,onednn,plain") if products.has_onednn() else products.take("blas,convolution,plain")
    layer, x = products.LinearGelu(16, 16), torch.randn(256, 16)
    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            layer(x)
        assert counter.get_total_flops() == 2 * 256 * 16 * 16
        assert torch.func.vmap(layer)(x.view(2, 128, 16)).shape == (2, 128, 16)
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        assert_same(layer.double()(x.double()).float(), layer.float()(x))


@given(seed=seeds, channels_last=st.booleans())
@settings(max_examples=5, deadline=None)
def test_rows_may_go_one_part_after_the_other(seed: int, channels_last: bool) -> None:
    torch.manual_seed(seed)
    mlp, x_BHWC = Mlp(8, 32), torch.randn(3, 16, 9, 8)
    if channels_last:
        x_BHWC = torch.randn(3, 8, 16, 9).movedim(1, -1)
    expected = mlp(x_BHWC)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "FRESH", 0)
        patch.setattr(products, "PART", products.FEW * 32 * 4)
        parts = []
        hook = mlp.expand.register_forward_hook(lambda _m, inputs, _out: parts.append(len(inputs[0])))
        assert_same(mlp(x_BHWC), expected)
        hook.remove()
    assert parts == [128, 128, 128, 48]


@pytest.mark.parametrize("form", FORMS)
def test_images_may_go_through_a_stage_one_after_the_other(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, image_BCHW = build(form), torch.randn(5, 3, 64, 71)
    seen: list[int] = []
    with torch.inference_mode():
        expected = model.forward_maps(image_BCHW)
        monkeypatch.setattr(layers, "IN_CACHE", 2 * 3 * 64 * 71 * 4)
        for ours, plain in zip(model.forward_maps(image_BCHW), expected, strict=True):
            assert_same(ours, plain)
        first: nn.Module = model.stages[0]
        hook = first.register_forward_pre_hook(lambda _m, inputs: seen.append(len(inputs[0])))
        model.forward_maps(image_BCHW)  # a hook sees whole batches
        hook.remove()
    assert seen == [5]
