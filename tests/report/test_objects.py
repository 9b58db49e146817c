"""Names of objects are where they can be read."""

from collections.abc import Sequence

import numpy as np
import pytest

from fourstage.report.objects import MOST_DRAWN, draw_objects

NAMES = ("second", "first")  # the second one would vanish below the first
COLOURS = ((160, 64, 64), (64, 160, 64))  # of their outlines
IMAGE = np.zeros((100, 200, 3), np.uint8)


def filled(boxes: Sequence[Sequence[float]], side: int = 400) -> list[int]:
    """Pixels of each colour: outlines, and what is below the names."""
    drawn = np.asarray(draw_objects(IMAGE, {"boxes": boxes, "labels": [0, 1]}, NAMES, side))
    assert drawn.shape == (side // 2, side, 3)
    return [int((drawn == colour).all(axis=2).sum()) for colour in COLOURS]


@pytest.mark.parametrize("corner", [(60, 40), (0, 0), (190, 90)])
def test_names_of_boxes_with_one_corner_do_not_cover_each_other(corner: tuple[float, float]) -> None:
    x, y = corner
    box = [x, y, min(x + 40, 200), min(y + 30, 100)]
    for pixels in filled([box, box]):  # the second box itself lies below the first one
        assert pixels > 250


def test_names_stay_in_the_picture() -> None:
    for box in ([0, 0, 200, 100], [199, 0, 200, 100], [0, 99, 200, 100]):
        assert min(filled([box, box])) > 250


def test_a_crowd_is_named_so() -> None:
    objects = {"boxes": [[60, 40, 160, 80]], "labels": [0], "crowd": [True]}
    alone, crowd = (
        int((np.asarray(draw_objects(IMAGE, given, NAMES)) == COLOURS[0]).all(axis=2).sum())
        for given in ({**objects, "crowd": [False]}, objects)
    )
    assert crowd > alone + 300


def test_no_more_than_the_first_objects_are_drawn() -> None:
    few = {"boxes": [[2.0, 2.0, 20.0, 20.0]] * MOST_DRAWN, "labels": [0] * MOST_DRAWN}
    many = {"boxes": [*few["boxes"], [1.0, 5.0, 9.0, 30.0]], "labels": [*few["labels"], 1]}
    assert np.array_equal(np.asarray(draw_objects(IMAGE, many, NAMES)), np.asarray(draw_objects(IMAGE, few, NAMES)))
