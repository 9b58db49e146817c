"""When fast paths may run: every way in which a tool can touch a network turns them off."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as nn_module
from torch.nn.utils import parametrizations
from torch.utils.flop_counter import FlopCounterMode

from fourstage.ops.eager import may_bypass, may_run_fast, runs_eagerly


def test_plain_tensors_and_stock_layers_may() -> None:
    layers = [nn.Linear(4, 4), nn.Conv2d(4, 4, 3), nn.LayerNorm(4), nn.BatchNorm2d(4), nn.GELU()]
    assert may_run_fast(torch.ones(2, 4), None, modules=layers)
    with torch.inference_mode():
        assert may_run_fast(torch.ones(2, 4), modules=layers)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(2, dtype=torch.float64),
        torch.ones(2, dtype=torch.bfloat16),
        torch.ones(2, device="meta"),
        torch.ones(2).as_subclass(type("Own", (Tensor,), {})),
    ],
    ids=["float64", "bfloat16", "meta", "subclass"],
)
def test_other_tensors_may_not(tensor: Tensor) -> None:
    assert not may_run_fast(tensor)
    layer = nn.Linear(2, 2)
    layer.weight = nn.Parameter(tensor, requires_grad=False)
    assert not may_run_fast(torch.ones(2), modules=[layer])


def hooked(layer: nn.Module) -> nn.Module:
    layer.register_forward_hook(lambda *_: None)
    return layer


def hooked_before(layer: nn.Module) -> nn.Module:
    layer.register_forward_pre_hook(lambda *_: None)
    return layer


def hooked_backward(layer: nn.Module) -> nn.Module:
    layer.register_full_backward_hook(lambda *_: None)
    return layer


def patched(layer: nn.Module) -> nn.Module:
    layer.forward = lambda x: x
    return layer


def patched_inside(layer: nn.Module) -> nn.Module:
    vars(layer)["_conv_forward"] = lambda x, *_: x
    return layer


def sparse(layer: nn.Module) -> nn.Module:
    layer.weight = nn.Parameter(layer.get_parameter("weight").detach().to_sparse())
    return layer


def compiled(layer: nn.Module) -> nn.Module:
    layer.compile(backend="eager")
    return layer


def of_another_type(layer: nn.Module) -> nn.Module:
    return type("Adapted", (nn.Linear,), {})(2, 2)


@pytest.mark.parametrize(
    "touch",
    [
        hooked,
        hooked_before,
        hooked_backward,
        patched,
        patched_inside,
        sparse,
        compiled,
        of_another_type,
        parametrizations.weight_norm,
        nn.Sequential,
    ],
    ids=lambda touch: touch.__name__,
)
def test_touched_layers_may_not(touch: Callable[[nn.Module], nn.Module]) -> None:
    assert not may_run_fast(torch.ones(2), modules=[nn.ReLU(), touch(nn.Linear(2, 2))])


@pytest.mark.parametrize(
    ("patched_class", "name", "layer"),
    [
        (nn.Linear, "forward", nn.Linear(2, 2)),
        (nn.Module, "__call__", nn.Linear(2, 2)),
        (nn.Conv2d, "_conv_forward", nn.Conv2d(2, 2, 1)),
    ],
)
def test_patched_classes_may_not(
    patched_class: type[nn.Module], name: str, layer: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = getattr(patched_class, name)
    monkeypatch.setattr(patched_class, name, lambda layer, *given: 2 * before(layer, *given))
    assert not may_run_fast(torch.ones(2), modules=[layer])


def test_a_patched_call_sees_every_container(monkeypatch: pytest.MonkeyPatch) -> None:
    container = nn.Sequential(nn.Linear(2, 2))
    assert may_bypass(container)
    before = nn.Module.__call__
    monkeypatch.setattr(nn.Module, "__call__", lambda module, x: 2 * before(module, x))
    assert not may_bypass(container)


def test_hooks_of_all_modules_count() -> None:
    handle = nn_module.register_module_forward_hook(lambda *_: None)
    try:
        assert not may_run_fast(torch.ones(2), modules=[nn.Linear(2, 2)])
    finally:
        handle.remove()


@pytest.mark.parametrize(
    "mode",
    [
        lambda: torch.autocast("cpu"),
        lambda: FlopCounterMode(display=False),
        lambda: torch.device("cpu"),
    ],
    ids=["autocast", "counter", "function_mode"],
)
def test_modes_turn_it_off(mode: Callable[[], AbstractContextManager[object]]) -> None:
    x = torch.ones(2)
    with mode():
        assert not may_run_fast(x)
    assert may_run_fast(x)


class AsksOfLayer(nn.Module):
    """Keeps whether a fast path might have computed its layer."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        self.answers: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.answers.append(may_run_fast(x, modules=[self.layer]))
        return x


@pytest.mark.filterwarnings("ignore:`torch.jit.script`")  # PyTorch's own, when it needs a tangent first
def test_tangents_turn_it_off() -> None:
    """Those of tensors and of layers' parameters, and no others: a checkpoint that computes a block again inside a
    backward pass with tangents must get the form of before.
    """
    layer, other, x = nn.Linear(2, 2), nn.Linear(2, 2), torch.ones(2)
    asks = AsksOfLayer(layer)
    with forward_ad.dual_level():
        weight = forward_ad.make_dual(layer.weight.detach(), torch.ones(2, 2))
        torch.func.functional_call(asks, {"layer.weight": weight}, (x,))
        torch.func.functional_call(asks, {"layer.weight": layer.weight.detach()}, (x,))
        assert asks.answers == [False, True]
        assert not may_run_fast(forward_ad.make_dual(x, x), modules=[other])
        del layer.weight
        layer.weight = weight  # as PyTorch's tutorial does
        assert not may_run_fast(x, modules=[layer])
        assert may_run_fast(x, modules=[other])
        assert not runs_eagerly()


class Asks(nn.Module):
    """Doubles where fast paths may run, and keeps what it answered."""

    answers: list[bool]

    def __init__(self) -> None:
        super().__init__()
        self.answers = []

    def forward(self, x: Tensor) -> Tensor:
        self.answers.append(may_run_fast(x))
        return x + 1


@pytest.fixture
def asks() -> Iterator[Asks]:
    module = Asks()
    yield module
    assert module.answers
    assert not any(module.answers)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_jit_trace(asks: Asks) -> None:
    torch.jit.trace(asks, torch.ones(2), check_trace=False)


def test_vmap_and_grad(asks: Asks) -> None:
    torch.vmap(asks)(torch.ones(3, 2))
    torch.func.grad(lambda x: asks(x).sum())(torch.ones(2))


@pytest.mark.parametrize("strict", [False, True])
def test_export(strict: bool) -> None:
    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if may_run_fast(x) else x + 1

    program = torch.export.export(Branches(), (torch.ones(2),), strict=strict)
    assert [node.target for node in program.graph.nodes if node.op == "call_function"] == [torch.ops.aten.add.Tensor]


def test_the_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOURSTAGE_OPS", "plain")
    assert not may_run_fast(torch.ones(2))
    for value in ("fast", ""):  # an empty value is none, as in FOURSTAGE_PRODUCTS
        monkeypatch.setenv("FOURSTAGE_OPS", value)
        assert may_run_fast(torch.ones(2))
    monkeypatch.setenv("FOURSTAGE_OPS", "slow")
    with pytest.raises(ValueError, match="FOURSTAGE_OPS is 'slow'; set it to plain"):
        may_run_fast(torch.ones(2))
