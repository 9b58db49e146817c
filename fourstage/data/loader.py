"""Batches whose content is a function of the step, so that no position in the data is ever saved.

Every random draw is keyed by its place (seed, epoch, index), so the same step gives the same batch whichever process
loads it, with any number of workers, on the first try or after a restart.
"""

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, SupportsIndex

import numpy as np
import torch
from torch import Tensor

from fourstage.cores import available_cores
from fourstage.data.sample import Batch, Dataset, Sample, collate
from fourstage.data.workers import Answers, Place, in_worker
from fourstage.extras import MissingLibrary
from fourstage.user_files import import_again, imported_files

ORDER, SAMPLE, MIX = 1, 2, 3  # what a draw is for, so that no two purposes share a stream
MIXED_SHARDS = 16  # shards whose samples are shuffled among each other; no others are read at the time


def seed_everything(*key: int) -> None:
    """Seed every global generator that a transform may draw from by a key of integers."""
    a, b = np.random.SeedSequence(key).generate_state(2, np.uint32).tolist()
    random.seed((a << 32) | b)
    np.random.seed(a)  # noqa: NPY002 - the generator that timm's policies draw from
    # Not torch.manual_seed: for GPUs that are not in use yet it records the call with its traceback, in a millisecond.
    torch.default_generator.manual_seed((a << 31) ^ b)


def epoch_order(
    seed: int, epoch: int, length: int, shard_sizes: tuple[int, ...] = (), groups: bytes = b"", group_size: int = 2
) -> torch.Tensor:
    """Return the order of a data set in one epoch: (length,) int64, every index once.

    Args:
        shard_sizes: samples in each shard, in the order of the data set. The shards are shuffled, and the samples of
            `MIXED_SHARDS` neighbouring ones among each other, so that an epoch passes over the shards once.
        groups: the group of each sample as a byte; then `group_size` samples in a row are of one group, but for the
            last few.
    """
    return _epoch_order(seed, epoch, length, shard_sizes, groups, group_size).clone()


@lru_cache(maxsize=2)
def _epoch_order(
    seed: int, epoch: int, length: int, shard_sizes: tuple[int, ...] = (), groups: bytes = b"", group_size: int = 2
) -> torch.Tensor:
    """Return what `epoch_order` returns. Later calls get the same tensor, which nobody may change."""
    if groups:
        return _grouped(_epoch_order(seed, epoch, length, shard_sizes), groups, group_size)
    key = np.random.SeedSequence((ORDER, seed, epoch)).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(key) >> 1)
    if not shard_sizes:
        return torch.randperm(length, generator=generator)
    assert sum(shard_sizes) == length, "shards hold all samples"
    shards = torch.arange(length).split(list(shard_sizes))
    order = torch.randperm(len(shards), generator=generator).tolist()
    mixed: list[torch.Tensor] = []
    for start in range(0, len(order), MIXED_SHARDS):
        samples = torch.cat([shards[i] for i in order[start : start + MIXED_SHARDS]])
        mixed.append(samples[torch.randperm(len(samples), generator=generator)])
    return torch.cat(mixed)


def _grouped(order_N: Tensor, groups: bytes, group_size: int) -> Tensor:
    """Move each sample back to where `group_size` of its group have come; incomplete ones go to the end."""
    assert len(groups) == len(order_N), "every sample has a group"
    groups_N = torch.frombuffer(bytearray(groups), dtype=torch.uint8)[order_N]
    runs: list[Tensor] = []  # positions in the order, (runs of this group, group_size)
    rest: list[Tensor] = []
    for group in groups_N.unique():
        positions_n = (groups_N == group).nonzero()[:, 0]
        grouped = len(positions_n) // group_size * group_size
        runs.append(positions_n[:grouped].reshape(-1, group_size))
        rest.append(positions_n[grouped:])
    all_runs = torch.cat(runs)
    return order_N[torch.cat([all_runs[all_runs[:, -1].argsort()].flatten(), torch.cat(rest).sort().values])]


@dataclass(frozen=True)
class TrainPlan:
    """The samples of each micro-batch of each step, for one process among several.

    An epoch has `length // batch_size` steps; the remaining images come in another epoch. The images of a step are the
    same at any number of processes and of accumulated micro-batches that `batch_size` divides into. Neighbours in the
    order go to different processes.

    Args:
        batch_size: images per step, of all processes and micro-batches.
        repeats: how many times in a row each image comes; an epoch of the same length then shows only some of the
            images, other ones each time. Source: repeated augmentation as in DeiT, https://arxiv.org/abs/1902.05509
        shard_sizes: see `epoch_order`; empty where any order reads equally fast.
        groups, group_size: see `epoch_order`: landscape and portrait images apart, for less padding. Neighbours in the
            order then go to the same process.

    Raises:
        ValueError: batches do not split evenly, there are fewer images than one batch has, or a number is out of range.
    """

    length: int
    batch_size: int
    seed: int = 0
    accumulation: int = 1
    rank: int = 0
    ranks: int = 1
    repeats: int = 1
    shard_sizes: tuple[int, ...] = ()
    groups: bytes = b""
    group_size: int = 2

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulation", "ranks", "repeats", "group_size"):
            _check_number(name, getattr(self, name), 1)
        if not 0 <= self.rank < self.ranks:
            raise ValueError(f"rank is from 0 to {self.ranks - 1} among {self.ranks} processes; got {self.rank!r}")
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
    def micro_batch(self) -> int:
        """Images that one process works through at a time."""
        return self.batch_size // (self.accumulation * self.ranks)

    def request(self, step: int, number: int) -> "Request":
        """Return what this process loads for one of the micro-batches of a step."""
        epoch, place = divmod(step, self.steps_per_epoch)
        size = self.micro_batch
        start = place * self.batch_size + number * size * self.ranks
        places = range(start + self.rank, start + size * self.ranks, self.ranks)
        if self.groups:
            places = range(start + self.rank * size, start + (self.rank + 1) * size)
        order = _epoch_order(self.seed, epoch, self.length, self.shard_sizes, self.groups, self.group_size)
        indices = order[[place // self.repeats for place in places]]
        copies = tuple(place % self.repeats for place in places) if self.repeats > 1 else ()
        return Request((self.seed, epoch), tuple(indices.tolist()), (self.seed, step, number, self.rank), copies)


def _check_number(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} is a whole number from {least} on; got {value!r}")


@dataclass(frozen=True)
class Request:
    """One batch to load: indices, and the keys of its random draws (None: nothing is random).

    `copies` has, for each index, its number among the copies of this image in a row; empty without such copies.
    """

    sample_key: tuple[int, ...] | None
    indices: tuple[int, ...]
    mix_key: tuple[int, ...] | None = None
    copies: tuple[int, ...] = ()


class BatchTransform(ABC):
    """A transform that can write its image into the memory of a batch."""

    def __call__(self, sample: Sample) -> Sample:
        return self.into(sample, None)

    @abstractmethod
    def into(self, sample: Sample, slot_CHW: Tensor | None) -> Sample:
        """Transform a sample into `slot_CHW`, which has the size of the result; None: into memory of its own."""


class _Fetch:
    """Requests to batches, in the main process or in a loader process."""

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
        return (_fetch_after, (_UserFiles(files), vars(self))) if files else super().__reduce_ex__(protocol)

    def __call__(self, request: Request, place: Place = lambda index: None) -> Batch | ValueError:
        """Return the batch, or the error of broken data.

        Args:
            place: is called with the index of each sample before it is read.
        """
        try:
            copies = request.copies or (0,) * len(request.indices)
            batch = self._gather(request.sample_key, list(zip(request.indices, copies, strict=True)), place)
        except ValueError as error:
            return error
        except MissingLibrary as error:
            return ValueError(str(error))
        if self.mix and request.mix_key is not None:
            seed_everything(MIX, *request.mix_key)
            batch = self.mix(batch)
        return batch

    def _gather(self, key: tuple[int, ...] | None, asked: list[tuple[int, int]], place: Place) -> Batch:
        """Return a batch as `collate` does; images of the size of the first are written straight into the batch.

        Each image is then written once; in a loader process, to memory that the main process reads.
        """
        first, *rest = asked
        place(first[0])
        samples = [self._one(key, *first, None)]
        image_CHW = samples[0].image
        assert isinstance(image_CHW, Tensor), "transforms end with a tensor"
        if samples[0].objects is not None or samples[0].label_map_HW is not None:  # such images differ in size
            for one in rest:
                place(one[0])
                samples.append(self._one(key, *one, None))
            return collate(samples, self.divisor)
        images_BCHW = _batch_memory((len(asked), *image_CHW.shape), image_CHW.dtype)
        samples[0] = replace(samples[0], image=images_BCHW[0].copy_(image_CHW))
        for slot_CHW, one in zip(images_BCHW[1:], rest, strict=True):
            place(one[0])
            sample = self._one(key, *one, slot_CHW)
            assert isinstance(sample.image, Tensor), "transforms end with a tensor"
            if sample.image is not slot_CHW and sample.image.shape == slot_CHW.shape:
                sample = replace(sample, image=slot_CHW.copy_(sample.image))
            samples.append(sample)
        return _as_batch(samples, images_BCHW, self.divisor)

    def _one(self, key: tuple[int, ...] | None, index: int, copy: int, slot_CHW: Tensor | None) -> Sample:
        sample = self.dataset.sample(index)
        if key is not None:
            seed_everything(SAMPLE, *key, index, *([copy] if copy else []))
        if isinstance(self.transform, BatchTransform):
            return self.transform.into(sample, slot_CHW)
        return self.transform(sample)


class _UserFiles:
    """The user's files; they run where this is unpickled, which is before what comes after it."""

    def __init__(self, files: tuple[tuple[str, str], ...]) -> None:
        self.files = files

    def __reduce__(self) -> tuple[Any, ...]:
        return import_again, (self.files,)


def _fetch_after(imported: None, attributes: dict[str, Any]) -> _Fetch:
    return _Fetch(**attributes)


def _as_batch(samples: list[Sample], images_BCHW: Tensor, divisor: int) -> Batch:
    """Return what `collate` does, without a copy where all images are in the batch already and none needs padding."""
    height, width = images_BCHW.shape[-2:]
    same = all(isinstance(s.image, Tensor) and s.image.shape[-2:] == (height, width) for s in samples)
    same = same and height % divisor == 0 and width % divisor == 0
    if not same or any(sample.objects is not None or sample.label_map_HW is not None for sample in samples):
        return collate(samples, divisor)
    rest = collate([replace(sample, image=images_BCHW[0, :, :0, :0]) for sample in samples])  # all but the images
    return replace(rest, images_BCHW=images_BCHW, sizes=((height, width),) * len(samples))


def _batch_memory(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return an empty tensor; in a loader process, in memory that it shares with the main process."""
    memory = torch.empty(0, dtype=dtype)
    if in_worker():
        size = math.prod(shape) * memory.element_size()
        memory = memory.new(memory.untyped_storage()._new_shared(size, device="cpu"))  # as torch's own collate does
    return memory.resize_(shape)


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
    """Yield for each step from `first_step` to `last_step` - 1 a list with its accumulated micro-batches.

    Args:
        divisor: images are padded to multiples of it, see `collate`.
    """
    order = (plan.request(step, i) for step in range(first_step, last_step) for i in range(plan.accumulation))
    batches: list[Batch] = []
    with closing(_loaded(_Fetch(dataset, transform, mix, divisor), order, workers, pin_memory)) as loaded:
        for batch in loaded:
            batches.append(batch)
            if len(batches) == plan.accumulation:
                yield batches
                batches = []


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
    """Yield this process's share of a data set; every sample is in exactly one process.

    Raises:
        ValueError: a number is out of range, or data cannot be read.
    """
    _check_number("batch_size", batch_size, 1)
    mine = range(rank, len(dataset), ranks)
    order = [Request(None, tuple(mine[i : i + batch_size])) for i in range(0, len(mine), batch_size)]
    yield from _loaded(_Fetch(dataset, transform, None), iter(order), workers, pin_memory)


def _loaded(fetch: _Fetch, order: Iterator[Request], workers: int, pin_memory: bool) -> Generator[Batch]:
    """Yield the batch of each request; raise the errors of broken data, and `LoaderError` for a lost process."""
    _check_number("workers", workers, 0)
    workers = min(workers, available_cores())  # more slow each other down
    if not workers:
        for batch in map(fetch, order):
            yield _checked(_pin(batch) if pin_memory else batch)
        return
    with closing(Answers(fetch, order, workers, fetch.dataset.id)) as batches:
        yield from map(_checked, _pinned(batches) if pin_memory else batches)


def _checked(batch: Batch | ValueError) -> Batch:
    if isinstance(batch, ValueError):
        raise batch
    return batch


def _pin(batch: Batch | ValueError) -> Batch | ValueError:
    return batch.pin_memory() if isinstance(batch, Batch) else batch


def _pinned(batches: Answers[Request, Batch | ValueError]) -> Generator[Batch | ValueError]:
    """Yield batches in page-locked memory; one that is ready early is copied there while the one before is used."""
    with ThreadPoolExecutor(1, "pin_memory") as thread:
        ahead: Future[Batch | ValueError] | None = None
        for received in batches:
            batch = _pin(received)
            while True:
                ahead = thread.submit(_pin, next(batches)) if batches.ready() else None
                yield batch
                if ahead is None:
                    break
                batch = ahead.result()
