"""A linear layer is `nn.Linear`: what wraps, swaps, adapts or quantises linear layers reaches all and changes no other.

Networks are as small as can be, and have at least 128 rows in every layer of the first stages, so that fast paths run.
"""

import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from forms import FORMS, build
from torch import Tensor, nn
from torch.ao.nn.quantized import dynamic

from fourstage.ops import products

RANK = 4


@pytest.fixture(autouse=True)
def _other_products() -> Iterator[None]:
    before = list(products._chosen)
    products.use(f"{products.for_linear()[-1]},{products.for_linear()[-1]},plain")
    yield
    products._chosen[:] = before


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def swap(model: nn.Module, change: Callable[[nn.Linear], nn.Module]) -> nn.Module:
    """Put `change(layer)` in the place of every linear layer, as adapters and quantisers do."""
    for name, layer in linear_layers(model).items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, change(layer))
    return model


def flat(out: Tensor | list[Tensor]) -> Tensor:
    return torch.cat([x.flatten() for x in ([out] if isinstance(out, Tensor) else out)])


def image() -> Tensor:
    return torch.randn(2, 3, 64, 71, generator=torch.Generator().manual_seed(1))


def off(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, as a share of the largest number."""
    return float((ours - theirs).detach().abs().max() / theirs.detach().abs().max())


class Own(nn.Linear):
    """An equal linear layer of another type."""


def of_another_type(layer: nn.Linear) -> nn.Module:
    own = Own(layer.in_features, layer.out_features, layer.bias is not None)
    own.weight, own.bias = layer.weight, layer.bias
    return own


class Around(nn.Module):
    """A linear layer inside something else."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x)


@pytest.mark.parametrize("change", [of_another_type, Around])
@pytest.mark.parametrize("form", FORMS)
def test_an_equal_layer_in_the_place_of_each_changes_nothing(
    form: str, change: Callable[[nn.Linear], nn.Module]
) -> None:
    model = build(form)
    parameters = list(model.parameters())
    expected = flat(model(image()))
    gradients = torch.autograd.grad(expected.square().mean(), parameters, materialize_grads=True)
    with torch.no_grad():
        inferred = flat(model(image()))
    swap(model, change)
    out = flat(model(image()))
    assert off(out, expected) < 1e-5
    size = max(float(x.abs().max()) for x in gradients)
    swapped = torch.autograd.grad(out.square().mean(), parameters, materialize_grads=True)
    assert max(float((a - b).abs().max()) for a, b in zip(gradients, swapped, strict=True)) < 1e-5 * size
    with torch.no_grad():
        assert off(flat(model(image())), inferred) < 1e-5


class Lora(nn.Module):
    """A low-rank adapter as peft's: the layer, and two thin ones beside it that begin with random numbers."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = layer
        self.lora_A = nn.Linear(layer.in_features, RANK, bias=False)
        self.lora_B = nn.Linear(RANK, layer.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_B(self.lora_A(x))

    @torch.no_grad()
    def merge(self) -> None:
        self.base_layer.weight += self.lora_B.weight @ self.lora_A.weight


@pytest.mark.parametrize("form", FORMS)
def test_an_adapter_and_its_merged_form_are_the_same_network(form: str) -> None:
    seed = 5  # others give a SwinVisformer that enlarges rounding to 1e-5 in its plain form too
    model = build(form, seed)
    adapters = [adapter for adapter in swap(model, Lora).modules() if isinstance(adapter, Lora)]
    assert len(adapters) == len(linear_layers(build(form, seed)))
    with torch.no_grad():
        adapted = flat(model(image()))
    for adapter in adapters:
        adapter.merge()
    merged = build(form, seed)
    state = {key.replace(".base_layer.", "."): value for key, value in model.state_dict().items() if "lora_" not in key}
    merged.load_state_dict(state)
    with torch.no_grad():
        assert off(flat(merged(image())), adapted) < 1e-5
    assert off(flat(merged(image())), adapted) < 1e-5


@pytest.mark.parametrize("form", [form for form in FORMS if form != "visformer-dense"])  # it has convolutions alone
def test_peft_adapts_all_linear_layers(form: str) -> None:
    peft = pytest.importorskip("peft")
    count = len(linear_layers(build(form)))
    config = peft.LoraConfig(target_modules="all-linear", init_lora_weights=False, r=RANK)
    with torch.no_grad():
        model = peft.get_peft_model(build(form), config).eval()
        assert sum(isinstance(module, peft.tuners.lora.Linear) for module in model.modules()) == count
        adapted = flat(model(image()))
        assert off(flat(model.merge_and_unload()(image())), adapted) < 1e-5


@pytest.fixture(scope="module")
def swin_of_timm() -> float:
    """What quantisation does to timm's Swin of about this size, the most of some."""
    timm = pytest.importorskip("timm")
    deviations = []
    for seed in range(4):
        torch.manual_seed(seed)
        model = timm.create_model(
            "swin_tiny_patch4_window7_224", img_size=64, window_size=4, embed_dim=16, depths=(2,) * 4,
            num_heads=(1, 2, 4, 8), num_classes=10,
        ).eval()  # fmt: skip
        deviations.append(quantised(model, image()[..., :64])[0])
    return max(deviations)


def quantised(model: nn.Module, image_BCHW: Tensor) -> tuple[float, int]:
    """The deviation of the output, and how many layers were reached."""
    with torch.no_grad(), warnings.catch_warnings():  # torch 2.15 takes leave of its quantisation
        warnings.filterwarnings("ignore", "torch.quantize_per_tensor", UserWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        expected = flat(model(image_BCHW))
        model = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
        out = flat(model(image_BCHW))
    reached = sum(isinstance(module, dynamic.Linear) for module in model.modules())
    return float((out - expected).norm() / expected.norm()), reached


@pytest.mark.parametrize("form", FORMS)
def test_dynamic_quantisation_reaches_all_and_costs_no_more_than_elsewhere(form: str, swin_of_timm: float) -> None:
    model = build(form)
    deviation, reached = quantised(model, image())
    assert reached == len(linear_layers(model))
    assert deviation < 3 * swin_of_timm  # timm's own networks differ by more between two seeds
