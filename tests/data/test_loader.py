"""Batches are a function of the step."""

import dataclasses
import pickle
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fourstage.data.loader import (
    MIXED_SHARDS,
    BatchTransform,
    Request,
    TrainPlan,
    _Fetch,
    epoch_order,
    evaluation_batches,
    seed_everything,
    train_batches,
)
from fourstage.data.sample import BadImage, Batch, Objects, Sample, collate
from fourstage.data.transforms.mixing import Mixing


class Numbers:
    """A data set of tiny images that say who they are; number `broken` cannot be read."""

    classes = ("even", "odd")
    truths = ("label",)

    def __init__(self, length: int, broken: int | None = None) -> None:
        self.length, self.broken = length, broken

    def __len__(self) -> int:
        return self.length

    def id(self, index: int) -> str:
        return str(index)

    def sample(self, index: int) -> Sample:
        if index == self.broken:
            raise BadImage(str(index), "made to fail")
        return Sample(str(index), np.full((4, 4, 3), index, np.uint8), (4, 4), label=index % 2)


def noisy(sample: Sample) -> Sample:
    """A transform that draws from all three global generators."""
    draw = random.random() + np.random.rand() + torch.rand(()).item()  # noqa: NPY002
    return dataclasses.replace(sample, image=torch.full((3, 4, 4), float(sample.image[0, 0, 0]) + draw))


def collect(
    first: int, last: int, workers: int = 0, rank: int = 0, ranks: int = 1, accumulation: int = 1
) -> list[Batch]:
    plan = TrainPlan(50, 8, seed=3, accumulation=accumulation, rank=rank, ranks=ranks)
    mix = Mixing(2, mixup=0.8, cutmix=1.0, prob=1.0, switch_prob=0.5, mode="batch", smoothing=0.1)
    found = train_batches(Numbers(50), plan, noisy, first_step=first, last_step=last, mix=mix, workers=workers)
    return [batch for parts in found for batch in parts]


def assert_equal(a: list[Batch], b: list[Batch]) -> None:
    assert [x.ids for x in a] == [x.ids for x in b]
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x.images_BCHW, y.images_BCHW)
        assert x.targets_BC is not None
        assert y.targets_BC is not None
        assert torch.equal(x.targets_BC, y.targets_BC)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers: int) -> None:
    assert_equal(collect(0, 14), collect(0, 14, workers))


@pytest.mark.parametrize("start", [1, 5, 6, 7, 13])
def test_any_step_can_be_the_first(start: int) -> None:
    assert_equal(collect(0, 14)[start:], collect(start, 14))


def test_draws_differ_between_epochs_and_samples() -> None:
    batches = collect(0, 12)
    assert len({batch.ids for batch in batches}) == 12
    values = torch.cat([batch.images_BCHW.flatten(1)[:, 0] % 1 for batch in batches])
    assert len(values.unique()) > 80


@given(st.integers(8, 200), st.integers(1, 8), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_an_epoch_shows_no_sample_twice(length: int, batch_size: int, epoch: int) -> None:
    plan = TrainPlan(length, batch_size, seed=1)
    steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
    seen = [index for step in steps for index in plan.request(step, 0).indices]
    assert len(seen) == len(set(seen)) == plan.steps_per_epoch * batch_size
    assert sorted(epoch_order(1, epoch, length).tolist()) == list(range(length))


@given(st.integers(0, 30), st.sampled_from([(1, 1), (2, 1), (1, 2), (2, 2), (4, 2)]))
@settings(max_examples=40, deadline=None)
def test_processes_and_parts_share_the_images_of_one_process(step: int, shape: tuple[int, int]) -> None:
    ranks, accumulation = shape
    alone = TrainPlan(100, 16, seed=2).request(step, 0).indices
    for part in range(accumulation):
        size = 16 // accumulation
        here = alone[part * size : (part + 1) * size]
        for rank in range(ranks):
            plan = TrainPlan(100, 16, seed=2, accumulation=accumulation, rank=rank, ranks=ranks)
            assert plan.request(step, part).indices == here[rank::ranks]


@given(st.integers(0, 40), st.sampled_from([1, 2, 4]))
@settings(max_examples=40, deadline=None)
def test_repeated_images_follow_each_other_in_different_processes(step: int, ranks: int) -> None:
    """DeiT's sampler: an epoch of the same length shows a third of the images three times, spread over processes."""
    plans = [TrainPlan(100, 8, seed=2, rank=rank, ranks=ranks, repeats=3) for rank in range(ranks)]
    asked = [plan.request(step, 0) for plan in plans]
    found = [
        (index, copy)
        for row in zip(*(zip(r.indices, r.copies, strict=True) for r in asked), strict=True)
        for index, copy in row
    ]
    epoch, place = divmod(step, 12)
    places = range(place * 8, place * 8 + 8)
    order = epoch_order(2, epoch, 100).tolist()
    assert found == [(order[place // 3], place % 3) for place in places]


sizes = st.lists(st.integers(0, 9), min_size=1, max_size=50).filter(lambda sizes: sum(sizes) > 0)


@given(sizes, st.integers(0, 5), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_an_epoch_passes_over_shards_once(sizes: list[int], seed: int, epoch: int) -> None:
    """Every sample once; and once a shard of a later group has been read, none of an earlier one is."""
    order = epoch_order(seed, epoch, sum(sizes), tuple(sizes)).tolist()
    assert sorted(order) == list(range(sum(sizes)))
    shard = np.repeat(np.arange(len(sizes)), sizes)[order]
    first = {number: int(np.flatnonzero(shard == number)[0]) for number in set(shard.tolist())}
    last = {number: int(np.flatnonzero(shard == number)[-1]) for number in first}
    for place in range(len(order)):
        assert sum(first[number] <= place <= last[number] for number in first) <= MIXED_SHARDS


@given(sizes, st.sampled_from([(1, 1), (2, 1), (1, 2), (2, 2), (4, 1)]), st.sampled_from([1, 3]), st.integers(0, 40))
@settings(max_examples=60, deadline=None)
def test_shards_are_split_over_processes_without_overlap_or_loss(
    sizes: list[int], shape: tuple[int, int], repeats: int, step: int
) -> None:
    ranks, accumulation = shape
    length, batch_size = sum(sizes) + 8, 4
    shards = (*sizes, 8)

    def indices(rank: int, ranks: int, accumulation: int, step: int) -> list[list[int]]:
        plan = TrainPlan(length, batch_size, 2, accumulation, rank, ranks, repeats, shards)
        return [list(plan.request(step, part).indices) for part in range(accumulation)]

    [alone] = indices(0, 1, 1, step)
    size = batch_size // accumulation
    for part in range(accumulation):
        for rank in range(ranks):
            assert indices(rank, ranks, accumulation, step)[part] == alone[part * size : (part + 1) * size][rank::ranks]
    if repeats == 1:
        steps = length // batch_size
        epoch = [i for s in range(steps) for part in indices(0, 1, 1, step // steps * steps + s) for i in part]
        assert len(set(epoch)) == len(epoch) == steps * batch_size


def test_epochs_of_shards_differ() -> None:
    orders = [epoch_order(0, epoch, 100, (10,) * 10).tolist() for epoch in range(3)]
    assert orders[0] != orders[1] != orders[2]
    assert epoch_order(1, 0, 100, (10,) * 10).tolist() != orders[0]


@pytest.mark.parametrize("start", [1, 5, 6, 13])
def test_any_step_of_shards_can_be_the_first(start: int) -> None:
    plan = TrainPlan(50, 8, seed=3, shard_sizes=(20, 5, 25))
    whole, later = (
        [batch for parts in train_batches(Numbers(50), plan, noisy, first_step=first, last_step=14) for batch in parts]
        for first in (0, start)
    )
    assert [batch.ids for batch in whole[start:]] == [batch.ids for batch in later]
    assert all(torch.equal(a.images_BCHW, b.images_BCHW) for a, b in zip(whole[start:], later, strict=True))


def test_copies_of_an_image_are_augmented_each_in_its_own_way() -> None:
    plan = TrainPlan(50, 6, seed=3, repeats=3)
    [[batch]] = train_batches(Numbers(50), plan, noisy, first_step=0, last_step=1)
    assert batch.ids[0] == batch.ids[1] == batch.ids[2] != batch.ids[3]
    assert len({float(image.mean()) for image in batch.images_BCHW}) == 6


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_evaluation_reads_each_sample_once(length: int, batch_size: int, ranks: int) -> None:
    ids = [
        id
        for rank in range(ranks)
        for batch in evaluation_batches(Numbers(length), noisy, batch_size=batch_size, rank=rank, ranks=ranks)
        for id in batch.ids
    ]
    assert sorted(map(int, ids)) == list(range(length))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_is_named_from_any_process(workers: int) -> None:
    with pytest.raises(BadImage, match="7 cannot be read as an image: made to fail"):
        list(evaluation_batches(Numbers(20, broken=7), noisy, batch_size=4, workers=workers))


class Growing(BatchTransform):
    """Images whose size depends on their number, written to their place where they fit."""

    def __init__(self, grows: bool) -> None:
        self.grows = grows

    def into(self, sample: Sample, slot_CHW: torch.Tensor | None) -> Sample:
        side = 4 + int(sample.id) if self.grows else 4
        image_CHW = torch.full((3, side, side), float(sample.id))
        if slot_CHW is not None and slot_CHW.shape == image_CHW.shape:
            image_CHW = slot_CHW.copy_(image_CHW)
        return dataclasses.replace(sample, image=image_CHW)


@dataclasses.dataclass(frozen=True)
class Marked:
    """Adds truths that have the size of the image, after a transform that does not write to places."""

    transform: Growing
    objects: bool = False
    label_map: bool = False

    def __call__(self, sample: Sample) -> Sample:
        sample = self.transform(sample)
        side = sample.image.shape[-1]
        masks = torch.ones(1, side, side) > 0
        objects = Objects(torch.ones(1, 4), torch.ones(1).long(), torch.zeros(1).bool(), masks)
        label_map_HW = torch.ones(side, side, dtype=torch.uint8)
        return dataclasses.replace(
            sample,
            objects=objects if self.objects else None,
            label_map_HW=label_map_HW if self.label_map else None,
        )


@pytest.mark.parametrize("grows", [False, True])
@pytest.mark.parametrize("way", ["placed", "copied", "with objects", "with a label map"])
def test_a_batch_is_what_collate_makes_of_its_samples(grows: bool, way: str) -> None:
    plain = Marked(Growing(grows), objects=way == "with objects", label_map=way == "with a label map")
    transform = Growing(grows) if way == "placed" else plain
    found = _Fetch(Numbers(8), transform, None)(Request(None, (2, 0, 5)))
    wanted = collate([transform(Numbers(8).sample(i)) for i in (2, 0, 5)])
    assert isinstance(found, Batch)
    assert torch.equal(found.images_BCHW, wanted.images_BCHW)
    assert (found.ids, found.sizes, found.original_sizes) == (wanted.ids, wanted.sizes, wanted.original_sizes)
    assert found.labels_B is not None
    assert found.labels_B.tolist() == [0, 0, 1]
    for ours, theirs in zip(found.objects or (), wanted.objects or (), strict=True):
        assert ours.masks_NHW is not None
        assert theirs.masks_NHW is not None
        assert torch.equal(ours.masks_NHW, theirs.masks_NHW)
    assert (found.label_maps_BHW is None) == (wanted.label_maps_BHW is None) == (way != "with a label map")
    if found.label_maps_BHW is not None and wanted.label_maps_BHW is not None:
        assert torch.equal(found.label_maps_BHW, wanted.label_maps_BHW)


def test_a_loader_process_makes_batches_where_the_main_process_reads_them() -> None:
    for workers in (0, 1):
        [batch, *_] = evaluation_batches(Numbers(8), noisy, batch_size=4, workers=workers)
        assert batch.images_BCHW.is_shared() == (workers > 0)


def test_work_for_another_process_can_be_pickled() -> None:
    """Where processes are spawned, not forked, everything that a worker needs travels."""
    mix = Mixing(2, mixup=0.8, cutmix=1.0, prob=1.0, switch_prob=0.5, mode="batch", smoothing=0.1)
    fetch = pickle.loads(pickle.dumps(_Fetch(Numbers(8), noisy, mix)))
    assert fetch(Request((0, 0), (1, 2), (0, 0, 0, 0))).ids == ("1", "2")


def test_another_seed_is_another_order() -> None:
    assert not torch.equal(epoch_order(0, 0, 50), epoch_order(1, 0, 50))
    assert not torch.equal(epoch_order(0, 0, 50), epoch_order(0, 1, 50))


def test_impossible_batches_get_a_sentence() -> None:
    with pytest.raises(ValueError, match="fewer than one batch of 64; add batch_size=4"):
        TrainPlan(17, 64)
    with pytest.raises(ValueError, match="choose a multiple of 6"):
        TrainPlan(100, 16, accumulation=2, ranks=3)


def test_a_key_means_the_same_draws() -> None:
    def draws() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), torch.rand(()).item()  # noqa: NPY002

    seed_everything(1, 2, 3)
    first = draws()
    seed_everything(1, 2, 4)
    assert draws() != first
    seed_everything(1, 2, 3)
    assert draws() == first
