"""torchvision's RoIAlign, on a CPU by all threads. B images, R regions, C channels, H x W cells, M x M in a region.

torchvision computes it with one thread. Forward, each thread takes some of the regions; backward, some of the channels.
No sum is split, so the numbers are the same, bit for bit, with any number of threads.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Barrier
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import roi_align as by_torchvision

from fourstage.ops.eager import eager_on_cpu

WORTH = 1 << 17  # values of all regions, from which on threads pay off


def roi_align(x_BCHW: Tensor, rois_R5: Tensor, size: int, scale: float, samples: int) -> Tensor:
    """(R, C, M, M), aligned by half a cell.

    Args:
        x_BCHW: the map.
        rois_R5: index of the image and the corners of a box, pixels.
        size: M.
        scale: cells for each pixel.
        samples: points a side in each cell of a region; 0: as many as it has cells of the map there.
    """
    threads, values = torch.get_num_threads(), len(rois_R5) * x_BCHW.shape[1] * size * size
    if threads == 1 or values < WORTH or not eager_on_cpu(x_BCHW):
        return by_torchvision(x_BCHW, rois_R5, size, scale, samples, aligned=True)
    return _ByThreads.apply(x_BCHW, rois_R5, size, scale, samples, threads)


class _ByThreads(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_BCHW: Tensor, rois_R5: Tensor, size: int, scale: float, samples: int, threads: int
    ) -> Tensor:
        ctx.save_for_backward(rois_R5)
        ctx.given = x_BCHW.shape, size, scale, samples, threads
        x_BCHW, rois_R5 = x_BCHW.detach().contiguous(), rois_R5.detach()

        def part(some_R5: Tensor) -> Tensor:
            return by_torchvision(x_BCHW, some_R5, size, scale, samples, aligned=True)

        return torch.cat(_in_threads(part, rois_R5.chunk(threads), threads))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (grad_RCMM,), (rois_R5,) = grads, ctx.saved_tensors
        (images, _, height, width), size, scale, samples, threads = ctx.given

        def part(some_RCMM: Tensor) -> Tensor:
            sizes = images, some_RCMM.shape[1], height, width
            return _backward(some_RCMM, rois_R5, scale, size, size, *sizes, samples, True)

        return torch.cat(_in_threads(part, grad_RCMM.chunk(threads, dim=1), threads), dim=1), *[None] * 5


def _backward(*args: Any) -> Tensor:
    return torch.ops.torchvision._roi_align_backward(*args)


def _in_threads(part: Callable[[Tensor], Tensor], pieces: tuple[Tensor, ...], threads: int) -> list[Tensor]:
    def without_gradients(piece: Tensor) -> Tensor:
        with torch.inference_mode(inference):  # which every thread has for itself
            return part(piece)

    inference = torch.is_inference_mode_enabled()
    return list(_pool(threads).map(without_gradients, pieces))


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that compute alone: with a team of its own for each, as PyTorch has it, there would be their square."""
    pool = ThreadPoolExecutor(threads, "roi_align", initializer=_compute_alone)
    together = Barrier(threads)
    for started in [pool.submit(together.wait) for _ in range(threads)]:
        started.result()
    torch.set_num_threads(threads)  # what was said last also holds for threads that are still to come
    return pool


def _compute_alone() -> None:
    torch.get_num_threads()  # the first call in a thread sets what was said last in any
    torch.set_num_threads(1)
