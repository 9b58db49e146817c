"""Half precision is for weights alone: what else a graph holds keeps its numbers, in every format."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from fourstage.export.half import fits_half, halve_onnx, halve_openvino, halve_parameters

RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(size=(32, 32)).astype(np.float32)
PLACES = RNG.uniform(0, 1333, (400, 4)).astype(np.float32)


@pytest.mark.parametrize(
    ("values", "fits"),
    [
        (WEIGHT, True),
        (PLACES, False),
        (WEIGHT[:31], False),
        (WEIGHT.flatten(), False),
        (WEIGHT.astype(np.float64), False),
        (WEIGHT * 1e6, False),
        (np.where(WEIGHT > 3, np.inf, WEIGHT).astype(np.float32), False),
    ],
)
def test_weights_are_told_from_places(values: np.ndarray, fits: bool) -> None:
    assert fits_half(values) == fits


def model() -> Any:
    """Return the graph of `images @ weight`, a threshold and places added to the shape of its outputs."""
    constants = {"weight": WEIGHT, "threshold": np.array([[0.1]], np.float32), "places": PLACES}
    nodes = [
        helper.make_node("MatMul", ["images", "weight"], ["product"]),
        helper.make_node("Add", ["product", "threshold"], ["logits"]),
        helper.make_node("Add", ["corner", "places"], ["boxes"]),
    ]
    sides = {"images": [1, 32], "corner": [1, 4], "logits": [1, 32], "boxes": [400, 4]}
    images, corner, logits, boxes = (helper.make_tensor_value_info(name, 1, shape) for name, shape in sides.items())
    weights = [numpy_helper.from_array(values, name) for name, values in constants.items()]
    graph = helper.make_graph(nodes, "small", [images, corner], [logits, boxes], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


INPUTS = {"images": np.ones((1, 32), np.float32), "corner": np.zeros((1, 4), np.float32)}
LOGITS = WEIGHT.astype(np.float16).astype(np.float32).sum(axis=0, keepdims=True) + np.float32(0.1)


def test_of_an_onnx_model_only_weights_are_halved() -> None:
    import onnxruntime

    halved = model()
    halve_onnx(halved)
    onnx.checker.check_model(halved)
    kept = {tensor.name: tensor.data_type for tensor in halved.graph.initializer}
    assert kept == {"weight_half": onnx.TensorProto.FLOAT16, "threshold": 1, "places": 1}
    session: Any = onnxruntime.InferenceSession(halved.SerializeToString(), providers=["CPUExecutionProvider"])
    logits, boxes = session.run(["logits", "boxes"], INPUTS)
    np.testing.assert_allclose(logits, LOGITS, atol=1e-5)
    np.testing.assert_array_equal(boxes, PLACES)


def test_of_an_openvino_model_only_weights_are_halved(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(model().SerializeToString())
    halved = openvino.convert_model(tmp_path / "x.onnx")
    halve_openvino(halved)
    openvino.save_model(halved, tmp_path / "x.xml", compress_to_fp16=False)
    assert (tmp_path / "x.bin").stat().st_size < 2 * WEIGHT.size + PLACES.nbytes + 100
    compiled = openvino.Core().compile_model(tmp_path / "x.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    logits, boxes = compiled(INPUTS).values()
    np.testing.assert_allclose(logits, LOGITS, atol=1e-5)
    np.testing.assert_array_equal(boxes, PLACES)


def test_of_a_network_only_weights_are_halved() -> None:
    network = nn.Linear(32, 32)
    network.register_buffer("places", torch.from_numpy(PLACES))
    expected = network.weight.detach().half().float()
    halve_parameters(network)
    assert torch.equal(network.weight, expected)
    assert network.get_buffer("places").dtype == torch.float32
    assert {str(one.dtype) for one in network.parameters()} == {"torch.float16", "torch.float32"}
