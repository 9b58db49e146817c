"""Label maps as pictures."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fourstage.report.label_maps import (
    LARGEST,
    LINE,
    MARGIN,
    ROWS,
    SIDE,
    colours_of,
    index_picture,
    overlay,
    overlay_with_legend,
    truth_and_prediction,
)

COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


def test_a_png_of_indices_keeps_every_label(tmp_path: Path) -> None:
    labels_HW = np.random.default_rng(0).integers(0, 256, (31, 57), dtype=np.uint8)
    index_picture(labels_HW, colours_of(256 - 1)).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.mode == "P"
        np.testing.assert_array_equal(np.asarray(picture), labels_HW)
        palette = picture.getpalette()
    assert palette is not None
    assert [tuple(palette[3 * i : 3 * i + 3]) for i in range(255)] == colours_of(255)


@pytest.mark.parametrize(("size", "side"), [((20, 40), SIDE), ((300, 600), 600), ((1500, 3000), LARGEST)])
def test_the_overlay_is_as_large_as_the_image_within_limits(size: tuple[int, int], side: int) -> None:
    image_HW3, labels_HW = np.zeros((*size, 3), np.uint8), np.zeros(size, np.uint8)
    labels_HW[:, size[1] // 2 :] = 2
    sheet = np.asarray(overlay_with_legend(image_HW3, labels_HW, ("a", "b", "c"), COLOURS, "title"))
    assert sheet.shape[1] == pytest.approx(2 * side + 340, abs=60)
    left, middle = 2 * MARGIN + side, MARGIN + LINE + side // 4
    assert tuple(sheet[middle, left + 5]) == (153, 0, 0)  # 0.6 of red over black
    assert tuple(sheet[middle, left + side - 5]) == (0, 0, 153)


def test_truth_and_prediction_are_beside_the_image() -> None:
    image_HW3 = np.full((64, 64, 3), 100, np.uint8)
    truth_HW, guess_HW = np.full((64, 64), 255, np.uint8), np.ones((64, 64), np.uint8)
    sheet = np.asarray(truth_and_prediction(image_HW3, truth_HW, guess_HW, COLOURS, side=64))
    assert tuple(sheet[30, 30]) == tuple(sheet[30, 64 + 8 + 30]) == (100, 100, 100)  # what is ignored has no colour
    assert tuple(sheet[30, 2 * (64 + 8) + 30]) == (40, 193, 40)
    assert overlay(image_HW3, guess_HW, COLOURS).dtype == np.uint8


def test_a_long_legend_says_what_it_leaves_out() -> None:
    labels_HW = np.arange(60, dtype=np.uint8).repeat(10).reshape(60, 10)
    names = [f"class {i}" for i in range(60)]
    image_HW3 = np.zeros((60, 10, 3), np.uint8)
    sheet = overlay_with_legend(image_HW3, labels_HW, names, colours_of(60), "title")
    short = overlay_with_legend(image_HW3, labels_HW % ROWS, names, colours_of(60), "title")
    assert sheet.height - short.height == LINE
    assert np.asarray(sheet)[-MARGIN - LINE :].min() < 128  # text stands there
