"""Small exported files of each format, with descriptions."""

import warnings
from dataclasses import replace
from pathlib import Path

import openvino
import torch
from exported.networks import DESCRIPTIONS, graph_of
from torch import nn

from fourstage.exported.carriers import add_to_onnx, add_to_openvino, torch_extra_files
from fourstage.exported.description import Description


def write_onnx(path: Path, graph: nn.Module, description: Description, size: tuple[int, int]) -> Path:
    """Export a graph with a dynamic batch and fixed sides."""
    batch = torch.export.Dim("batch", min=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            graph,
            (torch.zeros(2, 3, *size),),
            input_names=["images"],
            output_names=list(description.outputs),
            dynamic_shapes=({0: batch},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    add_to_onnx(model, description)
    path.write_bytes(model.SerializeToString())
    return path


def write_openvino(path: Path, onnx_file: Path, description: Description) -> Path:
    model = openvino.convert_model(onnx_file)
    add_to_openvino(model, description)
    openvino.save_model(model, path, compress_to_fp16=False)
    return path


def write_torch(path: Path, graph: nn.Module, description: Description, size: tuple[int, int]) -> Path:
    batch = torch.export.Dim("batch", min=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(graph, (torch.zeros(2, 3, *size),), dynamic_shapes=({0: batch},))
        torch.export.save(program, path, extra_files=torch_extra_files(description))
    return path


def of_size(task: str, size: tuple[int, int]) -> Description:
    """Return the description of a file with fixed sides."""
    one = DESCRIPTIONS[task]
    return replace(one, input=replace(one.input, height=size[0], width=size[1]))


def classifier_files(folder: Path, network: nn.Module) -> dict[str, Path]:
    """Write a classifier of 32 pixels in each format."""
    graph, description = graph_of("classification", network), of_size("classification", (32, 32))
    onnx_file = write_onnx(folder / "x.onnx", graph, description, (32, 32))
    return {
        "onnx": onnx_file,
        "openvino": write_openvino(folder / "x.xml", onnx_file, description),
        "torch": write_torch(folder / "x.pt2", graph, description, (32, 32)),
    }
