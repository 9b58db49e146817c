"""OpenVINO's .xml files, with their weights in the .bin file beside them, on the CPU. Needs no torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino

from fourstage.exported.carriers import from_openvino
from fourstage.exported.description import Description
from fourstage.exported.runtime import Runtime, threads


class OpenvinoRuntime(Runtime):
    """A model of OpenVINO."""

    name = "openvino"

    def __init__(self, path: Path, description: Description, compiled: Any) -> None:
        super().__init__(path, description)
        self.request = compiled.create_infer_request()

    def compute(self, inputs: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        try:
            self.request.infer([*inputs])
        except RuntimeError as error:
            raise self.not_computed(inputs[0], error) from error
        return [np.array(output.data) for output in self.request.output_tensors]  # a copy: the next call reuses them


def open_file(path: Path) -> OpenvinoRuntime:
    """Open a .xml file; its weights are in the .bin file of the same name.

    Raises:
        ValueError: the file is damaged or without its description.
        FileNotFoundError: its weights are missing.
    """
    weights = path.with_suffix(".bin")
    if not weights.is_file():
        raise FileNotFoundError(f"{path} has its weights in {weights.name}, which is missing; put it beside the file")
    core = openvino.Core()
    settings = {
        "INFERENCE_NUM_THREADS": threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",  # some processors would compute in bfloat16
        "SNIPPETS_MODE": "DISABLE",  # in OpenVINO 2026.4, its fused attention gives wrong numbers on small maps
    }
    try:
        model = core.read_model(str(path), str(weights))
        description = from_openvino(model, path)
        compiled = core.compile_model(model, "CPU", settings)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} cannot be opened by openvino ({reason:.300}); export the network again") from error
    if len(compiled.inputs) != len(description.input.names) or len(compiled.outputs) != len(description.outputs):
        raise ValueError(f"{path} has other inputs or outputs than its description; export the network again")
    return OpenvinoRuntime(path, description, compiled)
