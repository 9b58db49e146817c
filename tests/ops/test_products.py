"""Which product computes is set once: by hand, by the environment, or by a measurement when a network is built."""

import pickle
from collections.abc import Iterator
from dataclasses import astuple

import pytest
import torch
from tiny_networks import tiny
from torch.utils.flop_counter import FlopCounterMode

from fourstage.ops import measure, products
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
