"""Every fast path of the operations, by name: what `test_forms.py` tries each of them on. A form joins with one row."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fourstage.ops import attention, depthwise, halo_attention, matmul, sampling, scale_weighing

Inputs = Callable[[], Sequence[Tensor]]


@dataclass(frozen=True)
class Form:
    """One fast path.

    Attributes:
        fast: the function that only the fast path calls, as "module.name" below `fourstage.ops`.
        build: gives a module whose forward calls the operation on `inputs` and on layers of its own.
        inputs: by name of the case. The fast path must run on "usual"; on the others it may.
        gradients: "both" if the fast path runs with and without them, else the only mode in which it runs.
        products: the value of `FOURSTAGE_PRODUCTS` under which it runs.
    """

    fast: str
    build: Callable[[], nn.Module]
    inputs: dict[str, Inputs]
    gradients: str = "both"  # "without", "with"
    products: str = "blas,blas,fused"
    limits: dict[str, int] = field(default_factory=dict)  # constants "module.NAME" that make the inputs large enough


class Operation(nn.Module):
    """A function of tensors and of layers, as a module that can be exported."""

    def __init__(self, run: Callable[..., Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.run = run
        self.layers = nn.ModuleList(layers)

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.run(*self.layers, *tensors)


def of(*shape: int) -> Inputs:
    """One tensor."""
    return lambda: [torch.randn(shape)]


LINEAR: dict[str, Inputs] = {
    "usual": of(2, 128, 8),
    "odd": of(3, 43, 8),
    "long": of(1, 129, 8),
    "one row": of(1, 8),
    "empty": of(0, 16, 8),
}


def linear_layer(**arguments: bool) -> nn.Module:
    return Operation(matmul.linear, nn.Linear(8, 12, **arguments))


def mlp_layers(approximate: str = "none") -> nn.Module:
    return Operation(matmul.mlp, nn.Linear(8, 12), nn.GELU(approximate), nn.Linear(12, 8))


def attention_inputs(batch: int, cells: int, others: int, *, masks: bool) -> Inputs:
    def make() -> list[Tensor]:
        q, k, v = torch.randn(batch, 2, cells, 4), *torch.randn(2, batch, 2, others, 4)
        return [q, k, v, *([torch.randn(2, cells, others), torch.randn(1, 1, cells, others)] if masks else [])]

    return make


def attend_to(q: Tensor, k: Tensor, v: Tensor, *masks: Tensor) -> Tensor:
    return attention.attend(q, k, v, masks, scale=0.3)


ATTENTION: dict[str, tuple[int, int, int]] = {
    "usual": (2, 6, 6),
    "odd": (3, 5, 7),
    "one row": (1, 1, 1),
    "empty": (0, 6, 6),
}


def halo_inputs(batch: int, down: int, across: int, heads: int = 2, block: int = 3, halo: int = 2) -> Inputs:
    window, dim = block + 2 * halo, 4

    def make() -> list[Tensor]:
        shape = (batch, down, across, heads, block**2)
        map_BHWC = torch.randn(batch, down * block, across * block, 2 * heads * dim)
        return [torch.randn(*shape, dim), map_BHWC, torch.randn(*shape, window), torch.randn(*shape, window)]

    return make


def views(batch: int, height: int, width: int, group: int = 12) -> Inputs:
    return lambda: list(torch.randn(4, batch, height, width, group).unbind(0))


def weighing(*, training: bool) -> nn.Module:
    norm = nn.BatchNorm2d(96)
    assert norm.running_mean is not None
    norm.running_mean.normal_()
    module = Operation(
        lambda weigh, norm, *views: scale_weighing.weigh_scales(weigh, norm, list(views)),
        nn.Conv2d(48, 96, 1, groups=12),
        norm,
    )
    return module.train(training)


def sample_inputs(batch: int, height: int, width: int, queries: int = 5) -> Inputs:
    def make() -> list[Tensor]:
        at = torch.rand(batch, queries, 2, 1, 3, 2) * (height + 2) - 1
        return [torch.randn(batch, height, width, 2, 4), at, torch.rand(batch, queries, 2, 1, 3)]

    return make


def sample(map_BHWhd: Tensor, locations_BQhLP2: Tensor, weights_BQhLP: Tensor) -> Tensor:
    return sampling.deformable_sample([map_BHWhd], locations_BQhLP2, weights_BQhLP)


MAPS: dict[str, Inputs] = {
    "usual": of(2, 6, 8, 8),
    "odd": of(3, 5, 7, 8),
    "one row": of(1, 1, 5, 8),
    "one cell": of(2, 1, 1, 8),
    "empty": of(0, 6, 8, 8),
}
SAMPLES: dict[str, Inputs] = {
    "usual": sample_inputs(2, 6, 8),
    "odd": sample_inputs(3, 5, 7, queries=1),
    "one row": sample_inputs(1, 1, 5),
    "empty": sample_inputs(0, 6, 8),
}
CHUNKS = {"chunks.FRESH": 0, "chunks.FEW": 16, "chunks.ROWS": 1024}

FORMS: dict[str, Form] = {
    "linear by a convolution": Form(
        "matmul.by_convolution", linear_layer, LINEAR, products="convolution,convolution,fused"
    ),
    "linear without a bias by a convolution": Form(
        "matmul.by_convolution", lambda: linear_layer(bias=False), LINEAR, products="convolution,convolution,fused"
    ),
    "linear by oneDNN": Form("matmul.by_onednn", linear_layer, LINEAR, "without", "blas,onednn,fused"),
    "mlp by a convolution": Form("matmul.by_convolution", mlp_layers, LINEAR, products="convolution,convolution,fused"),
    "mlp by oneDNN": Form("matmul.by_onednn", mlp_layers, LINEAR, "without", "blas,onednn,fused"),
    "mlp with another GELU by oneDNN": Form(
        "matmul.by_onednn", lambda: mlp_layers("tanh"), LINEAR, "without", "blas,onednn,fused"
    ),
    "mlp by rows": Form("chunks.in_chunks", mlp_layers, LINEAR, limits=CHUNKS),
    "attention by two products": Form(
        "attention.by_two_products",
        lambda: Operation(attend_to),
        {name: attention_inputs(*sizes, masks=True) for name, sizes in ATTENTION.items()},
        products="blas,blas,plain",
    ),
    "attention without masks by two products": Form(
        "attention.by_two_products",
        lambda: Operation(attend_to),
        {name: attention_inputs(*sizes, masks=False) for name, sizes in ATTENTION.items()},
        "without",
        "blas,blas,plain",
    ),
    "attention to a halo by strips": Form(
        "halo_attention.by_strips",
        lambda: Operation(lambda q, kv, rows, columns: halo_attention.halo_attention(q, kv, rows, columns, 2)),
        {
            "usual": halo_inputs(2, 3, 4),
            "odd": halo_inputs(1, 1, 3),
            "one row": halo_inputs(1, 1, 1, block=1, halo=2),
            "empty": halo_inputs(0, 2, 2),
        },
    ),
    "weighing of scales in runs": Form(
        "scale_weighing.in_runs",
        lambda: weighing(training=False),
        {
            "usual": views(2, 6, 8),
            "odd": views(3, 5, 7),
            "one row": views(1, 1, 5),
            "empty": views(0, 6, 8),
        },
    ),
    "weighing of scales in runs, in training": Form(
        "scale_weighing.in_runs", lambda: weighing(training=True), {"usual": views(2, 6, 8), "odd": views(3, 5, 7)}
    ),
    "depth-wise convolution with the map itself": Form(
        "depthwise.with_itself",
        lambda: Operation(depthwise.residual_depthwise, nn.Conv2d(8, 8, 3, padding=1, groups=8)),
        MAPS,
    ),
    "sampling by embedding_bag": Form("sampling.by_embedding_bag", lambda: Operation(sample), SAMPLES, "without"),
    "sampling with the sum of points one by one": Form(
        "sampling.weighed_sum", lambda: Operation(sample), SAMPLES, "with"
    ),
}
