"""Which product computes is set once: by hand, by the environment, or by a measurement when a network is built."""

import pickle
from collections.abc import Iterator
from dataclasses import astuple

import pytest
import torch
from tiny_networks import tiny
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fourstage.ops import matmul, measure, products
from fourstage.ops.products import Products


@pytest.fixture(autouse=True)
def _unchosen(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("FOURSTAGE_PRODUCTS", raising=False)
    before = list(products._chosen)
    products._chosen.clear()
    yield
    products._chosen[:] = before


def test_pytorchs_own_compute_until_something_is_chosen() -> None:
    assert products.current() == Products("blas", "blas", "fused")
    assert products.chosen() is None


def test_a_measurement_names_products_that_there_are() -> None:
    found = measure.measured()
    assert products.use(found) == found == products.chosen() == products.current()
    assert products.use(str(found)) == found


def test_it_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    state = torch.get_rng_state()
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.inference_mode():
        measure.measured()
    assert counter.get_total_flops() == 0
    assert torch.equal(torch.get_rng_state(), state)


def test_the_first_network_of_a_process_measures_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(measure, "measured", lambda: calls.append(1) or Products("convolution", "blas", "plain"))
    model = tiny("visformer")
    model(torch.randn(1, 3, 64, 64))
    tiny("visformer")
    assert calls == [1]
    assert products.current() == Products("convolution", "blas", "plain")
    products._chosen.clear()
    pickle.loads(pickle.dumps(model))
    assert calls == [1, 1]


def test_nothing_is_measured_where_no_fast_path_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "measured", None)
    monkeypatch.setenv("FOURSTAGE_OPS", "plain")
    tiny("visformer")
    assert products.chosen() is None
    assert products.description() == "plain"


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_network_built_in_a_transform_or_a_trace_leaves_the_measurement_to_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measure, "measured", None)
    choices: list[Products] = []

    def choose(x: Tensor) -> Tensor:
        choices.append(measure.choose_products())
        return 2 * x

    x = torch.ones(2, 3)
    torch.vmap(choose)(x)
    torch.func.grad(lambda x: choose(x).sum())(x)
    torch.func.jvp(choose, (x,), (x,))
    torch.jit.trace(choose, x, check_trace=False)
    assert choices == [Products()] * len(choices)
    assert len(choices) >= 4
    assert products.chosen() is None
    monkeypatch.setenv("FOURSTAGE_PRODUCTS", "convolution,blas,plain")
    torch.vmap(choose)(x)
    assert str(choices[-1]) == "convolution,blas,plain"


def test_a_measurement_computes_without_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    autocast: list[bool] = []

    def watch(*arguments: object) -> Tensor:
        autocast.append(torch.is_autocast_enabled("cpu"))
        return torch.ones(())

    monkeypatch.setattr(measure, "_train", watch)
    monkeypatch.setattr(measure, "_infer", watch)
    with torch.autocast("cpu"):
        measure.measured()
    assert autocast
    assert not any(autocast)


@pytest.mark.filterwarnings("ignore:TF32 acceleration:UserWarning")
def test_onednn_obeys_its_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    if not products.has_onednn():
        pytest.skip("this PyTorch was built without oneDNN")
    products.use("blas,onednn,fused")
    monkeypatch.setitem(matmul.PRODUCTS, "onednn", None)
    with torch.backends.mkldnn.flags(enabled=False), torch.no_grad():
        assert "onednn" not in products.for_inference()
        matmul.linear(nn.Linear(8, 8), torch.randn(matmul.FEW, 8))


def test_a_forward_pass_never_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("visformer")
    products._chosen.clear()
    monkeypatch.setattr(measure, "measured", None)
    model(torch.randn(1, 3, 64, 64))


def test_the_environment_sets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "measured", None)
    monkeypatch.setenv("FOURSTAGE_PRODUCTS", "convolution, blas, plain")
    tiny("visformer")
    assert astuple(products.current()) == ("convolution", "blas", "plain")
    assert products.description() == "convolution,blas,plain"


@pytest.mark.parametrize("wrong", ["blas", "onednn,blas,plain", "blas,blas,slow", ""])
def test_wrong_names_are_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="FOURSTAGE_PRODUCTS names the products for training"):
        products.use(wrong)
