"""RoIAlign. B images, R regions, C channels, H x W cells, M x M in a region.

The plain form is torchvision's, which computes with one thread on a CPU. The fast path uses all threads: forward, each
takes some of the regions; backward, some of the channels. No sum is split, so that the numbers are the same, bit for
bit, with any number of threads.

torchvision's kernels are loaded when the operation is called: backbones need nothing but torch.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Barrier
from typing import Any

import torch
from torch import Tensor

from fourstage.ops import torchvision_kernels
from fourstage.ops.eager import may_run_fast

WORTH = 1 << 17  # values of all regions, from which on threads pay off


def roi_align(x_BCHW: Tensor, rois_R5: Tensor, size: int, scale: float, samples: int) -> Tensor:
    """Return (R, C, M, M), aligned by half a cell.

    Args:
        x_BCHW: the feature map.
        rois_R5: index of the image and the corners of a box, pixels.
        size: M.
        scale: cells for each pixel.
        samples: points on each side in each cell of a region; 0: as many as it has cells of the map there.
    """
    values = rois_R5.shape[0] * x_BCHW.shape[1] * size * size
    if may_run_fast(x_BCHW, rois_R5) and torch.get_num_threads() > 1 and values >= WORTH:
        return by_threads(x_BCHW, rois_R5, size, scale, samples)
    return by_torchvision(x_BCHW, rois_R5, size, scale, samples)


def by_torchvision(x_BCHW: Tensor, rois_R5: Tensor, size: int, scale: float, samples: int) -> Tensor:
    """Compute the plain form."""
    return torchvision_kernels.roi_align(x_BCHW, rois_R5, size, scale, samples)


def by_threads(x_BCHW: Tensor, rois_R5: Tensor, size: int, scale: float, samples: int) -> Tensor:
    """Compute the fast form."""
    return _ByThreads.apply(x_BCHW, rois_R5, size, scale, samples, torch.get_num_threads())


class _ByThreads(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_BCHW: Tensor, rois_R5: Tensor, size: int, scale: float, samples: int, threads: int
    ) -> Tensor:
        ctx.save_for_backward(rois_R5)
        ctx.given = x_BCHW.shape, size, scale, samples, threads
        x_BCHW, rois_R5 = x_BCHW.detach().contiguous(), rois_R5.detach()

        def of_regions(some_R5: Tensor) -> Tensor:
            return by_torchvision(x_BCHW, some_R5, size, scale, samples)

        return torch.cat(_in_threads(of_regions, rois_R5.chunk(threads), threads))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (grad_RCMM,), (rois_R5,) = grads, ctx.saved_tensors
        (images, _, height, width), size, scale, samples, threads = ctx.given

        def of_channels(some_RCMM: Tensor) -> Tensor:
            sizes = images, some_RCMM.shape[1], height, width
            return _backward(some_RCMM, rois_R5, scale, size, size, *sizes, samples, True)

        return torch.cat(_in_threads(of_channels, grad_RCMM.chunk(threads, dim=1), threads), dim=1), *[None] * 5


def _backward(*args: Any) -> Tensor:
    return torch.ops.torchvision._roi_align_backward(*args)


def _in_threads(compute: Callable[[Tensor], Tensor], chunks: tuple[Tensor, ...], threads: int) -> list[Tensor]:
    def without_gradients(chunk: Tensor) -> Tensor:
        with torch.inference_mode(inference):  # each thread has its own mode
            return compute(chunk)

    inference = torch.is_inference_mode_enabled()
    return list(_pool(threads).map(without_gradients, chunks))


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Return threads that each compute with one thread: PyTorch would give each of them as many as there are."""
    pool = ThreadPoolExecutor(threads, "roi_align", initializer=_compute_alone)
    together = Barrier(threads)
    for started in [pool.submit(together.wait) for _ in range(threads)]:
        started.result()
    torch.set_num_threads(threads)  # threads that start later take the number that was set last
    return pool


def _compute_alone() -> None:
    torch.get_num_threads()  # the first call in a thread takes over the number that was set last in any thread
    torch.set_num_threads(1)
