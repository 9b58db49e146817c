"""The memory that a network needs at least for a large image, so that it is refused before the memory is taken."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fourstage.resources import free_memory, size_text

LARGE = 2**23  # pixels; smaller images are not checked
PROBE = 256  # pixels of a side of the image that memory is measured with


def bytes_per_pixel(network: nn.Module, run: Callable[[], object]) -> float:
    """Return the bytes that a network needs at least for each pixel of an image.

    Args:
        run: runs the network on one image of PROBE x PROBE pixels. The largest input and output of a layer, which exist
            at the same time, are what it needs at least.
    """
    largest = 0

    def measure(module: nn.Module, inputs: object, output: object) -> None:
        nonlocal largest
        tensors = {one.data_ptr(): one.numel() * one.element_size() for one in _tensors((inputs, output))}
        largest = max(largest, sum(tensors.values()))

    leaves = [module for module in network.modules() if not list(module.children())]
    handles = [module.register_forward_hook(measure) for module in leaves]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return largest / PROBE**2


def check_memory(name: str, pixels: int, each: float, device: torch.device) -> None:
    """Raise ValueError where a network needs more memory than there is.

    Args:
        name: of the image.
        pixels: that the network reads at once.
        each: bytes for each pixel, see `bytes_per_pixel`.
    """
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
    needed = pixels * each
    if free is not None and needed > free:
        raise ValueError(
            f"{name} has {pixels:,} pixels that this network reads at once, for which it needs at least "
            f"{size_text(needed)} of memory, and {size_text(free)} are free; add tile=640 (predict: --tile 640), or "
            f"use a smaller image"
        )


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)
