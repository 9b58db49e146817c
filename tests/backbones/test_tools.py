"""What other tools do to a module works on every family, in both forms."""

import copy
import pickle
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from forms import FORMS, build
from torch import Tensor, nn

import fourstage

every_form = pytest.mark.parametrize("form", FORMS)
IMAGES = (2, 3, 50, 70)  # pixels that no window fits


def outputs(value: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else list(value)


def assert_same(network: nn.Module, other: nn.Module, image_BCHW: Tensor) -> None:
    with torch.no_grad():
        for a, b in zip(outputs(network(image_BCHW)), outputs(other(image_BCHW)), strict=True):
            assert torch.equal(a, b)


def on_meta(form: str) -> nn.Module:
    with torch.device("meta"):
        return FORMS[form]().eval()


def spoil(network: nn.Module) -> None:
    """Fill memory that `to_empty` may hand out: what it holds is not defined."""
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data.fill_(float("nan") if tensor.is_floating_point() else 2**40)


@every_form
def test_a_network_on_meta_takes_memory_and_then_a_state_dict(form: str) -> None:
    source, network = build(form), on_meta(form).to_empty(device="cpu")
    spoil(network)
    network.load_state_dict(source.state_dict())
    assert_same(source, network, torch.randn(IMAGES))


@every_form
def test_a_network_on_meta_takes_the_tensors_of_a_state_dict(form: str) -> None:
    source, network = build(form), on_meta(form)
    network.load_state_dict(source.state_dict(), assign=True)
    assert not any(tensor.is_meta for tensor in (*network.parameters(), *network.buffers()))
    assert_same(source, network, torch.randn(IMAGES))


@every_form
def test_buffers_are_filled_on_request_where_no_state_dict_is_loaded(form: str) -> None:
    source, network = build(form), build(form, seed=1).to_empty(device="cpu")
    spoil(network)
    for tensor, other in zip(network.parameters(), source.parameters(), strict=True):
        tensor.data = other.data
    for (name, buffer), other in zip(network.named_buffers(), source.buffers(), strict=True):
        if name in source.state_dict():
            buffer.copy_(other)
    network.init_non_persistent_buffers()
    assert_same(source, network, torch.randn(IMAGES))


@every_form
def test_copies_and_pickles_are_the_same_network(form: str) -> None:
    source, image_BCHW = build(form), torch.randn(IMAGES)
    assert_same(source, copy.deepcopy(source), image_BCHW)
    again = pickle.loads(pickle.dumps(source))
    assert_same(source, again, image_BCHW)
    again.load_state_dict(build(form, seed=1).state_dict())  # the hooks came along
    assert_same(build(form, seed=1), again, image_BCHW)


@every_form
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_another_precision_keeps_index_tables(form: str, dtype: torch.dtype) -> None:
    source, image_BCHW = build(form), torch.randn(IMAGES)
    other = copy.deepcopy(source).to(dtype)
    assert [x.dtype for x in source.buffers() if not x.is_floating_point()] == [
        x.dtype for x in other.buffers() if not x.is_floating_point()
    ]
    with torch.no_grad():
        for a, b in zip(outputs(source(image_BCHW)), outputs(other(image_BCHW.to(dtype))), strict=True):
            assert b.dtype == dtype
            tolerance = 1e-4 if dtype == torch.float64 else 0.1
            torch.testing.assert_close(a.to(dtype), b, rtol=tolerance, atol=tolerance * float(a.std()))


def test_a_checkpoint_fills_a_network_that_was_built_on_meta(tmp_path: Path) -> None:
    source, network = build("swin-classifier"), on_meta("swin-classifier")
    torch.save(source.state_dict(), tmp_path / "swin.pth")
    with pytest.raises(ValueError, match=r"network\.to_empty"):
        fourstage.load_checkpoint(network, tmp_path / "swin.pth")
    network.to_empty(device="cpu")
    spoil(network)
    fourstage.load_checkpoint(network, tmp_path / "swin.pth")
    assert_same(source, network, torch.randn(IMAGES))
