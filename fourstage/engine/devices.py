"""Devices and processes. The only file that names `torch.distributed`."""

import ctypes
import os
import sys
import warnings
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's mallopt


@dataclass(frozen=True, slots=True)
class Ranks:
    """The processes that train together, as a task or a loader may know them."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a tensor over all processes, on each of them."""
        if self.size == 1:
            return value
        value = value.clone()
        dist.all_reduce(value)
        return value / self.size

    def gather(self, records: Mapping[str, T]) -> dict[str, T]:
        """The records of all processes, on each of them; a key that two processes hold counts once."""
        if self.size == 1:
            return dict(records)
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, dict(records))
        return {key: value for part in parts for key, value in part.items()}

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Give every process the first one's values, in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process. Goes over the CPU, so no GPU waits for it."""
        if self.size == 1:
            return flag
        shared = torch.tensor(int(flag))
        dist.all_reduce(shared, dist.ReduceOp.MAX)
        return bool(shared)

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            dist.barrier()


def join(device: str) -> tuple[Ranks, torch.device]:
    """Find this process's place among those that a launcher such as `torchrun` started, and its device.

    Raises:
        ValueError: a GPU is asked for where there is none, or fewer than processes.
    """
    size, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    ranks = Ranks(int(os.environ.get("RANK", "0")), size)
    chosen = choose_device(device, local)
    if chosen.type == "cpu":
        keep_memory()
    if size > 1 and not dist.is_initialized():
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
        backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(minutes=30))
    return ranks, chosen


def leave() -> None:
    """Undo `join`."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def choose_device(device: str, local_rank: int = 0) -> torch.device:
    """`auto`, `cpu` or `cuda` as a torch device; see `join`."""
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"there is no device {device!r}; choose auto, cpu or cuda")
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cpu" or (device == "auto" and not found):
        return torch.device("cpu")
    if not found:
        raise ValueError(
            "the device cuda was asked for, and torch sees no GPU here; choose device=cpu (predict: --device cpu), or "
            "see `fourstage doctor`"
        )
    if local_rank >= found:
        raise ValueError(
            f"process {local_rank + 1} of this machine has no GPU of its own, there are {found}; start {found}"
        )
    return torch.device("cuda", local_rank)


def keep_memory() -> None:
    """On Linux, let the C library keep memory that was freed, instead of asking the system for fresh pages each step.

    Fresh pages cost a tenth to a fifth of a training step on a CPU. Elsewhere, and with other allocators, it does
    nothing.
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(M_MMAP_MAX, 0)
        library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def wrap(task: nn.Module, ranks: Ranks, device: torch.device) -> nn.Module:
    """The task as the processes train it: gradients are averaged over them."""
    if ranks.size == 1:
        return task
    # A 1x1 kernel has many equal strides; torch warns that it sees two of them.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    devices = [device] if device.type == "cuda" else None
    return DistributedDataParallel(task, device_ids=devices, gradient_as_bucket_view=True, broadcast_buffers=False)


def unsynced(task: nn.Module) -> AbstractContextManager[None]:
    """A context in which backward leaves gradients local, for all but the last accumulated part."""
    return task.no_sync() if isinstance(task, DistributedDataParallel) else nullcontext()
