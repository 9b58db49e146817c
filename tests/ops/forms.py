"""Every fast path of the operations, by name: what `test_forms.py` tries each of them on. A form joins with one row."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fourstage.backbones import layer_scale
from fourstage.ops import (
    attention,
    conv_gelu,
    conv_of_class,
    depthwise,
    depthwise_mlp,
    gelu,
    halo_attention,
    matmul,
    memory_format,
    mlp,
    pointwise,
    pyramid,
    resized_conv,
    resized_loss,
    sampling,
    scale_weighing,
    window_attention,
)
from fourstage.ops.window_masks import Visibility

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
        environment: other variables under which it runs.
    """

    fast: str
    build: Callable[[], nn.Module]
    inputs: dict[str, Inputs]
    gradients: str = "both"  # "without", "with"
    products: str = "blas,blas,fused"
    limits: dict[str, int] = field(default_factory=dict)  # constants "module.NAME" that make the inputs large enough
    environment: dict[str, str] = field(default_factory=dict)


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


@dataclass(frozen=True)
class Misfit:
    """Layers of PyTorch for which a fast path was not derived: the operation calls them.

    Attributes:
        build: see `Form`.
        inputs: see `Form`; they are those on which the fast path would run on fitting layers.
        products: see `Form`.
        limits: see `Form`.
    """

    build: Callable[[], nn.Module]
    inputs: Inputs
    products: str = "convolution,convolution,fused"
    limits: dict[str, int] = field(default_factory=dict)


def with_large(inputs: Inputs, which: int) -> Inputs:
    """The same with one tensor so large that its powers leave the range of float32."""

    def make() -> list[Tensor]:
        tensors = list(inputs())
        tensors[which] = (300 * tensors[which]).round()
        return tensors

    return make


LINEAR: dict[str, Inputs] = {
    "usual": of(2, 128, 8),
    "odd": of(3, 43, 8),
    "long": of(1, 129, 8),
    "one row": of(1, 8),
    "empty": of(0, 16, 8),
}


def linear_layer(**arguments: bool) -> nn.Module:
    return Operation(matmul.linear, nn.Linear(8, 12, **arguments))


def mlp_layers(approximate: str = "none", *, bias: bool = True) -> nn.Module:
    return Operation(mlp.mlp, nn.Linear(8, 12, bias), nn.GELU(approximate), nn.Linear(12, 8, bias))


class Branch(nn.Module):
    """A linear layer, or all that an operation takes, as a branch that ends in a linear layer."""

    def __init__(self, run: Callable[..., Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.run = run
        self.layers = nn.ModuleList(layers)

    @layer_scale.takes_scale
    def forward(self, x_NC: Tensor, scale_D: Tensor | None = None) -> Tensor:
        return self.run(*self.layers, x_NC, scale_D)


def scaled(run: Callable[..., Tensor], *layers: nn.Module, dim: int = 8) -> nn.Module:
    """A branch and its layer scale, each factor another one."""
    scale = layer_scale.LayerScale(dim, 1.0)
    nn.init.normal_(scale.scale)
    return Operation(layer_scale.scaled, Branch(run, *layers), scale)


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


def windowed(shift: int = 0, *, lacking: int | None = None) -> nn.Module:
    """Attention of two heads in windows of three cells a side; the map's last `lacking` columns are padding."""
    cut = window_attention.Windows(3, shift, 2, 0.3)

    def attend(qkv_BHWC: Tensor, bias_hNN: Tensor) -> Tensor:
        _, height, width, _ = qkv_BHWC.shape
        visibility = None if lacking is None else Visibility(height, width - lacking, 3, shift, see_padding=False)
        return window_attention.attend_windows(qkv_BHWC, cut, bias_hNN, visibility)

    return Operation(attend)


def windowed_inputs(batch: int, height: int, width: int) -> Inputs:
    """A map of queries, keys and values, and a bias of each head."""
    return lambda: [torch.randn(batch, height, width, 24), torch.randn(2, 9, 9)]


WINDOW_MAPS = {"usual": (3, 6, 9), "odd": (3, 3, 3), "one row": (1, 3, 12), "empty": (0, 6, 9)}
WINDOWS = {name: windowed_inputs(*sizes) for name, sizes in WINDOW_MAPS.items()}


def halo_inputs(batch: int, down: int, across: int, heads: int = 2, block: int = 3, halo: int = 2) -> Inputs:
    window, dim = block + 2 * halo, 4

    def make() -> list[Tensor]:
        shape = (batch, down, across, heads, block**2)
        map_BHWC = torch.randn(batch, down * block, across * block, 2 * heads * dim)
        return [torch.randn(*shape, dim), map_BHWC, torch.randn(*shape, window), torch.randn(*shape, window)]

    return make


def views(batch: int, height: int, width: int, group: int = 12) -> Inputs:
    return lambda: list(torch.randn(4, batch, height, width, group).unbind(0))


def weighing(*, training: bool, bias: bool = True, affine: bool = True) -> nn.Module:
    norm = nn.BatchNorm2d(96, affine=affine)
    assert norm.running_mean is not None
    norm.running_mean.normal_()
    module = Operation(
        lambda weigh, norm, *views: scale_weighing.weigh_scales(weigh, norm, list(views)),
        nn.Conv2d(48, 96, 1, groups=12, bias=bias),
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


def pyramid_inputs(batch: int, sizes: Sequence[tuple[int, int]], widths: Sequence[int]) -> Inputs:
    """One map of each size and width."""
    return lambda: [torch.randn(batch, width, *size) for size, width in zip(sizes, widths, strict=True)]


def class_channel(conv: nn.Module, x_RDMM: Tensor) -> Tensor:
    return conv_of_class.conv_of_class(conv, x_RDMM, torch.arange(len(x_RDMM)))


def pixel_loss(logits_BChw: Tensor) -> Tensor:
    batch, classes, height, width = logits_BChw.shape
    labels_BHW = (torch.arange(batch * 6 * height * width) % (classes + 1)).view(batch, 3 * height, 2 * width)
    return resized_loss.resized_cross_entropy(logits_BChw, labels_BHW, ignore=classes)


RESIZED: dict[str, list[tuple[int, int]]] = {
    "usual": [(8, 12), (4, 6), (2, 3)],
    "odd": [(7, 5), (4, 3), (9, 1)],
    "one row": [(1, 6), (1, 3), (1, 1)],
    "one column": [(6, 1), (3, 1), (1, 1)],
}
DOUBLED: dict[str, list[tuple[int, int]]] = {
    "usual": [(8, 12), (4, 6)],
    "odd": [(7, 5), (4, 3)],
    "two rows": [(2, 6), (1, 3)],
    "two columns": [(6, 2), (3, 1)],
    "one cell": [(1, 1), (1, 1)],
}
MAPS: dict[str, Inputs] = {
    "usual": of(2, 6, 8, 8),
    "odd": of(3, 5, 7, 8),
    "one row": of(1, 1, 5, 8),
    "one cell": of(2, 1, 1, 8),
    "empty": of(0, 6, 8, 8),
}


def pointwise_layer(**arguments: Any) -> nn.Module:
    """A convolution of a (B, H, W, C) map."""
    return Operation(
        lambda layer, x_BHWC: pointwise.convolve(layer, x_BHWC.movedim(-1, 1)),
        nn.Conv2d(8, 12, **{"kernel_size": 1, **arguments}),
    )


def convolved(run: Callable[..., Tensor], *layers: nn.Module) -> nn.Module:
    """An operation on maps, of a (B, H, W, C) map."""
    return Operation(lambda *given: run(*given[:-1], given[-1].movedim(-1, 1)), *layers)


def conv_gelu_layers(**arguments: Any) -> nn.Module:
    return convolved(
        conv_gelu.convolve_gelu, nn.Conv2d(8, 12, **{"kernel_size": 3, "padding": 1, **arguments}), nn.GELU()
    )


def conv_mlp_layers(side: int = 1, *, bias: bool = True) -> nn.Module:
    first = nn.Conv2d(8, 16, side, padding=side // 2, bias=bias)
    return convolved(conv_gelu.convolved_mlp, first, nn.GELU(), nn.Conv2d(16, 12, 1, bias=bias))


def depthwise_mlp_layers(run: Callable[..., Tensor] = depthwise_mlp.depthwise_mlp, *, bias: bool = True) -> nn.Module:
    conv = nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=bias)
    return Operation(run, nn.Linear(8, 12, bias=bias), conv, nn.Linear(12, 8, bias=bias))


def gelu_linear_layer(*, bias: bool = True) -> nn.Module:
    return Operation(mlp.gelu_linear, nn.Linear(8, 12, bias=bias))


def relu_mlp_layers(**second: Any) -> nn.Module:
    return convolved(conv_gelu.convolved_mlp, nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Conv2d(12, 8, 1, **second))


SAMPLES: dict[str, Inputs] = {
    "usual": sample_inputs(2, 6, 8),
    "odd": sample_inputs(3, 5, 7, queries=1),
    "one row": sample_inputs(1, 1, 5),
    "empty": sample_inputs(0, 6, 8),
}
NO_WIDTH = {"mlp.NARROW": 0}
SOME_ROWS = NO_WIDTH | {"mlp.CHUNK": 1024, "mlp.ALONE": 1024, "mlp.FEW": 16, "matmul.FEW": 16}
MANY_CELLS = {"conv_gelu.CELLS": 10**9}
GELU_AS_IT_IS = {"gelu.AXES": 0}
ANY_THREADS = {"pointwise.THREADS": 1024}
CHUNKS = {"chunks.FRESH": 0, "chunks.FEW": 16, "chunks.ROWS": 1024}

FORMS: dict[str, Form] = {
    "linear by a convolution": Form(
        "matmul.by_convolution", linear_layer, LINEAR, products="convolution,convolution,fused"
    ),
    "linear without a bias by a convolution": Form(
        "matmul.by_convolution", lambda: linear_layer(bias=False), LINEAR, products="convolution,convolution,fused"
    ),
    "linear by oneDNN": Form("matmul.by_onednn", linear_layer, LINEAR, "without", "blas,onednn,fused"),
    "linear by passes": Form("matmul.output_pass", linear_layer, LINEAR, "with", "onednn/blas/onednn,blas,fused"),
    "linear without a bias by passes": Form(
        "matmul.output_pass", lambda: linear_layer(bias=False), LINEAR, "with", "blas/onednn/onednn,blas,fused"
    ),
    "linear with a scale": Form("layer_scale.scaled_matrix", lambda: scaled(matmul.linear, nn.Linear(8, 8)), LINEAR),
    "linear without a bias, with a scale, by passes": Form(
        "layer_scale.scaled_matrix",
        lambda: scaled(matmul.linear, nn.Linear(8, 8, bias=False)),
        LINEAR,
        products="onednn/blas/onednn,onednn,fused",
    ),
    "mlp with a scale": Form(
        "layer_scale.scaled_matrix", lambda: scaled(mlp.mlp, nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8)), LINEAR
    ),
    "mlp with a scale by passes of some rows": Form(
        "layer_scale.scaled_matrix",
        lambda: scaled(mlp.mlp, nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8)),
        LINEAR,
        "with",
        "onednn,blas,fused",
        limits=SOME_ROWS,
    ),
    "GELU and linear with a scale": Form(
        "layer_scale.scaled_matrix", lambda: scaled(mlp.gelu_linear, nn.Linear(8, 8)), LINEAR
    ),
    "mlp by passes": Form("mlp.by_passes", mlp_layers, LINEAR, "with", "onednn/onednn/blas,blas,fused"),
    "mlp by PyTorch's own passes": Form("mlp.by_passes", mlp_layers, LINEAR, "with"),
    "mlp without biases by passes": Form(
        "mlp.by_passes", lambda: mlp_layers(bias=False), LINEAR, "with", "blas/onednn/onednn,blas,fused"
    ),
    "mlp by passes of some rows": Form(
        "mlp.by_passes", mlp_layers, LINEAR, "with", "onednn,blas,fused", limits=SOME_ROWS
    ),
    "GELU and linear by passes": Form(
        "mlp.gelu_by_passes", gelu_linear_layer, LINEAR, "with", "onednn,blas,fused", limits=NO_WIDTH
    ),
    "GELU and linear by PyTorch's own passes": Form(
        "mlp.gelu_by_passes", gelu_linear_layer, LINEAR, "with", limits=NO_WIDTH
    ),
    "GELU kept and a narrow linear layer": Form("mlp._product", gelu_linear_layer, LINEAR, "with", "onednn,blas,fused"),
    "GELU and linear without a bias by passes of some rows": Form(
        "mlp.gelu_by_passes",
        lambda: gelu_linear_layer(bias=False),
        LINEAR,
        "with",
        "blas/onednn/blas,blas,fused",
        limits=SOME_ROWS,
    ),
    "mlp by a convolution": Form("matmul.by_convolution", mlp_layers, LINEAR, products="convolution,convolution,fused"),
    "mlp by oneDNN": Form("matmul.by_onednn", mlp_layers, LINEAR, "without", "blas,onednn,fused"),
    "mlp with another GELU by oneDNN": Form(
        "matmul.by_onednn", lambda: mlp_layers("tanh"), LINEAR, "without", "blas,onednn,fused"
    ),
    "mlp by rows": Form("chunks.in_chunks", mlp_layers, LINEAR, "without", limits=CHUNKS),
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
    "attention by two products with large masks": Form(
        "attention.by_two_products",
        lambda: Operation(attend_to),
        {"usual": with_large(attention_inputs(2, 6, 6, masks=True), 3)},
        products="blas,blas,plain",
    ),
    "attention in windows": Form("window_attention.by_chunks", windowed, WINDOWS),
    "attention in shifted windows with a large bias": Form(
        "window_attention.by_chunks", lambda: windowed(shift=1, lacking=0), {"usual": with_large(WINDOWS["usual"], 1)}
    ),
    "attention in shifted windows": Form("window_attention.by_chunks", lambda: windowed(shift=2, lacking=0), WINDOWS),
    "attention in windows that are not full": Form("window_attention.by_chunks", lambda: windowed(lacking=2), WINDOWS),
    "attention in shifted windows of a large map": Form(
        "window_attention.by_chunks",
        lambda: windowed(shift=1, lacking=1),
        WINDOWS,
        limits={"window_masks.KEPT": 0},
    ),
    "attention in some windows at a time": Form(
        "window_attention.by_chunks",
        lambda: windowed(shift=1, lacking=1),
        WINDOWS,
        limits={"window_attention.CHUNK": 2 * 2 * 81 * 4},
    ),
    "attention in some windows of a large map at a time": Form(
        "window_attention.by_chunks",
        lambda: windowed(shift=1, lacking=1),
        WINDOWS,
        limits={"window_attention.CHUNK": 2 * 2 * 81 * 4, "window_attention.KEPT": 0},
    ),
    "attention in the windows of two images at a time": Form(
        "window_attention.by_chunks", windowed, WINDOWS, limits={"window_attention.CHUNK": 12 * 2 * 81 * 4}
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
    "attention to a halo with large numbers for its rows": Form(
        "halo_attention.by_strips",
        lambda: Operation(lambda q, kv, rows, columns: halo_attention.halo_attention(q, kv, rows, columns, 2)),
        {"usual": with_large(halo_inputs(2, 3, 4), 2)},
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
    "weighing of scales in runs, without a bias": Form(
        "scale_weighing.in_runs", lambda: weighing(training=False, bias=False), {"usual": views(2, 6, 8)}
    ),
    "weighing of scales in runs, with a norm without weights": Form(
        "scale_weighing.in_runs", lambda: weighing(training=False, affine=False), {"usual": views(2, 6, 8)}
    ),
    "depth-wise convolution with the map itself": Form(
        "depthwise.with_itself",
        lambda: Operation(depthwise.residual_depthwise, nn.Conv2d(8, 8, 3, padding=1, groups=8)),
        MAPS,
    ),
    "GELU of a map": Form("gelu.by_memory", lambda: convolved(gelu.gelu), MAPS),
    "activation of a map": Form("gelu.by_memory", lambda: convolved(gelu.activated, nn.GELU()), MAPS),
    "another GELU of a map": Form("gelu.by_memory", lambda: convolved(gelu.activated, nn.GELU("tanh")), MAPS),
    "depth-wise mlp in one pass": Form("depthwise_mlp.in_one_pass", depthwise_mlp_layers, MAPS, "without"),
    "depth-wise mlp without biases in one pass": Form(
        "depthwise_mlp.in_one_pass", lambda: depthwise_mlp_layers(bias=False), MAPS, "without", "blas,onednn,fused"
    ),
    "residual depth-wise mlp in one pass": Form(
        "depthwise_mlp.in_one_pass",
        lambda: depthwise_mlp_layers(depthwise_mlp.residual_depthwise_mlp),
        MAPS,
        "without",
    ),
    "depth-wise mlp by passes": Form("mlp.gelu_by_passes", depthwise_mlp_layers, MAPS, "with", limits=NO_WIDTH),
    "1x1 convolution by a linear layer": Form(
        "pointwise.by_linear_layer", pointwise_layer, MAPS, products="onednn,onednn,fused", limits=ANY_THREADS
    ),
    "1x1 convolution without a bias by a linear layer": Form(
        "pointwise.by_linear_layer",
        lambda: pointwise_layer(bias=False),
        MAPS,
        products="blas/onednn/onednn,onednn,fused",
        limits=ANY_THREADS,
    ),
    "convolution and GELU in one pass": Form("conv_gelu.in_one_pass", conv_gelu_layers, MAPS, "without"),
    "convolution of strides and groups and GELU in one pass": Form(
        "conv_gelu.in_one_pass",
        lambda: conv_gelu_layers(bias=False, stride=2, dilation=2, padding=(2, 3), groups=4),
        MAPS,
        "without",
    ),
    "mlp of 1x1 convolutions in one pass": Form("conv_gelu.in_one_pass", conv_mlp_layers, MAPS, "without"),
    "mlp of 1x1 convolutions by passes": Form(
        "mlp.by_passes", conv_mlp_layers, MAPS, "with", "onednn/onednn/blas,blas,fused", limits=MANY_CELLS
    ),
    "mlp of 1x1 convolutions without biases by passes of some rows": Form(
        "mlp.by_passes",
        lambda: conv_mlp_layers(bias=False),
        MAPS,
        "with",
        "onednn,blas,fused",
        limits=SOME_ROWS | MANY_CELLS,
    ),
    "mlp of a 3x3 and a 1x1 convolution in one pass": Form(
        "conv_gelu.in_one_pass", lambda: conv_mlp_layers(3), MAPS, "without"
    ),
    "sampling by embedding_bag": Form("sampling.by_embedding_bag", lambda: Operation(sample), SAMPLES, "without"),
    "sampling with the sum of points one by one": Form(
        "sampling.weighed_sum", lambda: Operation(sample), SAMPLES, "with"
    ),
    "convolution of one class": Form(
        "conv_of_class.one_channel",
        lambda: Operation(class_channel, nn.Conv2d(8, 5, 1)),
        {"usual": of(3, 8, 4, 4), "odd": of(2, 8, 3, 3), "one row": of(1, 8, 1, 5), "empty": of(0, 8, 4, 4)},
    ),
    "convolution before resizing": Form(
        "resized_conv.conv_then_resize",
        lambda: Operation(lambda conv, *maps: resized_conv.conv_of_resized(conv, maps), nn.Conv2d(9, 6, 3, padding=1)),
        {name: pyramid_inputs(2, sizes, (4, 3, 2)) for name, sizes in RESIZED.items()}
        | {"empty": pyramid_inputs(0, RESIZED["usual"], (4, 3, 2))},
    ),
    "convolution before resizing with aligned corners": Form(
        "resized_conv.conv_then_resize",
        lambda: Operation(
            lambda conv, *maps: resized_conv.conv_of_resized(conv, maps, align_corners=True),
            nn.Conv2d(9, 6, 3, padding=1, bias=False),
        ),
        {name: pyramid_inputs(2, sizes, (4, 3, 2)) for name, sizes in RESIZED.items()},
    ),
    "pyramid's first output by a joined kernel": Form(
        "pyramid.conv_by_joined_kernel",
        lambda: Operation(pyramid.conv_of_sum, nn.Conv2d(4, 12, 1), nn.Conv2d(12, 12, 3, padding=1)),
        {name: pyramid_inputs(2, sizes, (4, 12)) for name, sizes in DOUBLED.items()}
        | {"empty": pyramid_inputs(0, DOUBLED["usual"], (4, 12))},
    ),
    "decoder's first convolution by a joined kernel": Form(
        "pyramid.convs_by_joined_kernel",
        lambda: Operation(
            pyramid.convs_of_sum,
            *(nn.Conv2d(4, 12, 1), nn.Conv2d(12, 12, 3, padding=1), nn.Conv2d(12, 8, 3, padding=1, bias=False)),
        ),
        {name: pyramid_inputs(2, sizes, (4, 12)) for name, sizes in DOUBLED.items()}
        | {"empty": pyramid_inputs(0, DOUBLED["usual"], (4, 12))},
        limits={"pyramid.JOINING": 0},
    ),
    "loss of resized logits by strips": Form(
        "resized_loss.sum_by_strips",
        lambda: Operation(pixel_loss),
        {"usual": of(2, 16, 4, 5), "odd": of(1, 17, 3, 7), "one row": of(1, 16, 1, 5), "empty": of(0, 16, 4, 5)},
        limits={"resized_loss.STRIP": 1 << 9},
    ),
    "channels last": Form(
        "memory_format.as_channels_last", lambda: Operation(memory_format.prefer_channels_last), MAPS
    ),
}

FORMS["sampling without kept samples"] = Form(
    "sampling.weighed_reading",
    lambda: Operation(sample),
    SAMPLES,
    "with",
    environment={"FOURSTAGE_SAMPLING": "grid_sample_twice"},
)
if os.environ.get("TRITON_INTERPRET") == "1":  # see test_sampling_kernel.py
    FORMS["sampling by Triton"] = Form(
        "sampling.by_triton", lambda: Operation(sample), SAMPLES, environment={"FOURSTAGE_SAMPLING": "triton"}
    )


def _conv(channels: int, out: int, side: int = 3, **arguments: Any) -> nn.Conv2d:
    return nn.Conv2d(channels, out, side, **{"padding": side // 2, **arguments})


CONVS: dict[str, dict[str, Any]] = {  # how a user may set up the layer in place of 3x3, padding 1
    "circular padding": {"padding_mode": "circular"},
    "reflected padding": {"padding_mode": "reflect"},
    "dilation": {"dilation": 2, "padding": 2},
    "5x5": {"side": 5},
    "1x1": {"side": 1},
    "padding by name": {"padding": "same"},
    "two groups": {"groups": 2},
}


def changed(layer: nn.Linear, channels: int, outputs: int, biases: int) -> nn.Linear:
    """The layer with other tensors, as tools for pruning leave it."""
    layer.weight, layer.bias = nn.Parameter(torch.randn(outputs, channels)), nn.Parameter(torch.randn(biases))
    return layer


def set_up(conv: nn.Conv2d, **sizes: int) -> nn.Conv2d:
    """The convolution with sizes that were changed after it was built."""
    for name, size in sizes.items():
        setattr(conv, name, size)
    return conv


def with_tensors(conv: nn.Conv2d, *weight: int, biases: int = 0) -> nn.Conv2d:
    """The convolution with other tensors than it was built with."""
    conv.weight = nn.Parameter(torch.randn(weight))
    conv.bias = nn.Parameter(torch.randn(biases or weight[0]))
    return conv


def resized_convolution(conv: nn.Module) -> nn.Module:
    return Operation(lambda conv, *maps: resized_conv.conv_of_resized(conv, maps), conv)


def weighing_by(weigh: nn.Module, norm: nn.Module) -> nn.Module:
    return Operation(lambda weigh, norm, *maps: scale_weighing.weigh_scales(weigh, norm, list(maps)), weigh, norm)


def _of_other_tensors() -> Iterator[tuple[str, Misfit]]:
    """Layers with tensors of other shapes than they name: PyTorch computes with the tensors, or raises an error."""
    for side, bias in ((1, 0), (5, 0), (3, 1)):
        name = "a bias of one number" if bias else f"{side}x{side}"
        conv = partial(with_tensors, biases=bias)
        yield (
            f"depth-wise convolution with weights of {name}",
            Misfit(
                lambda conv=conv, side=side: Operation(
                    depthwise.residual_depthwise, conv(_conv(8, 8, groups=8), 8, 1, side, side)
                ),
                MAPS["usual"],
            ),
        )
        yield (
            f"convolution of resized maps with weights of {name}",
            Misfit(
                lambda conv=conv, side=side: resized_convolution(conv(_conv(10, 6), 6, 10, side, side)),
                pyramid_inputs(2, RESIZED["usual"], (4, 4, 2)),
            ),
        )
        yield (
            f"pyramid's output with weights of {name}",
            Misfit(
                lambda conv=conv, side=side: Operation(
                    pyramid.conv_of_sum, nn.Conv2d(4, 12, 1), conv(_conv(12, 12), 12, 12, side, side)
                ),
                pyramid_inputs(2, DOUBLED["usual"], (4, 12)),
            ),
        )
    for side, bias in ((3, 0), (1, 1)):
        name = "a bias of one number" if bias else f"{side}x{side}"
        conv = partial(with_tensors, biases=bias)
        yield (
            f"pyramid's narrow map with weights of {name}",
            Misfit(
                lambda conv=conv, side=side: Operation(
                    pyramid.conv_of_sum, conv(nn.Conv2d(4, 12, 1), 12, 4, side, side), _conv(12, 12)
                ),
                pyramid_inputs(2, DOUBLED["usual"], (4, 12)),
            ),
        )
        yield (
            f"convolution of one class with weights of {name}",
            Misfit(
                lambda conv=conv, side=side: Operation(class_channel, conv(nn.Conv2d(8, 5, 1), 5, 8, side, side)),
                of(3, 8, 4, 4),
            ),
        )
        yield (
            f"weighing of scales with weights of {name}",
            Misfit(
                lambda conv=conv, side=side: weighing_by(
                    conv(_conv(48, 96, 1, groups=12), 96, 4, side, side), nn.BatchNorm2d(96).eval()
                ),
                views(2, 6, 8),
            ),
        )
    yield (
        "convolution of one class for other channels",
        Misfit(lambda: Operation(class_channel, nn.Conv2d(6, 5, 1)), of(3, 8, 4, 4)),
    )
    yield (
        "convolution of resized maps for other channels",
        Misfit(lambda: resized_convolution(_conv(9, 6)), pyramid_inputs(2, RESIZED["usual"], (4, 4, 2))),
    )
    yield (
        "weighing of scales with a norm of one number",
        Misfit(
            lambda: weighing_by(_conv(48, 96, 1, groups=12), with_mean(nn.BatchNorm2d(96).eval(), 1)), views(2, 6, 8)
        ),
    )


def with_mean(norm: nn.BatchNorm2d, numbers: int) -> nn.BatchNorm2d:
    norm.running_mean = torch.randn(numbers)
    return norm


OF_OTHER_TENSORS = dict(_of_other_tensors())


def _misfits() -> Iterator[tuple[str, Misfit]]:
    for name, arguments in CONVS.items():
        yield (
            f"depth-wise convolution with {name}",
            Misfit(
                lambda arguments=arguments: Operation(
                    depthwise.residual_depthwise, _conv(8, 8, **{"groups": 8, **arguments})
                ),
                MAPS["usual"],
            ),
        )
        yield (
            f"depth-wise mlp with {name}",
            Misfit(
                lambda arguments=arguments: Operation(
                    depthwise_mlp.depthwise_mlp, nn.Identity(), _conv(8, 8, **{"groups": 8, **arguments}), nn.Identity()
                ),
                MAPS["usual"],
            ),
        )
        yield (
            f"convolution of resized maps with {name}",
            Misfit(
                lambda arguments=arguments: Operation(
                    lambda conv, *maps: resized_conv.conv_of_resized(conv, maps), _conv(10, 6, **arguments)
                ),
                pyramid_inputs(2, RESIZED["usual"], (4, 4, 2)),
            ),
        )
        yield (
            f"pyramid's output with {name}",
            Misfit(
                lambda arguments=arguments: Operation(
                    pyramid.conv_of_sum, nn.Conv2d(4, 12, 1), _conv(12, 12, **arguments)
                ),
                pyramid_inputs(2, DOUBLED["usual"], (4, 12)),
            ),
        )
    for name, arguments in {
        "one group": {"groups": 1},
        "more groups": {"groups": 24},
        "3x3": {"side": 3},
        "stride": {"stride": 2},
        "padding": {"padding": 1},
    }.items():
        yield (
            f"weighing of scales with {name}",
            Misfit(
                lambda arguments=arguments: Operation(
                    lambda weigh, norm, *maps: scale_weighing.weigh_scales(weigh, norm, list(maps)),
                    *(_conv(48, 96, **{"side": 1, "groups": 12, **arguments}), nn.BatchNorm2d(96).eval()),
                ),
                views(2, 6, 8),
            ),
        )
    for name, layers in {
        "ReLU": (nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8)),
        "no activation": (nn.Linear(8, 12), nn.Identity(), nn.Linear(12, 8)),
        "one layer": (nn.Linear(8, 12), nn.GELU(), nn.Identity()),
        "no layer": (nn.Identity(), nn.GELU(), nn.Identity()),
    }.items():
        for names in ("convolution,convolution,fused", "onednn,onednn,fused"):
            yield (
                f"mlp with {name}, {names}",
                Misfit(lambda layers=layers: Operation(mlp.mlp, *layers), of(2, 128, 8), names),
            )
    for name, arguments in {
        "3x3": {"kernel_size": 3, "padding": 1},
        "stride": {"stride": 2},
        "groups": {"groups": 2},
        "padding": {"padding": 1},
    }.items():
        yield (
            f"1x1 convolution with {name}",
            Misfit(
                lambda arguments=arguments: pointwise_layer(**arguments),
                of(2, 6, 8, 8),
                "onednn,onednn,fused",
                ANY_THREADS,
            ),
        )
    for name, sizes in {"a bias of one number": (12, 1), "no outputs": (0, 0)}.items():
        for of_layer in (matmul.linear, mlp.gelu_linear):
            yield (
                f"linear layer with {name} in {of_layer.__name__}",
                Misfit(
                    lambda sizes=sizes, of_layer=of_layer: Operation(of_layer, changed(nn.Linear(8, 12), 8, *sizes)),
                    of(2, 128, 8),
                    "onednn,onednn,fused",
                ),
            )
        yield (
            f"mlp with {name}",
            Misfit(
                lambda sizes=sizes: Operation(
                    mlp.mlp, changed(nn.Linear(8, 12), 8, *sizes), nn.GELU(), changed(nn.Linear(8, 8), sizes[0], 8, 8)
                ),
                of(2, 128, 8),
                "onednn,onednn,fused",
            ),
        )
    yield (
        "mlp without inputs",
        Misfit(
            lambda: Operation(mlp.mlp, changed(nn.Linear(8, 12), 0, 12, 12), nn.GELU(), nn.Linear(12, 8)), of(2, 128, 0)
        ),
    )
    for name, arguments in (
        ("circular padding", {"padding_mode": "circular"}),
        ("padding by name", {"padding": "same"}),
    ):
        yield (
            f"convolution with {name} and GELU",
            Misfit(lambda arguments=arguments: conv_gelu_layers(**arguments), of(2, 6, 8, 8), limits=GELU_AS_IT_IS),
        )
    for name, arguments in (("stride", {"stride": 2}), ("groups", {"groups": 2}), ("padding", {"padding": 1})):
        yield (
            f"mlp of a convolution with {name}",
            Misfit(
                lambda arguments=arguments: relu_mlp_layers(**arguments),
                of(2, 6, 8, 8),
            ),
        )
    for name, act in (("another GELU", nn.GELU("tanh")), ("ReLU", nn.ReLU())):
        yield (
            f"convolution and {name}",
            Misfit(
                lambda act=act: convolved(conv_gelu.convolve_gelu, nn.Conv2d(8, 12, 3), act),
                of(2, 6, 8, 8),
                limits=GELU_AS_IT_IS,
            ),
        )
    for name in ("padding", "stride", "dilation"):
        yield (
            f"convolution whose {name} is one number and GELU",
            Misfit(
                lambda name=name: convolved(
                    conv_gelu.convolve_gelu, set_up(nn.Conv2d(8, 12, 3, padding=1), **{name: 3}), nn.GELU()
                ),
                of(2, 6, 8, 8),
                limits=GELU_AS_IT_IS,
            ),
        )
    for name, scale in {"of one number": 1, "of several axes": (1, 12)}.items():
        yield (
            f"linear layer with a scale {name}",
            Misfit(
                lambda scale=scale: Operation(
                    lambda layer, x_NC: matmul.linear(layer, x_NC, torch.ones(scale)), nn.Linear(8, 12)
                ),
                of(2, 128, 8),
                "blas,blas,fused",
            ),
        )
    yield "linear layer removed", Misfit(lambda: Operation(matmul.linear, nn.Identity()), of(2, 128, 8))
    yield "linear layer after GELU removed", Misfit(lambda: Operation(mlp.gelu_linear, nn.Identity()), of(2, 128, 8))
    yield (
        "two convolutions of classes",
        Misfit(
            lambda: Operation(class_channel, nn.Conv2d(8, 6, 1, groups=2)),
            of(3, 8, 4, 4),
        ),
    )


MISFITS = dict(_misfits())
