"""Counts of pixels and what they come to, against MMSegmentation's figures and by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fourstage.data.sample import IGNORE
from fourstage.tasks.segmentation import miou

GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "golden" / "pipelines" / "seg_metric.json").read_text()
)
C = GOLDEN["num_classes"]


def maps(name: str) -> list[Tensor]:
    return [torch.tensor(rows, dtype=torch.uint8) for rows in GOLDEN[name]]


def golden_counts() -> list[dict[str, list[int]]]:
    return [miou.count_pairs(p, t, C) for p, t in zip(maps("pred"), maps("label"), strict=True)]


def test_the_areas_of_each_image_and_the_means() -> None:
    for counts, areas in zip(golden_counts(), GOLDEN["per_image_areas"]["values"], strict=True):
        matrix = miou.summed([counts], C)
        both, guess, truth = matrix.diagonal(), matrix.sum(axis=0), matrix.sum(axis=1)
        np.testing.assert_array_equal([both, guess + truth - both, guess, truth], areas)
    matrix = miou.summed(golden_counts(), C)
    for ours, name in ((miou.ious(matrix), "IoU"), (miou.accuracies(matrix), "Acc")):
        expected = np.array([np.nan if value is None else value for value in GOLDEN[name]])
        np.testing.assert_allclose(ours, expected, rtol=1e-6)
    means = miou.means(matrix)
    expected = {"miou": GOLDEN["mIoU_unrounded"], "macc": GOLDEN["mAcc_unrounded"], "aacc": GOLDEN["aAcc"]}
    assert means == pytest.approx({name: 100 * value for name, value in expected.items()}, rel=1e-6)
    rounded = {"aacc": "aAcc", "miou": "mIoU", "macc": "mAcc"}
    assert {theirs: round(means[ours], 2) for ours, theirs in rounded.items()} == GOLDEN["result_rounded_percent"]


@given(seed=st.integers(0, 999), height=st.integers(1, 20), width=st.integers(1, 20), classes=st.integers(2, 9))
@settings(max_examples=40, deadline=None)
def test_counts_hold_every_pixel_once(seed: int, height: int, width: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    guess, truth = (torch.from_numpy(rng.integers(0, classes, (height, width), dtype=np.uint8)) for _ in range(2))
    truth[torch.from_numpy(rng.random((height, width)) < 0.2)] = IGNORE
    counts = miou.count_pairs(guess, truth, classes)
    matrix = miou.summed([counts], classes)
    assert matrix.sum() == (truth != IGNORE).sum()
    for t in range(classes):
        for g in range(classes):
            assert matrix[t, g] == ((truth == t) & (guess == g)).sum()
    halves = [miou.count_pairs(g, t, classes) for g, t in zip(guess.chunk(2), truth.chunk(2), strict=True)]
    np.testing.assert_array_equal(miou.summed(halves, classes), matrix)
    assert json.loads(json.dumps(counts)) == counts


def test_large_maps_are_counted_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    guess, truth = torch.randint(0, 5, (2, 37, 41), dtype=torch.uint8)
    expected = miou.count_pairs(guess, truth, 5)
    monkeypatch.setattr(miou, "AT_ONCE", 100)
    assert miou.count_pairs(guess, truth, 5) == expected


def test_nothing_counted() -> None:
    nothing = miou.count_pairs(torch.zeros(4, 4), torch.full((4, 4), IGNORE), 3)
    assert nothing == {"pairs": [], "pixels": []}
    assert np.isnan(list(miou.means(miou.summed([nothing], 3)).values())).all()


def test_labels_beyond_the_classes_and_other_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="holds the label 3, and there are 3 classes, 0 to 2"):
        miou.count_pairs(torch.zeros(4, 4), torch.full((4, 4), 3), 3)
    with pytest.raises(ValueError, match=r"\(4, 5\) and the prediction \(4, 4\)"):
        miou.count_pairs(torch.zeros(4, 4), torch.zeros(4, 5), 3)


def test_the_most_confused_pairs() -> None:
    matrix = np.array([[9, 3, 0], [5, 9, 0], [0, 3, 9]])
    assert miou.most_confused(matrix, 2) == [[1, 0, 5], [0, 1, 3]]
    assert miou.most_confused(matrix, 9) == [[1, 0, 5], [0, 1, 3], [2, 1, 3]]


def square(top: int, side: int = 200) -> Tensor:
    labels = torch.zeros(side, side, dtype=torch.uint8)
    labels[top : top + 50, 60:120] = 1
    return labels


def test_boundaries() -> None:
    limit = miou.NEAR * float(np.hypot(200, 200))
    assert 2 < limit < 3
    truth = square(50)
    for shift, expected in ((0, 100.0), (2, 100.0), (60, 0.0)):
        counts = [miou.count_boundaries(square(50 + shift), truth)]
        assert miou.boundary_f1(counts, 3) == pytest.approx(expected)
        assert json.loads(json.dumps(counts)) == counts
    partly = miou.boundary_f1([miou.count_boundaries(square(54), truth)], 3)
    assert 40 < partly < 70  # the two upright sides agree but for their ends
    with_empty = miou.count_boundaries(torch.zeros_like(truth), truth)
    assert miou.boundary_f1([with_empty], 3) == 0
    assert np.isnan(miou.boundary_f1([miou.count_boundaries(truth, torch.zeros_like(truth))], 3))


def test_what_is_ignored_has_no_boundary() -> None:
    truth = square(50)
    truth[:, 100:] = IGNORE
    counts = miou.count_boundaries(square(50), truth)
    assert miou.boundary_f1([counts], 3) == pytest.approx(100)
    agree, guessed, found, true = counts["pixels"][4:]
    assert agree == guessed == found == true == 50 + 2 * 39
