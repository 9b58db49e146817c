"""Every format carries the description: what the writer adds, its own runtime reads."""

import warnings
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import openvino
import pytest
import torch
from openvino import opset13

from fourstage.exported.carriers import (
    EXTRA_FILE,
    add_to_onnx,
    add_to_openvino,
    from_onnx,
    from_openvino,
    from_torch,
    torch_extra_files,
)
from fourstage.exported.description import Description, Input, MiddleCrop

ONE = Description(
    task="classification",
    kind="logits",
    outputs=("logits",),
    classes=("cat", 'a "quoted" <dög> & ü', "x" * 3000),
    input=Input("images", height=8, width=8),
    network="tiny",
    resize=MiddleCrop(8),
)


def onnx_model() -> onnx.ModelProto:
    images, logits = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("images", "logits")
    )
    node = onnx.helper.make_node("Identity", ["images"], ["logits"])
    graph = onnx.helper.make_graph([node], "tiny", [images], [logits])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def openvino_model() -> Any:
    images = opset13.parameter([1], name="images")
    model: Any = openvino.Model
    return model([opset13.relu(images)], [images], "tiny")


def test_onnx_carries_one_description() -> None:
    model = onnx_model()
    onnx.helper.set_model_props(model, {"author": "me"})
    with pytest.raises(ValueError, match="no description"):
        from_onnx(session(model), Path("x.onnx"))
    add_to_onnx(model, replace(ONE, network="other"))
    add_to_onnx(model, ONE)
    assert from_onnx(session(model), Path("x.onnx")) == ONE
    assert {one.key for one in model.metadata_props} == {"author", "fourstage"}


def test_openvino_carries_it_through_its_files(tmp_path: Path) -> None:
    path, model = tmp_path / "x.xml", openvino_model()
    openvino.save_model(model, path)
    with pytest.raises(ValueError, match="no description"):
        from_openvino(openvino.Core().read_model(path), path)
    add_to_openvino(model, ONE)
    openvino.save_model(model, path)
    assert from_openvino(openvino.Core().read_model(path), path) == ONE


def test_torch_carries_it_in_an_extra_file(tmp_path: Path) -> None:
    path = tmp_path / "x.pt2"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(torch.nn.ReLU(), (torch.zeros(1),))
        torch.export.save(program, path, extra_files=torch_extra_files(ONE))
    with zipfile.ZipFile(path) as archive:
        assert any(EXTRA_FILE in name for name in archive.namelist())
        assert from_torch(archive, path) == ONE
    torch.export.save(program, path)
    with zipfile.ZipFile(path) as archive, pytest.raises(ValueError, match="no description"):
        from_torch(archive, path)
