"""Landscape and portrait images apart: an order that is a function of the step, and the same for any processes."""

from collections import Counter
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourstage.data.loader import TrainPlan, epoch_order


@given(
    kinds=st.lists(st.integers(0, 2), min_size=1, max_size=80),
    together=st.integers(1, 5),
    seed=st.integers(0, 99),
    epoch=st.integers(0, 3),
)
@settings(max_examples=60, deadline=None)
def test_neighbours_are_of_one_kind_and_nothing_is_lost(kinds: list[int], together: int, seed: int, epoch: int) -> None:
    order = epoch_order(seed, epoch, len(kinds), (), bytes(kinds), together).tolist()
    assert sorted(order) == list(range(len(kinds)))
    whole = sum(count // together for count in Counter(kinds).values())
    groups = [order[i * together : (i + 1) * together] for i in range(whole)]
    assert all(len({kinds[i] for i in group}) == 1 for group in groups)
    plain = epoch_order(seed, epoch, len(kinds)).tolist()
    for kind in set(kinds):  # the order among images of one kind is the one without kinds
        of_kind = [i for i in chain.from_iterable(groups) if kinds[i] == kind]
        assert of_kind == [i for i in plain if kinds[i] == kind][: len(of_kind)]


KINDS = np.random.default_rng(0).integers(0, 2, 103).astype(np.uint8).tobytes()


@pytest.mark.parametrize(("ranks", "accumulation"), [(1, 1), (4, 1), (2, 2), (8, 1)])
def test_a_step_is_the_same_for_any_processes(ranks: int, accumulation: int) -> None:
    one = TrainPlan(103, 16, seed=3, groups=KINDS)
    for step in (0, 5, 6, 40):
        indices: list[int] = []
        for part in range(accumulation):
            for rank in range(ranks):
                plan = TrainPlan(103, 16, 3, accumulation, rank, ranks, groups=KINDS)
                mine = plan.request(step, part).indices
                assert len(mine) == 16 // ranks // accumulation
                pairs = [mine[i : i + 2] for i in range(0, len(mine), 2)]
                assert all(len({KINDS[i] for i in pair}) == 1 for pair in pairs)
                indices += mine
        assert indices == list(one.request(step, 0).indices)


def test_without_kinds_nothing_changes() -> None:
    assert TrainPlan(50, 8).request(3, 0) == TrainPlan(50, 8, groups=b"", group_size=4).request(3, 0)


def test_epochs_differ() -> None:
    first, second = (epoch_order(0, epoch, 103, (), KINDS, 2).tolist() for epoch in (0, 1))
    assert first != second
