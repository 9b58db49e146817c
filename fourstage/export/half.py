"""Weights in half precision. Graphs turn them to float32 and compute in that.

What a graph computes with beside its weights, such as the places of anchors, keeps its precision: half of it has steps
of a pixel from 1,024 pixels on.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

FEWEST = 1024  # values of a tensor of weights that is stored in half precision
LARGEST = 65504.0  # in float16
LARGEST_ERROR = 0.01  # of a value by its rounding, as of 20: weights are smaller, and places in pixels are larger


def fits_half(values: np.ndarray) -> bool:
    """Return whether a tensor of a graph is one of weights, whose values float16 can hold."""
    if values.dtype != np.float32 or values.ndim < 2 or values.size < FEWEST:
        return False
    if not np.isfinite(values).all() or np.abs(values).max() > LARGEST:
        return False
    return bool(np.abs(values.astype(np.float16).astype(np.float32) - values).max() <= LARGEST_ERROR)


def halve_onnx(model: Any) -> None:
    """Store the weights of an `onnx.ModelProto` in half precision, in place."""
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if not fits_half(values):
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}_half"))
        casts.append(helper.make_node("Cast", [f"{name}_half"], [name], name=f"{name}_cast", to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def halve_openvino(model: Any) -> None:
    """Store the weights of an `openvino.Model` in half precision, in place.

    OpenVINO's own compression rounds every constant, among them thresholds and the places of anchors.
    """
    from openvino import Type, opset13

    for constant in model.get_ops():
        if constant.get_type_name() != "Constant" or constant.get_element_type() != Type.f32:
            continue
        values = constant.data
        if not fits_half(values):
            continue
        converted = opset13.convert(opset13.constant(values.astype(np.float16)), "f32")
        for user in constant.output(0).get_target_inputs():
            user.replace_source_output(converted.output(0))


class _Float32(nn.Module):
    """Weights in half precision, as float32."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight.float()


def halve_parameters(network: nn.Module) -> None:
    """Store the weights of a network in half precision, in place; its layers compute in float32."""
    for module in [*network.modules()]:
        for name, weight in [*module.named_parameters(recurse=False)]:
            if weight.dtype == torch.float32 and fits_half(weight.detach().numpy()):
                setattr(module, name, nn.Parameter(weight.detach().half(), requires_grad=False))
                parametrize.register_parametrization(module, name, _Float32(), unsafe=True)
