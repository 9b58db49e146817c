"""Batches whose content is a function of the step: nothing about the position is ever saved.

Every random draw is keyed by its place (seed, epoch, index), so the same step gives the same batch whichever process
loads it, with any number of workers, on the first try or after a restart.
"""

import os
import random
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from fourstage.data.sample import Batch, Dataset, Sample, collate

ORDER, SAMPLE, MIX = 1, 2, 3  # what a draw is for, so that no two purposes share a stream
TOGETHER = 16  # shards whose samples are mixed: at any time no others are read; of 1,000 images each, 16,000 images


def seed_everything(*key: int) -> None:
    """Set every global generator that a transform may draw from, by a key of whole numbers."""
    a, b = np.random.SeedSequence(key).generate_state(2, np.uint32).tolist()
    random.seed((a << 32) | b)
    np.random.seed(a)  # noqa: NPY002 - the generator that timm's policies draw from
    # Not torch.manual_seed: for GPUs that are not in use yet it notes the call with its traceback, a millisecond each.
    torch.default_generator.manual_seed((a << 31) ^ b)


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, length: int, shard_sizes: tuple[int, ...] = ()) -> torch.Tensor:
    """The order of a data set in one epoch: (length,) int64, every index once.

    Args:
        shard_sizes: samples in each shard, in the order of the data set. The shards are shuffled, and the samples of
            `TOGETHER` neighbouring ones among each other, so that an epoch passes over the shards once.
    """
    key = np.random.SeedSequence((ORDER, seed, epoch)).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(key) >> 1)
    if not shard_sizes:
        return torch.randperm(length, generator=generator)
    assert sum(shard_sizes) == length, "shards hold all samples"
    shards = torch.arange(length).split(list(shard_sizes))
    order = torch.randperm(len(shards), generator=generator).tolist()
    parts: list[torch.Tensor] = []
    for start in range(0, len(order), TOGETHER):
        group = torch.cat([shards[i] for i in order[start : start + TOGETHER]])
        parts.append(group[torch.randperm(len(group), generator=generator)])
    return torch.cat(parts)


@dataclass(frozen=True)
class TrainPlan:
    """Which samples make up each part of each step, for one process among several.

    An epoch has `length // batch_size` steps; what is left over is seen in another epoch. The images of a step are the
    same at any number of processes and accumulated parts that `batch_size` divides into. Neighbours in the order go to
    different processes.

    Args:
        batch_size: images per step, of all processes and parts together.
        repeats: so often each image comes in a row; an epoch of the same length then shows a part of the images only,
            another one each time. Source: repeated augmentation, https://arxiv.org/abs/1902.05509, as DeiT has it.
        shard_sizes: see `epoch_order`; empty where any order reads equally fast.
    """

    length: int
    batch_size: int
    seed: int = 0
    accumulation: int = 1
    rank: int = 0
    ranks: int = 1
    repeats: int = 1
    shard_sizes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.batch_size % (self.accumulation * self.ranks):
            raise ValueError(
                f"batch_size {self.batch_size} does not split evenly over {self.ranks} processes with "
                f"accumulation={self.accumulation}; choose a multiple of {self.accumulation * self.ranks}"
            )
        if self.length < self.batch_size:
            raise ValueError(
                f"the training data has {self.length} images, fewer than one batch of {self.batch_size}; "
                f"{self._advice()}"
            )

    def _advice(self) -> str:
        unit = 2 * self.accumulation * self.ranks  # mixing needs pairs
        if self.length < unit:
            return "give it more images"
        return f"add batch_size={max(unit, self.length // 4 // unit * unit)} to the command"

    @property
    def steps_per_epoch(self) -> int:
        return self.length // self.batch_size

    @property
    def part_size(self) -> int:
        """Images that one process works through at a time."""
        return self.batch_size // (self.accumulation * self.ranks)

    def part(self, step: int, part: int) -> "Request":
        """What this process loads for one part of a step."""
        epoch, place = divmod(step, self.steps_per_epoch)
        size = self.part_size
        start = place * self.batch_size + part * size * self.ranks + self.rank
        places = range(start, start + size * self.ranks, self.ranks)
        whole = epoch_order(self.seed, epoch, self.length, self.shard_sizes)
        order = whole[[place // self.repeats for place in places]]
        copies = tuple(place % self.repeats for place in places) if self.repeats > 1 else ()
        return Request((self.seed, epoch), tuple(order.tolist()), (self.seed, step, part, self.rank), copies)


@dataclass(frozen=True)
class Request:
    """One batch to load: indices, and the keys of its random draws (None: nothing is random).

    `copies` says of each index which of several copies in a row it is; empty where there is one of each.
    """

    sample_key: tuple[int, ...] | None
    indices: tuple[int, ...]
    mix_key: tuple[int, ...] | None = None
    copies: tuple[int, ...] = ()


class _Fetch(TorchDataset["Batch | ValueError"]):
    """Turns requests into batches, in whichever process asks."""

    def __init__(
        self, dataset: Dataset, transform: Callable[[Sample], Sample], mix: Callable[[Batch], Batch] | None
    ) -> None:
        self.dataset, self.transform, self.mix = dataset, transform, mix

    def __getitem__(self, request: Request) -> Batch | ValueError:
        """What is wrong with the data is returned, not raised: an exception does not pass whole out of a worker."""
        try:
            copies = request.copies or (0,) * len(request.indices)
            pairs = zip(request.indices, copies, strict=True)
            batch = collate([self._one(request.sample_key, index, copy) for index, copy in pairs])
        except ValueError as error:
            return error
        if self.mix and request.mix_key is not None:
            seed_everything(MIX, *request.mix_key)
            batch = self.mix(batch)
        return batch

    def _one(self, key: tuple[int, ...] | None, index: int, copy: int) -> Sample:
        sample = self.dataset.sample(index)
        if key is not None:
            seed_everything(SAMPLE, *key, index, *([copy] if copy else []))
        return self.transform(sample)


def train_batches(
    dataset: Dataset,
    plan: TrainPlan,
    transform: Callable[[Sample], Sample],
    *,
    first_step: int,
    last_step: int,
    mix: Callable[[Batch], Batch] | None = None,
    workers: int = 0,
    pin_memory: bool = False,
) -> Generator[list[Batch]]:
    """The batches of steps `first_step` to `last_step` - 1: for each step a list, one batch per accumulated part."""
    order = (plan.part(step, part) for step in range(first_step, last_step) for part in range(plan.accumulation))
    loader = _loader(_Fetch(dataset, transform, mix), order, workers, pin_memory)
    parts: list[Batch] = []
    for batch in _whole(loader):
        parts.append(_good(batch))
        if len(parts) == plan.accumulation:
            yield parts
            parts = []


def evaluation_batches(
    dataset: Dataset,
    transform: Callable[[Sample], Sample],
    *,
    batch_size: int,
    rank: int = 0,
    ranks: int = 1,
    workers: int = 0,
    pin_memory: bool = False,
) -> Generator[Batch]:
    """This process's share of a data set, every sample in exactly one process."""
    mine = range(rank, len(dataset), ranks)
    order = [Request(None, tuple(mine[i : i + batch_size])) for i in range(0, len(mine), batch_size)]
    for batch in _whole(_loader(_Fetch(dataset, transform, None), iter(order), workers, pin_memory)):
        yield _good(batch)


def _whole(loader: Iterable[Batch | ValueError]) -> Generator[Batch | ValueError]:
    """What a loader gives; a worker that the system has killed is told in a sentence."""
    batches = iter(loader)
    if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
        # torch would raise in the middle of a step when a worker dies; without that it is found when data is asked for
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield from batches
    except (RuntimeError, ConnectionError, EOFError) as error:
        # a worker that dies while it hands over a batch breaks the connection before torch has missed it
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        raise ValueError(
            "a loader process was killed, most likely because memory ran out; the same command continues, perhaps with "
            "workers=0"
        ) from error


def _good(batch: Batch | ValueError) -> Batch:
    if isinstance(batch, ValueError):
        raise batch
    return batch


def _loader(fetch: _Fetch, order: Iterator[Request], workers: int, pin_memory: bool) -> DataLoader[Batch | ValueError]:
    workers = min(workers, _cores())
    return DataLoader(
        fetch,
        batch_size=None,
        sampler=_Once(order),
        collate_fn=_as_is,
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=_start_worker,
        prefetch_factor=4 if workers else None,
    )


def _cores() -> int:
    """Processors that this process may use; more loader workers than that only get in each other's way."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _as_is(batch: Any) -> Any:
    return batch


class _Once:
    """An iterator in the shape that torch's loader asks of a sampler."""

    def __init__(self, order: Iterator[Request]) -> None:
        self.order = order

    def __iter__(self) -> Iterator[Request]:
        return self.order


def _start_worker(worker: int) -> None:
    """Leave it to the main process to decide what Ctrl-C and SIGTERM mean; one thread a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(1)
