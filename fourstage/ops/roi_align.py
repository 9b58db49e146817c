"""RoIAlign. B images, R regions, C channels, H x W cells, M x M in a region.

The plain form is torchvision's, which computes with one thread on a CPU. Ours has the same kernels, by all threads:
forward, each takes some of the regions; backward, some of the channels. No sum is split, so that the numbers are the
same, bit for bit, with any number of threads. Where matrix products give the gradient of the map sooner, they do. They
also do on a GPU that must be deterministic, where torchvision has its own form compiled, with as many samples as the
map has cells.

torchvision's kernels are loaded when the operation is called: backbones need nothing but torch.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Barrier
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fourstage.ops import torchvision_kernels
from fourstage.ops.eager import may_run_fast, must_repeat_itself, runs_eagerly
from fourstage.ops.roi_align_gradient import by_products, is_quicker
from fourstage.ops.second_gradients import comes_in_a_batch

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
    is_own = may_run_fast(x_BCHW, rois_R5) or (must_repeat_itself(x_BCHW.device) and runs_eagerly())
    form = by_own_gradient if is_own else by_torchvision
    return form(x_BCHW, rois_R5, size, scale, samples)


def by_torchvision(x_BCHW: Tensor, rois_R5: Tensor, size: int, scale: float, samples: int) -> Tensor:
    """Compute the plain form."""
    return torchvision_kernels.roi_align(x_BCHW, rois_R5, size, scale, samples)


def by_own_gradient(x_BCHW: Tensor, rois_R5: Tensor, size: int, scale: float, samples: int) -> Tensor:
    """Compute the fast and deterministic form."""
    return _OwnGradient.apply(x_BCHW, rois_R5, size, scale, samples)


class _OwnGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BCHW: Tensor, rois_R5: Tensor, size: int, scale: float, samples: int) -> Tensor:
        ctx.save_for_backward(rois_R5)
        ctx.given = size, scale, samples, tuple(x_BCHW.shape)
        x_BCHW, rois_R5 = x_BCHW.detach().contiguous(), rois_R5.detach()

        def of_regions(some_R5: Tensor) -> Tensor:
            return by_torchvision(x_BCHW, some_R5, size, scale, samples)

        threads = _threads(rois_R5, x_BCHW.shape[1], size)
        return torch.cat(_in_threads(of_regions, rois_R5.chunk(threads), threads))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad_RCMM,), (rois_R5,) = grads, ctx.saved_tensors
        size, scale, samples, shape = ctx.given
        if must_repeat_itself(grad_RCMM.device) or (
            not comes_in_a_batch(grad_RCMM) and is_quicker(rois_R5, size, scale, samples, shape)
        ):
            with torch.autocast(grad_RCMM.device.type, enabled=False):  # keeps the precision, as the kernel does
                return by_products(grad_RCMM, rois_R5, scale, samples, shape), *[None] * 4
        return _by_kernel(grad_RCMM, rois_R5, scale, samples, shape), *[None] * 4


def _by_kernel(
    grad_RCMM: Tensor, rois_R5: Tensor, scale: float, samples: int, shape: tuple[int, int, int, int]
) -> Tensor:
    images, channels, height, width = shape
    size = grad_RCMM.shape[-1]

    def of_channels(some_RCMM: Tensor) -> Tensor:
        sizes = images, some_RCMM.shape[1], height, width
        return _backward(some_RCMM, rois_R5, scale, size, size, *sizes, samples, True)

    # of a batch, only the thread of the transform knows
    threads = 1 if comes_in_a_batch(grad_RCMM) else _threads(rois_R5, channels, size)
    return torch.cat(_in_threads(of_channels, grad_RCMM.chunk(threads, dim=1), threads), dim=1)


def _threads(rois_R5: Tensor, channels: int, size: int) -> int:
    """Return how many threads pay off for a kernel."""
    is_much = rois_R5.shape[0] * channels * size * size >= WORTH
    return torch.get_num_threads() if rois_R5.is_cpu and is_much else 1


def _backward(*args: Any) -> Tensor:
    return torch.ops.torchvision._roi_align_backward(*args)


def _in_threads(compute: Callable[[Tensor], Tensor], chunks: tuple[Tensor, ...], threads: int) -> list[Tensor]:
    def without_gradients(chunk: Tensor) -> Tensor:
        with torch.inference_mode(inference):  # each thread has its own mode
            return compute(chunk)

    if threads == 1:
        return [compute(chunk) for chunk in chunks]
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


# threads do not live on in a forked process, which would wait for them forever
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)


def _compute_alone() -> None:
    torch.get_num_threads()  # the first call in a thread takes over the number that was set last in any thread
    torch.set_num_threads(1)
