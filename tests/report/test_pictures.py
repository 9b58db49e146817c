"""Pictures keep their size whatever they are given, and show what they say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFont

from fourstage.report.pictures import ACCENT, BARS, CELL, MARGIN, SIDE, contact_sheet, draw_prediction, shorten

GUESSES = [("cat", 0.75), ("dog", 0.2), ("tree", 0.05)]
SIZE = (3 * MARGIN + SIDE + BARS, 2 * MARGIN + SIDE)


def picture(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), (200, 30, 30), np.uint8)


@pytest.mark.parametrize("shape", [(8, 8), (1, 1), (3000, 4000), (1, 4000), (4000, 3), (224, 224), (48, 20)])
def test_a_prediction_has_one_size_and_shows_the_image_in_its_proportions(shape: tuple[int, int]) -> None:
    drawn = draw_prediction(picture(*shape), GUESSES, "a.png")
    assert drawn.size == SIZE
    red_HW = (np.asarray(drawn).astype(int) == (200, 30, 30)).all(2)
    rows, columns = np.flatnonzero(red_HW.any(1)), np.flatnonzero(red_HW.any(0))
    scale = SIDE / max(shape)
    assert len(rows) == max(1, round(shape[0] * scale))
    assert len(columns) == max(1, round(shape[1] * scale))
    assert rows.min() >= MARGIN
    assert columns.max() < MARGIN + SIDE


@pytest.mark.parametrize("share", [1.0, 0.5, 0.1])
def test_the_first_bar_is_as_long_as_its_probability(share: float) -> None:
    pixels = np.asarray(draw_prediction(picture(8, 8), [("cat", share)], "a.png"))
    columns = np.flatnonzero((pixels == ACCENT).all(2).any(0))
    assert columns.max() - columns.min() + 1 == pytest.approx(BARS * share, abs=1.5)


def test_a_tiny_image_keeps_sharp_pixels() -> None:
    checker = np.zeros((8, 8, 3), np.uint8)
    checker[::2, ::2] = 255
    drawn = np.asarray(draw_prediction(checker, GUESSES, ""))[MARGIN : MARGIN + SIDE, MARGIN : MARGIN + SIDE]
    assert set(np.unique(drawn)) == {0, 255}


@given(name=st.text(max_size=80), title=st.text(max_size=200), share=st.floats(0, 1), count=st.integers(0, 7))
@settings(max_examples=25, deadline=None)
def test_any_name_and_any_number_of_guesses_can_be_drawn(name: str, title: str, share: float, count: int) -> None:
    assert draw_prediction(picture(8, 8), [(name, share)] * count, title).size == SIZE


@given(text=st.text(st.characters(codec="ascii"), max_size=120), width=st.integers(30, 400))
@settings(max_examples=60, deadline=None)
def test_shortened_text_fits_and_is_a_beginning(text: str, width: int) -> None:
    font = ImageFont.load_default(size=18)
    short, line = shorten(text, font, width), " ".join(text.split())
    assert font.getlength(short) <= width
    assert short == line or line.startswith(short.removesuffix("…"))


def test_short_text_is_left_alone() -> None:
    assert shorten("great  white\nshark", ImageFont.load_default(size=18), 400) == "great white shark"


@pytest.mark.parametrize(("count", "columns", "rows"), [(1, 4, 1), (5, 3, 2), (6, 3, 2), (3, 1, 3)])
def test_a_sheet_has_a_cell_for_each_image(count: int, columns: int, rows: int) -> None:
    sheet = contact_sheet([picture(10 + i, 20) for i in range(count)], ["caption " * 9] * count, columns)
    across = min(columns, count)
    assert sheet.size == (20 + across * (CELL + 20), 20 + rows * (CELL + 44))
    assert isinstance(sheet, Image.Image)


@pytest.mark.parametrize("bad", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3)), np.zeros((0, 8, 3), np.uint8)])
def test_what_is_not_an_rgb_image_is_refused(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"must be \(H, W, 3\) uint8; got"):
        draw_prediction(bad, GUESSES, "")


@pytest.mark.parametrize(("images", "captions", "columns"), [(0, 0, 1), (2, 1, 1), (1, 1, 0)])
def test_a_sheet_that_cannot_be_is_refused(images: int, captions: int, columns: int) -> None:
    with pytest.raises(ValueError, match="a contact sheet needs images"):
        contact_sheet([picture(8, 8)] * images, ["x"] * captions, columns)
