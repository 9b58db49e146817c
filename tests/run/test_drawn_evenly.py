"""The images that a run folder shows are drawn from the whole of the data, for any number of images."""

import pytest

from fourstage.run.report_samples import drawn_evenly, worst_and_others
from fourstage.run.tasks.classification import SHOWN, samples


@pytest.mark.parametrize("count", [1, 23, 24, 25, 47, 48, 1000])
def test_pictures_come_from_the_whole_of_the_data(count: int) -> None:
    ids = [f"{i:04}" for i in range(count)]
    shown = drawn_evenly(ids, 24)
    assert len({*shown}) == len(shown) == min(count, 24)
    steps = [int(b) - int(a) for a, b in zip([*shown], [*shown[1:], str(count)], strict=True)]
    assert max(steps) - min(steps) <= 1
    records = {id: {"top": [[1, 0.9]], "truth": 1} for id in reversed(ids)}
    assert samples(records) == drawn_evenly(ids, SHOWN)
    assert worst_and_others(ids[:1], ids, 12)[-1] == ids[0]


def test_of_no_images_none_is_drawn() -> None:
    assert drawn_evenly([], 24) == []
