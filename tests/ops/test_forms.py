"""Every fast path gives the plain form's values and gradients, runs where it may, and is never exported."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any, cast

import pytest
import torch
from onednn import need_onednn
from ops.forms import FORMS, MISFITS, OF_OTHER_TENSORS, Form, Misfit
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import CheckpointError, checkpoint

from fourstage.backbones.layers import Mlp
from fourstage.ops import attention, matmul, products, sampling

CASES = [pytest.param(form, case, id=f"{name}-{case}") for name, form in FORMS.items() for case in form.inputs]
Gradients = Callable[[nn.Module, list[Tensor]], list[Tensor]]
USUAL = [pytest.param(form, id=name) for name, form in FORMS.items()]


@pytest.fixture(autouse=True)
def _unchosen() -> Iterator[None]:
    before = list(products._chosen)
    yield
    products._chosen[:] = before


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> list[str]:
    """What a form's fast path computed, after its products were set."""
    form: Form = request.node.callspec.params["form"]
    need_onednn(form.products)
    products.use(form.products)
    for name, value in form.limits.items():
        monkeypatch.setattr(f"fourstage.ops.{name}", value)
    for name, text in form.environment.items():
        monkeypatch.setenv(name, text)
    seen: list[str] = []
    module, _, name = form.fast.rpartition(".")
    target = getattr(__import__(f"fourstage.ops.{module}", fromlist=[name]), name)

    def spy(*args: object, **kwargs: object) -> object:
        seen.append(name)
        return target(*args, **kwargs)

    monkeypatch.setattr(f"fourstage.ops.{form.fast}", spy)
    tables: list[dict[Any, Any]] = [matmul.PRODUCTS, attention.PRODUCTS, sampling.FORMS]
    for table in tables:
        for key in [key for key, value in table.items() if value is target]:
            monkeypatch.setitem(table, key, spy)
    return seen


def modes(form: Form) -> tuple[bool, ...]:
    return {"both": (False, True), "without": (False,), "with": (True,)}[form.gradients]


def results(module: nn.Module, tensors: list[Tensor], *, gradients: bool) -> list[Tensor]:
    """The output, buffers after it, and gradients of inputs and parameters."""
    leaves = [x.detach().clone().requires_grad_(gradients) for x in tensors]
    with nullcontext() if gradients else torch.no_grad():
        out = module(*leaves)
    if not gradients:
        return [out, *module.buffers()]
    probe = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    wanted = [*leaves, *module.parameters()]
    return [out, *module.buffers(), *torch.autograd.grad((out * probe).sum(), wanted, materialize_grads=True)]


@pytest.mark.parametrize(("form", "case"), CASES)
def test_values_and_gradients(form: Form, case: str, calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for gradients in modes(form):
        both = []
        for switch in ("plain", "fast"):
            monkeypatch.setenv("FOURSTAGE_OPS", switch)
            calls.clear()
            torch.manual_seed(0)
            both.append(results(form.build(), list(form.inputs[case]()), gradients=gradients))
            assert not calls or switch == "fast"
        assert calls or case != "usual"
        size = max(float(plain.detach().abs().max()) for plain in (*both[0], torch.ones(1)) if plain.numel())
        for plain, fast in zip(*both, strict=True):  # a bias before a norm has a gradient of rounding alone
            torch.testing.assert_close(fast, plain, rtol=1e-4, atol=2e-6 * size)


@pytest.mark.parametrize("form", USUAL)
def test_the_plain_form_is_exported(form: Form, calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    for switch in ("plain", "fast"):
        monkeypatch.setenv("FOURSTAGE_OPS", switch)
        for gradients in (False, True):
            with nullcontext() if gradients else torch.no_grad():
                program = torch.export.export(form.build(), tuple(form.inputs["usual"]()))
            counts.append(Counter(str(node.target) for node in program.graph.nodes if node.op == "call_function"))
    assert counts[:2] == counts[2:]
    assert not calls


@pytest.mark.parametrize("form", USUAL)
def test_hooks_see_every_layer(form: Form, calls: list[str]) -> None:
    module = form.build()
    layers = [layer for layer in module.modules() if not list(layer.children()) and layer is not module]
    seen: list[nn.Module] = []
    for layer in layers:
        layer.register_forward_hook(lambda layer, *_: seen.append(layer))
    for gradients in modes(form):
        seen.clear()
        results(module, list(form.inputs["usual"]()), gradients=gradients)
        if list(module.parameters()):
            assert seen == [
                layer for layer in layers if list(layer.parameters()) or isinstance(layer, nn.GELU | nn.BatchNorm2d)
            ]
            assert not calls


@pytest.mark.parametrize("misfit", [pytest.param(misfit, id=name) for name, misfit in MISFITS.items()])
def test_other_layers_of_pytorch_are_called(misfit: Misfit, monkeypatch: pytest.MonkeyPatch) -> None:
    need_onednn(misfit.products)
    products.use(misfit.products)
    for name, value in misfit.limits.items():
        monkeypatch.setattr(f"fourstage.ops.{name}", value)
    torch.manual_seed(0)
    module, tensors = misfit.build(), list(misfit.inputs())
    for gradients in (False, True):
        both = []
        for switch in ("plain", "fast"):
            monkeypatch.setenv("FOURSTAGE_OPS", switch)
            both.append(results(module, tensors, gradients=gradients))
        torch.testing.assert_close(*both, rtol=0, atol=0)


@pytest.mark.parametrize("misfit", [pytest.param(misfit, id=name) for name, misfit in OF_OTHER_TENSORS.items()])
def test_tensors_that_are_not_as_built_are_left_to_pytorch(misfit: Misfit, monkeypatch: pytest.MonkeyPatch) -> None:
    """It computes with them, or its error names their sizes."""
    torch.manual_seed(0)
    module, tensors = misfit.build(), list(misfit.inputs())
    both: list[list[Tensor] | str] = []
    for switch in ("plain", "fast"):
        monkeypatch.setenv("FOURSTAGE_OPS", switch)
        try:
            both.append(results(module, tensors, gradients=False))
        except RuntimeError as error:
            both.append(str(error))
    plain, fast = both
    if isinstance(plain, str):
        assert fast == plain
    else:
        torch.testing.assert_close(fast, plain, rtol=0, atol=0)


@pytest.mark.parametrize("form", USUAL)
def test_memory_that_nothing_has_filled_is_not_read(
    form: Form, calls: list[str], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Deterministic PyTorch fills it with NaN."""
    for gradients in modes(form):
        both = []
        for switch in (False, True):
            request.addfinalizer(partial(torch.use_deterministic_algorithms, mode=False))
            torch.use_deterministic_algorithms(switch)
            torch.manual_seed(0)
            both.append(results(form.build(), list(form.inputs["usual"]()), gradients=gradients))
        assert calls
        for usual, filled in zip(*both, strict=True):
            torch.testing.assert_close(filled, usual, rtol=1e-4, atol=1e-5)


def with_gaps(tensor: Tensor) -> Tensor:
    """The same numbers with NaN between them in memory."""
    return torch.stack([tensor, torch.full_like(tensor, torch.nan)], dim=-1)[..., 0]


AXES = [
    pytest.param(form, axes, id=f"{name}-{axes}")
    for name, form in FORMS.items()
    for axes in sorted({parameter.ndim for parameter in form.build().parameters()})
]


@pytest.mark.parametrize(("form", "axes"), AXES)
def test_parameters_with_gaps_in_memory(form: Form, axes: int, calls: list[str]) -> None:
    """As they are after they were sliced. A kernel may read memory whatever the strides of a tensor are.

    Biases have one axis, the weights of linear layers two, those of convolutions four.
    """
    for gradients in modes(form):
        both = []
        for gaps in (False, True):
            torch.manual_seed(0)
            module, tensors = form.build(), list(form.inputs["usual"]())
            for layer in module.modules():
                for name, parameter in layer.named_parameters(recurse=False):
                    if gaps and parameter.ndim == axes:
                        setattr(layer, name, nn.Parameter(with_gaps(parameter.detach())))
            both.append(results(module, tensors, gradients=gradients))
        assert calls
        size = max(1.0, *(float(usual.detach().abs().max()) for usual in both[0]))
        for usual, gapped in zip(*both, strict=True):
            torch.testing.assert_close(gapped, usual, rtol=1e-4, atol=2e-6 * size)


@pytest.mark.parametrize("form", [pytest.param(form, id=name) for name, form in FORMS.items() if True in modes(form)])
def test_a_backward_pass_under_autocast(form: Form, calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a forward pass without it, as in a training that keeps the backbone out of autocast."""
    both = []
    for switch in ("plain", "fast"):
        monkeypatch.setenv("FOURSTAGE_OPS", switch)
        torch.manual_seed(0)
        module, leaves = form.build(), [x.requires_grad_() for x in form.inputs["usual"]()]
        out = module(*leaves)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            both.append(
                torch.autograd.grad(out.square().sum(), [*leaves, *module.parameters()], materialize_grads=True)
            )
    assert calls
    size = max(float(plain.abs().max()) for plain in both[0])
    for plain, fast in zip(*both, strict=True):
        torch.testing.assert_close(fast, plain, rtol=0.02, atol=0.02 * size)


def plainly(gradients: Gradients) -> Gradients:
    return gradients


def second_gradients(module: nn.Module, tensors: list[Tensor]) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    wanted = [*leaves, *module.parameters()]
    grads = torch.autograd.grad(module(*leaves).pow(3).sum(), wanted, create_graph=True, materialize_grads=True)
    penalty = sum((grad.square().sum() for grad in grads), start=torch.zeros(()))
    return [*grads, *torch.autograd.grad(penalty, wanted, materialize_grads=True)]


def batched_gradients(module: nn.Module, tensors: list[Tensor]) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    wanted, out = [*leaves, *module.parameters()], module(*leaves)
    probes = torch.randn(3, *out.shape, generator=torch.Generator().manual_seed(1))
    return list(torch.autograd.grad(out, wanted, probes, is_grads_batched=True, materialize_grads=True))


def tangents_of_gradients(module: nn.Module, tensors: list[Tensor]) -> list[Tensor]:
    """How gradients change with the gradient of the output."""
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    wanted, out = [*leaves, *module.parameters()], module(*leaves)
    probe, tangent = torch.randn(2, *out.shape, generator=torch.Generator().manual_seed(1))
    with forward_ad.dual_level():
        grads = torch.autograd.grad(
            out, wanted, forward_ad.make_dual(probe, tangent), allow_unused=True, materialize_grads=True
        )
        pairs = [forward_ad.unpack_dual(grad) for grad in grads]
    return [
        x if x is not None else torch.zeros_like(pair.primal) for pair in pairs for x in (pair.primal, pair.tangent)
    ]


def mapped_gradients(module: nn.Module, tensors: list[Tensor]) -> list[Tensor]:
    """A batch of gradients by `vmap`, which maps the backward pass."""
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    wanted, out = [*leaves, *module.parameters()], module(*leaves)
    probes = torch.randn(3, *out.shape, generator=torch.Generator().manual_seed(1))

    def gradients(probe: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(out, wanted, probe, retain_graph=True, materialize_grads=True)

    return list(torch.func.vmap(gradients)(probes))


def penalty_of_input_gradients(module: nn.Module, tensors: list[Tensor]) -> list[Tensor]:
    """The first gradient is that of the inputs alone."""
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    grads = torch.autograd.grad(module(*leaves).pow(3).sum(), leaves, create_graph=True, materialize_grads=True)
    penalty = sum((grad.square().sum() for grad in grads), start=torch.zeros(()))
    return list(torch.autograd.grad(penalty, [*leaves, *module.parameters()], materialize_grads=True))


def checkpointed(gradients: Gradients) -> Gradients:
    """The same through activation checkpointing, which returns each saved tensor only once."""

    def through_checkpoint(module: nn.Module, tensors: list[Tensor]) -> list[Tensor]:
        class Checkpointed(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.module = module

            def forward(self, *inputs: Tensor) -> Tensor:
                return cast(Tensor, checkpoint(self.module, *inputs, use_reentrant=False))

        return gradients(Checkpointed(), tensors)

    return through_checkpoint


KINDS = [
    pytest.param(gradients, through, id=f"{gradients.__name__}-{through.__name__}")
    for gradients in (
        second_gradients, penalty_of_input_gradients, batched_gradients, mapped_gradients, tangents_of_gradients
    )
    for through in (plainly, checkpointed)
    if (gradients, through) != (mapped_gradients, checkpointed)  # see the test of what a checkpoint refuses
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # PyTorch's own, of plain forms
@pytest.mark.filterwarnings("ignore:`torch.jit.script`")  # PyTorch's own, when it needs a tangent first
@pytest.mark.parametrize(("gradients", "through"), KINDS)
@pytest.mark.parametrize("form", [pytest.param(form, id=name) for name, form in FORMS.items() if True in modes(form)])
def test_gradients_of_gradients_and_batches_of_them(
    form: Form,
    gradients: Gradients,
    through: Callable[[Gradients], Gradients],
    calls: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where the plain form has them."""
    both: list[list[Tensor]] = []
    for switch in ("plain", "fast"):
        monkeypatch.setenv("FOURSTAGE_OPS", switch)
        torch.manual_seed(0)
        try:
            both.append(through(gradients)(form.build(), list(form.inputs["usual"]())))
        except RuntimeError as error:
            if switch == "fast":
                raise
            pytest.skip(f"PyTorch has none: {error}")
    assert calls
    size = max(float(plain.detach().abs().max()) for plain in both[0])
    for plain, fast in zip(*both, strict=True):  # a bias before a norm has a gradient of rounding alone
        torch.testing.assert_close(fast, plain, rtol=1e-3, atol=2e-6 * size)


def test_a_checkpoint_refuses_a_batch_of_gradients_by_vmap() -> None:
    """It would compute the block again by the plain form, which keeps other tensors than the fast one did."""
    products.use("blas,blas,fused")
    with pytest.raises(CheckpointError, match="different"):
        checkpointed(mapped_gradients)(Mlp(8, 12), [torch.randn(2, 128, 8)])


@pytest.mark.parametrize("form", [pytest.param(form, id=name) for name, form in FORMS.items() if False in modes(form)])
def test_an_output_without_gradients_is_a_view_only_where_the_plain_one_is(
    form: Form, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A view that was computed without gradients cannot be changed in place with gradients."""
    module, tensors = form.build(), form.inputs["usual"]()
    with torch.no_grad():
        fast = module(*tensors)
        assert calls
        monkeypatch.setenv("FOURSTAGE_OPS", "plain")
        assert not fast._is_view() or module(*tensors)._is_view()


def kept(run: Callable[[], Tensor]) -> dict[int, Tensor]:
    """Return what a forward pass keeps for its backward pass, by place in memory, but for biases and the like."""
    found: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.ndim > 1:
            found[tensor.untyped_storage().data_ptr()] = tensor.detach()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        assert run().requires_grad
    return found


def bytes_kept(module: nn.Module, inputs: Callable[[], list[Tensor]]) -> int:
    """Return the bytes that a forward pass keeps of its inputs and of what is computed from them.

    Kernels that are computed from weights alone do not count: these are the same for other inputs.
    """
    one, other = (kept(partial(module, *inputs())).values() for _ in range(2))
    return sum(a.untyped_storage().nbytes() for a, b in zip(one, other, strict=True) if not torch.equal(a, b))


# a product by a convolution keeps what PyTorch's convolution keeps: always its input
FREEZING = {name: form for name, form in FORMS.items() if True in modes(form) and "convolution," not in form.products}


@pytest.mark.parametrize("form", [pytest.param(form, id=name) for name, form in FREEZING.items()])
@pytest.mark.parametrize("trained", ["input", "biases", "all"])
def test_no_more_is_kept_than_by_the_plain_form(
    form: Form, trained: str, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the inputs, whichever weights are frozen."""
    module = form.build()
    for parameter in module.parameters():
        parameter.requires_grad_(trained == "all" or (trained == "biases" and parameter.ndim == 1))
    needs_input = trained != "biases" or all(parameter.ndim > 1 for parameter in module.parameters())

    def inputs() -> list[Tensor]:
        return [x.requires_grad_(needs_input) for x in form.inputs["usual"]()]

    both = []
    for switch in ("plain", "fast"):
        monkeypatch.setenv("FOURSTAGE_OPS", switch)
        both.append(bytes_kept(module, inputs))
    assert calls or trained != "all"
    assert both[1] <= both[0]
