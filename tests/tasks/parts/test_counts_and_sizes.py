"""Impossible values of a recipe or a caller are reported in one message, before anything is built."""

import numpy as np
import pytest

from fourstage.tasks.parts.settings import check_counts, check_sizes


@pytest.mark.parametrize("value", [0, -4, 2.5, 2.0, "80", True, [3]])
def test_these_count_nothing(value: object) -> None:
    with pytest.raises(ValueError, match="channels must be an integer of at least 1; got "):
        check_counts(channels=value)


def test_these_are_counts() -> None:
    check_counts(channels=1, regions=np.int64(7), num_outs=None)
    check_counts(0, convs=0)
    with pytest.raises(ValueError, match="convs must be an integer of at least 0; got -1"):
        check_counts(0, convs=-1)


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), "4", True, None])
def test_these_are_no_sizes(value: object) -> None:
    with pytest.raises(ValueError, match="finest_scale is a number above 0; got "):
        check_sizes(finest_scale=value)
    with pytest.raises(ValueError, match="scales is a list of numbers above 0, at least one; got "):
        check_sizes(scales=[8, value])


def test_these_are_sizes() -> None:
    check_sizes(finest_scale=56, base_scale=0.5, scales=[8, 2.5], ratios=(1,))
    with pytest.raises(ValueError, match=r"scales is a list .* got \[\]"):
        check_sizes(scales=[])
