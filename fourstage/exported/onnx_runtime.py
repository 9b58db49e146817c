"""ONNX files by ONNX Runtime, on the CPU. Needs neither torch nor the package onnx."""

from collections.abc import Sequence
from importlib import import_module
from inspect import getmembers, isclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from fourstage.exported.carriers import from_onnx
from fourstage.exported.description import Description
from fourstage.exported.onnx_files import check_weight_files
from fourstage.exported.runtime import Runtime, threads

STATES = import_module("onnxruntime.capi.onnxruntime_pybind11_state")  # compiled, without types
ERRORS: tuple[type[Exception], ...] = (
    RuntimeError,
    *(one for _, one in getmembers(STATES, isclass) if issubclass(one, Exception)),
)
SILENT = 4  # of the log: fatal errors alone, since all others become exceptions


class OnnxRuntime(Runtime):
    """An ONNX file."""

    name = "onnxruntime"

    def __init__(self, path: Path, description: Description, session: Any) -> None:
        super().__init__(path, description)
        self.session = session

    def compute(self, inputs: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        named = dict(zip(self.description.input.names, inputs, strict=True))
        try:
            return self.session.run(list(self.description.outputs), named)
        except ERRORS as error:
            raise self.not_computed(inputs[0], error) from error


def open_file(path: Path) -> OnnxRuntime:
    """Open an ONNX file; the weights beside it may be in other files of its folder.

    Raises:
        ValueError: the file is damaged, unsafe or without its description.
    """
    check_weight_files(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads(), SILENT
    try:
        session = onnxruntime.InferenceSession(
            str(path),
            options,
            providers=["CPUExecutionProvider"],
            enable_fallback=0,  # it prints, and tries the same again
        )
    except (*ERRORS, ValueError) as error:  # ValueError: texts that are no UTF-8
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} cannot be opened by onnxruntime ({reason:.300}); export the network again") from error
    description = from_onnx(session, path)
    known = [one.name for one in session.get_inputs()], [one.name for one in session.get_outputs()]
    if known[0] != description.input.names or not set(description.outputs) <= set(known[1]):
        raise ValueError(f"{path} has other inputs or outputs than its description; export the network again")
    return OnnxRuntime(path, description, session)
