"""What other tools do to a module works on every family, in both forms."""

import copy
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from forms import FORMS, build
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torchvision.models.feature_extraction import create_feature_extractor

import fourstage
from fourstage.backbones.base import Backbone, Dense

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
    for name, parameter in source.named_parameters():
        if name.endswith("qkv.weight"):  # else attention picks one cell, and rounding may pick another
            parameter.data.mul_(0.3)
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


@every_form
@pytest.mark.parametrize(("training", "ops"), [(False, "fast"), (True, "fast"), (True, "plain")])
def test_an_empty_batch_gives_empty_outputs_and_gradients_of_zero(
    form: str, training: bool, ops: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOURSTAGE_OPS", ops)
    network = build(form).train(training)
    expected = [x.shape[1:] for x in outputs(network(torch.randn(IMAGES)))]
    out = outputs(network(torch.empty(0, *IMAGES[1:])))
    assert [x.shape for x in out] == [(0, *shape) for shape in expected]
    torch.stack([x.sum() for x in out]).sum().backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None or p.grad.any()]
    with torch.inference_mode():
        assert [x.shape for x in outputs(network(torch.empty(0, *IMAGES[1:])))] == [(0, *shape) for shape in expected]


def node_names(network: Backbone) -> list[str]:
    """Return the names that docs/backbones.md lists for torchvision's feature extractor."""
    last = [f"norms.{i}" for i in network.norms] if isinstance(network, Dense) else ["final", "head"]
    return ["stem", *(f"stages.{i}" for i in range(len(network.stages))), *last]


@every_form
def test_torchvision_extracts_features_by_name(form: str) -> None:
    network, image_BCHW, expected = build(form), torch.randn(IMAGES), {}
    names = node_names(network)
    for name in names:
        network.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name: expected.update({name: output})
        )
    with torch.no_grad():
        network(image_BCHW)
        features = create_feature_extractor(build(form), names)(image_BCHW)
    assert list(features) == names
    assert all(torch.equal(features[name], expected[name]) for name in names)


@every_form
def test_a_symbolic_trace_is_the_same_network_at_any_size(form: str) -> None:
    network = build(form)
    traced = torch.fx.symbolic_trace(network)
    for shape in (IMAGES, (1, 3, 64, 96)):
        assert_same(network, traced, torch.randn(shape))


@every_form
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.*deprecated")
def test_a_jit_trace_is_the_same_network_for_any_batch(form: str, gradients: bool) -> None:
    """At the traced size: a trace keeps the decisions on sizes that it saw."""
    network = build(form)
    with torch.set_grad_enabled(gradients):
        traced: Any = torch.jit.trace(network, torch.randn(1, *IMAGES[1:]))
        for batch in (1, 3, 0):
            image_BCHW = torch.randn(batch, *IMAGES[1:])
            for a, b in zip(outputs(network(image_BCHW)), outputs(traced(image_BCHW)), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@every_form
@pytest.mark.filterwarnings("ignore:There is a performance drop")  # operations that vmap runs one sample at a time
def test_gradients_of_each_sample_by_vmap(form: str) -> None:
    network, image_BCHW = build(form), torch.randn(3, *IMAGES[1:])
    buffers = dict(network.named_buffers())

    def loss(parameters: dict[str, Tensor], image_CHW: Tensor) -> Tensor:
        maps = outputs(functional_call(network, (parameters, buffers), (image_CHW[None],)))
        return torch.stack([(x * torch.linspace(-1, 1, x.numel()).sin().view(x.shape)).sum() for x in maps]).sum()

    parameters = {name: p.detach() for name, p in network.named_parameters()}
    per_sample: Any = grad(loss)
    each = vmap(per_sample, in_dims=(None, 0))(parameters, image_BCHW)
    for i, image_CHW in enumerate(image_BCHW):
        network.zero_grad()
        loss(dict(network.named_parameters()), image_CHW).backward()
        for name, p in network.named_parameters():
            assert p.grad is not None
            torch.testing.assert_close(each[name][i], p.grad, rtol=1e-3, atol=1e-3 * float(p.grad.abs().max()) + 1e-6)
