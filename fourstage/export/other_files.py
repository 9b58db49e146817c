"""A program as a file of OpenVINO or of torch."""

from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn.utils import parametrize

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
    openvino.save_model(model, str(path), compress_to_fp16=half)


def write_torch(program: ExportedProgram, path: Path, description: Description) -> None:
    """Write the .pt2 archive of a program, without the lines of source code that led to each node."""
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    content = BytesIO()  # where a disk is full, torch ends the process
    torch.export.save(program, content, extra_files=torch_extra_files(description))
    path.write_bytes(content.getbuffer())


class _Float32(nn.Module):
    """Weights in half precision, as float32."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight.float()


def halve_parameters(network: nn.Module) -> None:
    """Store the large weights of a network in half precision, in place; its layers compute in float32."""
    for module in [*network.modules()]:
        for name, weight in [*module.named_parameters(recurse=False)]:
            large: Any = weight.dtype == torch.float32 and weight.ndim > 1 and weight.numel() >= 1024
            if (
                large
                and bool(weight.isfinite().all())
                and float(weight.detach().abs().max()) <= torch.finfo(torch.half).max
            ):
                setattr(module, name, nn.Parameter(weight.detach().half(), requires_grad=False))
                parametrize.register_parametrization(module, name, _Float32(), unsafe=True)
