"""Parameters and multiply-accumulates (MACs), counted on the meta device: nothing is computed, nothing is allocated.

B images, C channels, H x W cells.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from fourstage.api import create_backbone, create_model
from fourstage.registry import find

LAYERS = (F.linear, torch.conv1d, torch.conv2d, torch.conv3d, torch.conv_transpose2d)  # products with a layer's weights
PRODUCTS = tuple(getattr(torch.ops.aten, name) for name in ("mm", "addmm", "bmm", "baddbmm", "convolution"))
NORMS = (F.layer_norm, F.batch_norm, F.group_norm)
SAME_SHAPE = (*NORMS, F.gelu, F.relu)  # no products: only their output's shape is wanted
WITH_BIAS = (torch.conv1d, torch.conv2d, torch.conv3d, torch.conv_transpose2d)  # whose biases OpenMMLab counts
CORNERS = 4  # cells that a bilinear sample is the weighted sum of


@dataclass(frozen=True)
class Count:
    """The cost of a network for one image."""

    parameters: int
    macs: int  # of convolutions and matrix products; norms, activations and sampling are left out
    layer_macs: int  # of convolutions and linear layers alone: `macs` without the products of attention
    sampling_macs: int  # of bilinear sampling (DCNv3), not included in `macs`
    activations: int  # numbers of elements in the outputs of convolutions and matrix products
    size: tuple[int, int]  # H and W of that image, in pixels
    element_macs: int = 0  # of norms, ReLU, adaptive pooling and biases of convolutions, not included in `macs`

    @property
    def module_macs(self) -> int:
        """The count of OpenMMLab's counters, which hook modules and so miss the products of attention."""
        return self.layer_macs + self.element_macs

    @property
    def full_macs(self) -> int:
        """The count of `module_macs` with the products of attention."""
        return self.macs + self.element_macs


def count(name: str, img_size: int | tuple[int, int] | None = None, *, dense: bool = False) -> Count:
    """Return what a model of ours costs, at its own image size unless another is given.

    Args:
        name: one of `list_models()`.
        img_size: pixels, a side or (H, W).
        dense: the network of `create_backbone` instead of the classifier.

    Raises:
        ValueError: the name is unknown, or the model cannot have this size.
    """
    return _count(find(name).name, img_size, dense)


@cache
def _count(name: str, img_size: int | tuple[int, int] | None, dense: bool) -> Count:
    build = create_backbone if dense else create_model
    with torch.device("meta"):
        model = build(name, img_size=img_size)
    return count_module(model, image_shape(model))


def image_shape(model: Any) -> tuple[int, int, int]:
    """Return (C, H, W) of a network's images, from its `default_cfg` where it has one; else (3, 224, 224)."""
    cfg = getattr(model, "default_cfg", None) or {}
    channels, height, width = cfg.get("input_size", (3, 224, 224))
    return channels, height, width


def count_module(model: nn.Module, image_CHW: Sequence[int]) -> Count:
    """Return what any network costs for one image of this shape, in evaluation mode. The network stays as it was.

    Args:
        model: on any device; only the shapes of its parameters and buffers are used.
        image_CHW: channels, height and width in pixels.
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    shapes = {name: tensor.detach().to("meta") for name, tensor in tensors.items()}
    image_BCHW = torch.empty(1, *image_CHW, device="meta")
    products = _Products()
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), products.counter, products:
            torch.func.functional_call(model, shapes, (image_BCHW,))
    finally:
        for module, training in modes.items():
            module.training = training
    counts: dict[Any, int] = products.counter.get_flop_counts().get("Global", {})
    return Count(
        parameters=sum(p.numel() for p in model.parameters()),
        macs=sum(counts.values()) // 2,
        layer_macs=products.layer_flops // 2,
        sampling_macs=products.sampling_macs,
        activations=products.activations,
        size=(image_CHW[1], image_CHW[2]),
        element_macs=products.element_macs,
    )


class _Products(TorchFunctionMode):
    """Count the products of layers and the sampling separately, while `counter` counts all products.

    A layer is recognised by the function that it calls, because the operations below `F.linear` depend on the memory
    format of its input. Functions without products only return the shape of their output: PyTorch would decompose
    them to find it, which takes most of the time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layer_flops = self.sampling_macs = self.activations = self.element_macs = 0
        mapping = {op: self._noted(formula) for op, formula in flop_registry.items() if op in PRODUCTS}
        self.counter = FlopCounterMode(display=False, custom_mapping=mapping)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in SAME_SHAPE:
            return self._same_shape(func, args[0] if args else kwargs["input"])
        if func is F.grid_sample:
            return self._sampled(*args, **kwargs)
        before = self.counter.get_total_flops() if func in LAYERS else 0
        out = func(*args, **kwargs)
        if func in LAYERS:
            self.layer_flops += self.counter.get_total_flops() - before
        if func in WITH_BIAS and (args[2] if len(args) > 2 else kwargs.get("bias")) is not None:
            self.element_macs += out.numel()
        if func is F.adaptive_avg_pool2d:
            self.element_macs += args[0].numel()
        return out

    def _same_shape(self, func: Any, x: Tensor) -> Tensor:
        """Count two operations per value for a norm, one for ReLU and none for GELU, as OpenMMLab's counters do."""
        self.element_macs += x.numel() * (2 if func in NORMS else 1 if func is F.relu else 0)
        return torch.empty_like(x)

    def _sampled(self, input: Tensor, grid: Tensor, *how: Any, **known: Any) -> Tensor:
        """Count bilinear sampling: each sample is the weighted sum of four cells."""
        out_BCHW = input.new_empty(*input.shape[:2], *grid.shape[1:-1])
        self.sampling_macs += CORNERS * out_BCHW.numel()
        return out_BCHW

    def _noted(self, formula: Callable[..., int]) -> Callable[..., int]:
        def noted(*shapes: Any, out_shape: Any, **kwargs: Any) -> int:
            self.activations += prod(out_shape)
            return formula(*shapes, out_val=out_shape, **kwargs)

        return noted
