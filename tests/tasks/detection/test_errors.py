"""What is called wrong in an image's detections."""

from typing import Any

import pytest

from fourstage.tasks.detection.errors import Errors, find_errors

A, B, C = [0.0, 0, 10, 10], [20.0, 20, 40, 40], [50.0, 0, 70, 30]
FAR = [80.0, 80, 90, 90]


def record(found: list[tuple[list[float], int, float]], true: list[tuple[list[float], int, bool]]) -> dict[str, Any]:
    return {
        "boxes": [box for box, _, _ in found],
        "labels": [label for _, label, _ in found],
        "scores": [score for _, _, score in found],
        "truth": {
            "boxes": [box for box, _, _ in true],
            "labels": [label for _, label, _ in true],
            "crowd": [crowd for _, _, crowd in true],
        },
    }


def test_right_detections_are_no_mistakes() -> None:
    true = [(A, 0, False), (B, 1, False)]
    assert find_errors(record([(B, 1, 0.9), ([1.0, 0, 10, 10], 0, 0.5)], true)) == Errors((), (), 0)
    assert find_errors(record([], [])) == Errors((), (), 0)


def test_each_kind_of_mistake() -> None:
    """A is found twice, B taken for another class, C missed; the unsure one does not count."""
    found = [(A, 0, 0.9), (FAR, 2, 0.8), (A, 0, 0.7), (B, 2, 0.6), (C, 1, 0.2)]
    errors = find_errors(record(found, [(A, 0, False), (B, 1, False), (C, 1, False)]))
    assert errors.false == ((1, None), (2, None), (3, 1))
    assert errors.missed == (2,)
    assert errors.weight == pytest.approx(0.8 + 0.7 + 0.6 + 1)


def test_the_better_detection_has_the_object() -> None:
    """And a box that is too far off has none."""
    close, off = [0.0, 0, 10, 8], [0.0, 0, 10, 4.9]
    errors = find_errors(record([(close, 0, 0.9), (A, 0, 0.8), (off, 0, 0.7)], [(A, 0, False)]))
    assert errors == Errors(((1, None), (2, None)), (), errors.weight)
    assert errors.weight == pytest.approx(1.5)
    assert find_errors(record([(off, 0, 0.9)], [(A, 0, False)])).missed == (0,)


def test_crowds_are_not_missed_and_excuse_what_lies_in_them() -> None:
    crowd = (([0.0, 0, 100, 60]), 0, True)
    errors = find_errors(record([(A, 0, 0.9), (C, 1, 0.9), (FAR, 0, 0.4)], [crowd]))
    assert errors == Errors(((2, None),), (), errors.weight)
    assert errors.weight == pytest.approx(0.4)
