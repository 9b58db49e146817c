""".pt2 files of `torch.export`, on the CPU. The archive is rewritten before torch reads it, see `torch_files.py`."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import fourstage.ops.nms_mask  # noqa: F401 - registers an operator
from fourstage.exported.carriers import from_torch
from fourstage.exported.description import Description
from fourstage.exported.runtime import Runtime
from fourstage.exported.torch_files import open_archive, read_safely, whole


class TorchRuntime(Runtime):
    """A program of `torch.export`."""

    name = "torch"

    def __init__(self, path: Path, description: Description, module: nn.Module) -> None:
        super().__init__(path, description)
        self.module = module

    @torch.no_grad()
    def compute(self, inputs: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        try:
            out = self.module(*map(torch.from_numpy, inputs))
        except (RuntimeError, AssertionError) as error:
            raise self.not_computed(inputs[0], error) from error
        values = [out] if isinstance(out, Tensor) else list(out.values() if isinstance(out, Mapping) else out)
        return [value.numpy() for value in values]


def open_file(path: Path) -> TorchRuntime:
    """Open a .pt2 file. Raises ValueError where it is damaged, or where something in it could run code."""
    with open_archive(path) as archive, whole(path):
        description = from_torch(archive, path)
        copy = read_safely(path, archive)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about the format of its own files
            module = torch.export.load(copy).module()
    except (RuntimeError, AssertionError, TypeError, KeyError, ValueError, AttributeError, IndexError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} cannot be opened by torch ({reason:.300}); export the network again") from error
    return TorchRuntime(path, description, module)
