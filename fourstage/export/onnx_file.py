"""From a program of `torch.export` to an ONNX file."""

import operator
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from fourstage.exported.carriers import add_to_onnx
from fourstage.exported.description import Description

OPSET = 20


def onnx_model(program: ExportedProgram, inputs: Sequence[str], outputs: Sequence[str]) -> Any:
    """Return an `onnx.ModelProto` that computes what a program computes.

    Raises:
        ValueError: the exporter of this version of PyTorch lacks an operator.
    """
    from torch.onnx import OnnxExporterError

    _copy_attention(program)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch and onnxscript about themselves
            converted = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                input_names=list(inputs),
                output_names=list(outputs),
                custom_translation_table=_translations(),
                verbose=False,
            )
    except OnnxExporterError as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise ValueError(
            f"the ONNX exporter of PyTorch {torch.__version__} cannot write this network ({reason:.300}); try --format "
            f"torch"
        ) from error
    assert converted is not None
    model = converted.model_proto
    _tidy(model)
    return model


def _copy_attention(program: ExportedProgram) -> None:
    """Make the output of attention contiguous: its strides change while the exporter works, and views then fail."""
    aten = torch.ops.aten
    for node in [*program.graph.nodes]:
        if node.target is aten.view.default:
            node.target = aten.reshape.default
        elif node.target is aten.scaled_dot_product_attention.default:
            with program.graph.inserting_after(node):
                copy = program.graph.call_function(aten.clone.default, (node,))
            copy.kwargs = {"memory_format": torch.contiguous_format}
            copy.meta["val"] = node.meta["val"].contiguous()
            node.replace_all_uses_with(copy, delete_user_cb=lambda user, copy=copy: user is not copy)
    program.graph_module.recompile()


def _translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return how operators are written whose translation in onnxscript is right for some values alone."""
    import onnxscript

    ir: Any = onnxscript.ir
    op: Any = onnxscript.opset20

    def floor_divide(left: Any, right: Any) -> Any:
        """ONNX rounds towards zero, and sizes are rounded up as `-(-side // stride)`."""
        return op.Div(op.Sub(left, op.Mod(left, right)), right)

    def remainder(left: Any, right: Any) -> Any:
        """Take a symbol on the right too, as where a map of any size is rolled; the own translation takes numbers."""
        number = isinstance(right, int | float)
        right = op.Constant(value=ir.tensor(right, dtype=left.dtype)) if number else op.CastLike(right, left)
        if left.dtype.is_integer():
            return op.Mod(left, right)
        return op.Sub(left, op.Mul(op.Floor(op.Div(left, right)), right))

    def sort(values: Any, *, stable: bool | None = None, dim: int = -1, descending: bool = False) -> Any:
        """Of equal values, ONNX takes the first first."""
        count = op.Gather(op.Shape(values), op.Constant(value_ints=[dim]))
        return op.TopK(values, count, axis=dim, largest=int(descending), sorted=1)

    def nms_mask(boxes: Any, scores: Any, iou_threshold: float, score_threshold: float, most: int) -> Any:
        """ONNX returns the group, 0 and the number of each box that remains; their places become True."""
        limits = (op.Constant(value_ints=[most]), op.Constant(value_floats=[iou_threshold]))
        lowest = op.Constant(value_floats=[score_threshold])
        chosen = op.NonMaxSuppression(boxes, op.Unsqueeze(scores, op.Constant(value_ints=[1])), *limits, lowest)
        places = op.Gather(chosen, op.Constant(value_ints=[0, 2]), axis=1)
        count = op.Gather(op.Shape(places), op.Constant(value_ints=[0]))
        ones = op.ConstantOfShape(count, value=ir.tensor([1.0], dtype=ir.DataType.FLOAT))
        zeros = op.ConstantOfShape(op.Shape(scores), value=ir.tensor([0.0], dtype=ir.DataType.FLOAT))
        return op.Cast(op.ScatterND(zeros, places, ones), to=ir.DataType.BOOL)

    return {
        torch.ops.fourstage.nms_mask.default: nms_mask,
        operator.floordiv: floor_divide,
        torch.ops.aten.remainder.Scalar: remainder,
        torch.ops.aten.sort.stable: sort,
    }


def _tidy(model: Any) -> None:
    """Remove the lines of source code that led to each node, and shapes as long expressions."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        part.doc_string = ""
        del part.metadata_props[:]
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        for number, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.HasField("dim_param"):
                dim.dim_param = _axis_name(value.name, number)


def _axis_name(name: str, number: int) -> str:
    if number == 0:
        return "batch"
    return {2: "height", 3: "width"}[number] if name == "images" else f"{name}_{number}"


def write_onnx(model: Any, path: Path, description: Description) -> None:
    """Write a model with its description.

    Raises:
        ValueError: it is larger than an ONNX file can be.
    """
    from onnx import checker, save_model

    add_to_onnx(model, description)
    try:
        checker.check_model(model)
        save_model(model, str(path))
    except ValueError as error:
        raise ValueError(f"the network cannot be one ONNX file ({error:.200}); try --format torch") from error
