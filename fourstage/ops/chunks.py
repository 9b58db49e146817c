"""Running a function on some rows or some images at a time, where each is computed alone.

On a CPU the maps between layers then stay in the processor's cache, in memory that the process has already. The numbers
are those of one call.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fourstage.ops.eager import is_watched, may_run_fast

FEW = 128  # rows: fewer would lose more than they save
FRESH = 2**25  # bytes from which the C library (glibc) asks the system for memory, and gives it back, at every call
ROWS = 5 * 2**20  # bytes of a chunk of rows, which stay in a cache
IMAGES = 5 * 2**19  # bytes of a chunk of images that enters a stage; the widest map within is some four times as large
KNOWN = ("torch.nn.modules.", "fourstage.")  # modules that neither compare images of a batch nor keep their inputs


def by_rows(function: Callable[[Tensor], Tensor], x_NC: Tensor, width: int) -> Tensor:
    """Return `function(x)`.

    Args:
        function: computes each row alone and has up to `width` channels a row in memory.
        x_NC: (..., C).
    """
    if not may_run_fast(x_NC) or x_NC.numel() // x_NC.shape[-1] * width * x_NC.element_size() <= FRESH:
        return function(x_NC)
    return in_chunks(function, x_NC, max(FEW, ROWS // (width * x_NC.element_size())))


def in_chunks(function: Callable[[Tensor], Tensor], x_NC: Tensor, rows: int) -> Tensor:
    """Return `function(x)`, computed for chunks of `rows` rows."""
    chunks = x_NC.reshape(-1, x_NC.shape[-1]).split(rows)
    return torch.cat([function(chunk_NC) for chunk_NC in chunks]).view(*x_NC.shape[:-1], -1)


def by_images(stage: nn.Module, x_BCHW: Tensor) -> Tensor:
    """Return `stage(x)`, in chunks where no gradients are wanted and every module computes each image alone."""
    if torch.is_grad_enabled() or not may_run_fast(x_BCHW):
        return stage(x_BCHW)
    size = x_BCHW.numel() * x_BCHW.element_size()
    if size <= IMAGES or any(_needs_whole_batch(module) for module in stage.modules()):
        return stage(x_BCHW)
    images = max(1, IMAGES * len(x_BCHW) // size)
    return torch.cat([stage(chunk_BCHW) for chunk_BCHW in x_BCHW.split(images)])


def _needs_whole_batch(module: nn.Module) -> bool:
    """Return whether a module has statistics of the batch, is watched, or is somebody else's."""
    return module.training or is_watched(module) or not type(module).__module__.startswith(KNOWN)
