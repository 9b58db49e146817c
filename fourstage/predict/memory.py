"""The memory that a network needs for a large image, so that the image is refused before the memory is taken."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any
from weakref import WeakSet, finalize

import torch
from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode

from fourstage.resources import free_memory, size_text

LARGE = 2**23  # pixels; smaller images are not checked
PROBE = 1024  # pixels of a side of the image that memory is measured with; in smaller ones the regions take the most


def bytes_per_pixel(run: Callable[[], object]) -> float:
    """Return about how many bytes a network needs for each pixel of an image.

    Args:
        run: runs the network on one image of PROBE x PROBE pixels. The most bytes of all tensors that are alive at a
            time are counted; the weights, which exist before, are not.
    """
    with torch.no_grad(), _LiveBytes() as live:
        run()
    return live.most / PROBE**2


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make and that are still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: WeakSet[UntypedStorage] = WeakSet()

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        before = {id(one.untyped_storage()) for one in _tensors((args, kwargs or {}))}
        out = func(*args, **(kwargs or {}))
        for one in _tensors(out):
            memory = one.untyped_storage()
            if id(memory) not in before and memory not in self._known:  # not a view, and not in place
                self._known.add(memory)
                self.now += memory.nbytes()
                self.most = max(self.most, self.now)
                finalize(memory, self._free, memory.nbytes())
        return out

    def _free(self, count: int) -> None:
        self.now -= count


def check_memory(name: str, pixels: int, each: float, device: torch.device) -> None:
    """Raise ValueError where a network needs more memory than there is.

    Args:
        name: of the image.
        pixels: that the network reads at once.
        each: bytes for each pixel, see `bytes_per_pixel`.
    """
    free = _free_on_gpu(device) if device.type == "cuda" else free_memory()
    needed = pixels * each
    if free is not None and needed > free:
        raise ValueError(
            f"{name} has {pixels:,} pixels that this network reads at once, for which it needs about "
            f"{size_text(needed)} of memory, and {size_text(free)} are free; add tile=640 (predict: --tile 640), or "
            f"use a smaller image"
        )


def _free_on_gpu(device: torch.device) -> int:
    """Return the bytes that torch can still allocate, with those that it keeps from tensors that are gone."""
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)
