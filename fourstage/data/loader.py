"""Batches whose content is a function of the step: nothing about the position is ever saved.

Every random draw is keyed by its place (seed, epoch, index), so the same step gives the same batch whichever process
loads it, with any number of workers, on the first try or after a restart.
"""

import math
import os
import pickle
import random
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, SupportsIndex

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info
from torch.utils.data import Dataset as TorchDataset

from fourstage.data.sample import Batch, Dataset, Sample, collate
from fourstage.user_files import import_again, imported_files

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
def epoch_order(
    seed: int, epoch: int, length: int, shard_sizes: tuple[int, ...] = (), kinds: bytes = b"", together: int = 2
) -> torch.Tensor:
    """The order of a data set in one epoch: (length,) int64, every index once.

    Args:
        shard_sizes: samples in each shard, in the order of the data set. The shards are shuffled, and the samples of
            `TOGETHER` neighbouring ones among each other, so that an epoch passes over the shards once.
        kinds: a byte for each sample; then `together` samples in a row are of one kind, but for the last few.
    """
    if kinds:
        return _by_kind(epoch_order(seed, epoch, length, shard_sizes), kinds, together)
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


def _by_kind(order_N: Tensor, kinds: bytes, together: int) -> Tensor:
    """The order with each sample moved back to where `together` of its kind have come; incomplete ones at the end."""
    assert len(kinds) == len(order_N), "every sample has a kind"
    kinds_N = torch.frombuffer(bytearray(kinds), dtype=torch.uint8)[order_N]
    groups: list[Tensor] = []  # places in the order, (groups of this kind, together)
    rest: list[Tensor] = []
    for kind in kinds_N.unique():
        places_n = (kinds_N == kind).nonzero()[:, 0]
        whole = len(places_n) // together * together
        groups.append(places_n[:whole].reshape(-1, together))
        rest.append(places_n[whole:])
    all_groups = torch.cat(groups)
    return order_N[torch.cat([all_groups[all_groups[:, -1].argsort()].flatten(), torch.cat(rest).sort().values])]


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
        kinds, together: see `epoch_order`: landscape and portrait images apart, for less padding. Then neighbours in
            the order go to the same process.
    """

    length: int
    batch_size: int
    seed: int = 0
    accumulation: int = 1
    rank: int = 0
    ranks: int = 1
    repeats: int = 1
    shard_sizes: tuple[int, ...] = ()
    kinds: bytes = b""
    together: int = 2

    def __post_init__(self) -> None:
        if self.batch_size % (self.accumulation * self.ranks):
            raise ValueError(
                f"batch_size {self.batch_size} does not split evenly over {self.ranks} processes with "
                f"accumulation={self.accumulation}; choose a multiple of {self.accumulation * self.ranks}"
            )
        if self.length < self.batch_size:
            raise ValueError(
                f"the training data has {self.length} image{'s' * (self.length != 1)}, fewer than one batch of "
                f"{self.batch_size}; {self._advice()}"
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
        start = place * self.batch_size + part * size * self.ranks
        places = range(start + self.rank, start + size * self.ranks, self.ranks)
        if self.kinds:
            places = range(start + self.rank * size, start + (self.rank + 1) * size)
        whole = epoch_order(self.seed, epoch, self.length, self.shard_sizes, self.kinds, self.together)
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


class Placing(ABC):
    """A transform that can write its image to a place in a batch."""

    def __call__(self, sample: Sample) -> Sample:
        return self.into(sample, None)

    @abstractmethod
    def into(self, sample: Sample, place_CHW: Tensor | None) -> Sample:
        """Transform a sample; the image is `place_CHW` afterwards, which must be as large, unless that is None."""


class _Fetch(TorchDataset["Batch | ValueError"]):
    """Turns requests into batches, in whichever process asks."""

    def __init__(
        self,
        dataset: Dataset,
        transform: Callable[[Sample], Sample],
        mix: Callable[[Batch], Batch] | None,
        divisor: int = 1,
    ) -> None:
        self.dataset, self.transform, self.mix, self.divisor = dataset, transform, mix, divisor

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[Any, ...]:
        """A spawned process runs the user's files first: without them it would not find the classes of their data."""
        files = imported_files()
        return (_unpickled, (files, pickle.dumps(vars(self)))) if files else super().__reduce_ex__(protocol)

    def __getitem__(self, request: Request) -> Batch | ValueError:
        """What is wrong with the data is returned, not raised: an exception does not pass whole out of a worker."""
        try:
            copies = request.copies or (0,) * len(request.indices)
            batch = self._gather(request.sample_key, list(zip(request.indices, copies, strict=True)))
        except ValueError as error:
            return error
        if self.mix and request.mix_key is not None:
            seed_everything(MIX, *request.mix_key)
            batch = self.mix(batch)
        return batch

    def _gather(self, key: tuple[int, ...] | None, asked: list[tuple[int, int]]) -> Batch:
        """A batch as `collate` makes it; images that are as large as the first go to their places as they come.

        So each is written once, and in a loader's process to where the main process will read it.
        """
        first, *rest = asked
        samples = [self._one(key, *first, None)]
        image_CHW = samples[0].image
        assert isinstance(image_CHW, Tensor), "transforms end with a tensor"
        if samples[0].objects is not None or samples[0].label_map_HW is not None:  # of these, images differ in size
            return collate([*samples, *(self._one(key, *one, None) for one in rest)], self.divisor)
        room_BCHW = _room((len(asked), *image_CHW.shape), image_CHW.dtype)
        samples[0] = replace(samples[0], image=room_BCHW[0].copy_(image_CHW))
        for place_CHW, one in zip(room_BCHW[1:], rest, strict=True):
            sample = self._one(key, *one, place_CHW)
            assert isinstance(sample.image, Tensor), "transforms end with a tensor"
            if sample.image is not place_CHW and sample.image.shape == place_CHW.shape:
                sample = replace(sample, image=place_CHW.copy_(sample.image))
            samples.append(sample)
        return _as_batch(samples, room_BCHW, self.divisor)

    def _one(self, key: tuple[int, ...] | None, index: int, copy: int, place_CHW: Tensor | None) -> Sample:
        sample = self.dataset.sample(index)
        if key is not None:
            seed_everything(SAMPLE, *key, index, *([copy] if copy else []))
        if isinstance(self.transform, Placing):
            return self.transform.into(sample, place_CHW)
        return self.transform(sample)


def _unpickled(files: tuple[tuple[str, str], ...], content: bytes) -> _Fetch:
    import_again(files)
    return _Fetch(**pickle.loads(content))


def _as_batch(samples: list[Sample], room_BCHW: Tensor, divisor: int) -> Batch:
    """What `collate` makes of samples whose images lie in a batch already, where all do and none is to be padded."""
    height, width = room_BCHW.shape[-2:]
    same = all(isinstance(s.image, Tensor) and s.image.shape[-2:] == (height, width) for s in samples)
    same = same and height % divisor == 0 and width % divisor == 0
    if not same or any(sample.objects is not None or sample.label_map_HW is not None for sample in samples):
        return collate(samples, divisor)
    rest = collate([replace(sample, image=room_BCHW[0, :, :0, :0]) for sample in samples])  # all but the images
    return replace(rest, images_BCHW=room_BCHW, sizes=((height, width),) * len(samples))


def _room(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An empty tensor; in a loader's process in memory that the main process shares."""
    room = torch.empty(0, dtype=dtype)
    if get_worker_info() is not None:
        bytes_ = math.prod(shape) * room.element_size()
        room = room.new(room.untyped_storage()._new_shared(bytes_, device="cpu"))  # as torch's own collate does
    return room.resize_(shape)


def train_batches(
    dataset: Dataset,
    plan: TrainPlan,
    transform: Callable[[Sample], Sample],
    *,
    first_step: int,
    last_step: int,
    mix: Callable[[Batch], Batch] | None = None,
    divisor: int = 1,
    workers: int = 0,
    pin_memory: bool = False,
) -> Generator[list[Batch]]:
    """The batches of steps `first_step` to `last_step` - 1: for each step a list, one batch per accumulated part.

    Args:
        divisor: images are padded to multiples of it, see `collate`.
    """
    order = (plan.part(step, part) for step in range(first_step, last_step) for part in range(plan.accumulation))
    loader = _loader(_Fetch(dataset, transform, mix, divisor), order, workers, pin_memory)
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
    divisor: int = 1,
    workers: int = 0,
    pin_memory: bool = False,
) -> Generator[Batch]:
    """This process's share of a data set, every sample in exactly one process; `divisor` as in `train_batches`."""
    mine = range(rank, len(dataset), ranks)
    order = [Request(None, tuple(mine[i : i + batch_size])) for i in range(0, len(mine), batch_size)]
    for batch in _whole(_loader(_Fetch(dataset, transform, None, divisor), iter(order), workers, pin_memory)):
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
