"""Values that no data set and no loader can have are refused, not read as others, and results belong to the caller."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fourstage.data.formats import open_dataset
from fourstage.data.loader import TrainPlan, epoch_order, evaluation_batches
from fourstage.data.opening import open_usable

Picture = Callable[..., Path]


@pytest.mark.parametrize("split", ["test", "validation", "Train", "", None, 0])
@pytest.mark.parametrize("data", ["digits", "digit_scenes", "folder"])
def test_no_other_split_is_read_as_one_of_the_two(data: str, split: Any, tmp_path: Path, picture: Picture) -> None:
    for name in ("a", "b"):
        picture(f"{name}/1.png")
    for opened in (open_dataset, open_usable):
        with pytest.raises(ValueError, match="the split of a data set is one of train, val; got"):
            opened(tmp_path if data == "folder" else data, split)


def test_no_other_truth_is_left_out(tmp_path: Path, picture: Picture) -> None:
    for name in ("a", "b"):
        picture(f"{name}/1.png")
    truth: Any = "boxes"
    with pytest.raises(ValueError, match="truth is one of label, objects, label_map_HW; got 'boxes'"):
        open_dataset(tmp_path, "train", truth=truth)


def test_an_order_that_is_changed_stays_as_it_was_for_others() -> None:
    for groups in (b"", bytes([0, 1] * 5)):
        first = epoch_order(3, 1, 10, (), groups)
        kept = first.clone()
        first[:] = 0
        assert torch.equal(epoch_order(3, 1, 10, (), groups), kept)
        assert set(TrainPlan(10, 10, seed=3, groups=groups).request(1, 0).indices) == set(range(10))


@pytest.mark.parametrize(
    "wrong",
    [
        *(
            {name: value}
            for name in ("batch_size", "accumulation", "ranks", "repeats", "group_size")
            for value in (0, -2)
        ),
        *({"rank": rank} for rank in (-1, 1)),
    ],
)
def test_numbers_of_a_plan_are_checked(wrong: dict[str, int]) -> None:
    numbers: Any = {"length": 10, "batch_size": 2, **wrong}
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TrainPlan(**numbers)


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"batch_size": -1}, {"workers": -1}])
def test_numbers_of_an_evaluation_are_checked(wrong: dict[str, int]) -> None:
    numbers: Any = {"batch_size": 2, **wrong}
    with pytest.raises(ValueError, match=next(iter(wrong))):
        list(evaluation_batches(open_dataset("digits", "val"), lambda sample: sample, **numbers))
