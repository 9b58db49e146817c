"""A program as a file of OpenVINO or of torch."""

from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.export import ExportedProgram

from fourstage.export.half import halve_openvino
from fourstage.exported.carriers import add_to_openvino, torch_extra_files
from fourstage.exported.description import Description


def write_openvino(onnx_model: Any, path: Path, description: Description, *, half: bool) -> None:
    """Write the .xml file of a network and its .bin file from an `onnx.ModelProto`.

    Args:
        half: store the weights in half precision; OpenVINO computes in float32.
    """
    import openvino

    with TemporaryDirectory() as folder:  # OpenVINO reads files alone
        source = Path(folder) / "network.onnx"
        source.write_bytes(onnx_model.SerializeToString())
        model = openvino.convert_model(source)
    add_to_openvino(model, description)
    if half:
        halve_openvino(model)
    openvino.save_model(model, str(path), compress_to_fp16=False)


def write_torch(program: ExportedProgram, path: Path, description: Description) -> None:
    """Write the .pt2 archive of a program, without the lines of source code that led to each node."""
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    content = BytesIO()  # where a disk is full, torch ends the process
    torch.export.save(program, content, extra_files=torch_extra_files(description))
    path.write_bytes(content.getbuffer())
