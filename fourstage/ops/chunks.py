"""Running a function on some rows or some images at a time, where each is computed alone.

On a CPU the maps between layers then stay in the processor's cache, in memory that the process has already. The numbers
are those of one call.
"""

from collections.abc import Callable, Sequence
from math import ceil

import torch
from torch import Tensor, nn

from fourstage.ops.eager import LAYERS, is_stock, is_watched, may_run_fast

FEW = 128  # rows: fewer would lose more than they save
FRESH = 2**25  # bytes from which the C library (glibc) asks the system for memory, and gives it back, at every call
ROWS = 5 * 2**20  # bytes of a chunk of rows, which stay in a cache
WIDEST = 2**24  # bytes of the widest map within a stage, for a chunk of images
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


def joined(chunks: Sequence[Tensor]) -> Tensor:
    """Return the chunks as one tensor."""
    return chunks[0] if len(chunks) == 1 else torch.cat(list(chunks))


def in_chunks(function: Callable[[Tensor], Tensor], x_NC: Tensor, rows: int) -> Tensor:
    """Return `function(x)`, computed for chunks of `rows` rows."""
    chunks = x_NC.reshape(-1, x_NC.shape[-1]).split(rows)
    out_ND = torch.cat([function(chunk_NC) for chunk_NC in chunks])
    # no view for autograd, so that a caller may change it in place, also with gradients where it was computed without
    return torch.ops.aten._unsafe_view(out_ND, [*x_NC.shape[:-1], out_ND.shape[-1]])


def by_images(stage: nn.Module, x_BCHW: Tensor, cells: int) -> Tensor:
    """Return `stage(x)`, in chunks where no gradients are wanted and every module computes each image alone.

    Args:
        stage: from a map to the next one.
        x_BCHW: (B, C, H, W).
        cells: of one image's largest map within the stage.
    """
    if torch.is_grad_enabled() or not may_run_fast(x_BCHW):
        return stage(x_BCHW)
    batch = len(x_BCHW)
    chunks = min(batch, ceil(batch * cells * _widest(stage) * x_BCHW.element_size() / WIDEST))
    if chunks <= 1 or any(_needs_whole_batch(module) for module in stage.modules()):
        return stage(x_BCHW)
    return torch.cat([stage(chunk_BCHW) for chunk_BCHW in x_BCHW.split(ceil(batch / chunks))])


def _widest(stage: nn.Module) -> int:
    """Return the most channels that a layer of the stage gives."""
    layers = [module for module in stage.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    return max((m.out_channels if isinstance(m, nn.Conv2d) else m.out_features for m in layers), default=0)


def _needs_whole_batch(module: nn.Module) -> bool:
    """Return whether a module has statistics of the batch, is watched, is patched, or is somebody else's."""
    if module.training or is_watched(module) or not type(module).__module__.startswith(KNOWN):
        return True
    return type(module) in LAYERS and not is_stock(module)
