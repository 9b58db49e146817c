""".pt2 files of `torch.export`, on the CPU. The archive is rewritten before torch reads it, see `torch_files.py`."""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import fourstage.ops.nms_mask  # noqa: F401 - registers an operator
from fourstage.exported.carriers import from_torch
from fourstage.exported.description import Description
from fourstage.exported.runtime import Runtime
from fourstage.exported.torch_files import open_archive, read_safely, reporting_damage
from fourstage.ops.torchvision_kernels import have_kernels


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
    with open_archive(path) as archive, reporting_damage(path):
        description = from_torch(archive, path)
        copy = read_safely(path, archive)
    have_kernels()  # registers the operators of torchvision, which graphs of detectors name
    with _silent() as reasons:
        try:
            module = torch.export.load(copy).module()
        except (RuntimeError, AssertionError, TypeError, KeyError, ValueError, AttributeError, IndexError) as error:
            reason = " ".join((reasons or [str(error)])[0].split())
            raise ValueError(f"{path} cannot be opened by torch ({reason:.300}); export the network again") from error
    return TorchRuntime(path, description, module)


@contextmanager
def _silent() -> Iterator[list[str]]:
    """Yield a list that gets the errors which torch logs, with their tracebacks, instead of raising them."""
    reasons: list[str] = []

    def keep(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        while error is not None and error.__cause__ is not None:
            error = error.__cause__
        reasons.extend([] if error is None else [str(error)])
        return False

    logger = logging.getLogger("torch.export")
    logger.addFilter(keep)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about the format of its own files
            yield reasons
    finally:
        logger.removeFilter(keep)
