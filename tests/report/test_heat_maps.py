"""Heat maps and colours: values have their colours, axes their pixels, and labels do not overlap."""

import base64
import io
import re

import numpy as np
from PIL import Image

from fourstage.report.colour_scales import MISSING, VIRIDIS, coloured, css
from fourstage.report.heat_maps import LARGEST, Dot, Outline, colour_bar, heat_map, picture_map, reduced


def embedded(svg: str) -> np.ndarray:
    match = re.search(r"data:image/png;base64,([^\"]+)", svg)
    assert match
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(match[1]))).convert("RGB"))


def test_the_ends_and_what_is_beyond_have_the_colours_of_the_ends() -> None:
    first, last = (tuple(bytes.fromhex(VIRIDIS[i])) for i in (0, -1))
    drawn = coloured(np.array([[-5.0, 0.0, 1.0, 7.0, np.nan, np.inf]]), 0.0, 1.0)[0]
    assert [tuple(int(v) for v in row) for row in drawn] == [first, first, last, last, MISSING, MISSING]


def test_viridis_grows_lighter_so_that_it_can_be_read_without_colours() -> None:
    colours = coloured(np.linspace(0, 1, 64)[None], 0.0, 1.0)[0].astype(float)
    light = colours @ [0.299, 0.587, 0.114]
    assert (np.diff(light) > -0.5).all()
    assert light[-1] - light[0] > 150


def test_text_on_a_colour_can_be_read() -> None:
    assert css(0.0, 0.0, 1.0) == ("#440154", "#fff")
    assert css(1.0, 0.0, 1.0) == ("#fde725", "#000")


def test_a_map_is_drawn_with_its_values_and_axes_of_the_image() -> None:
    values = np.array([[0.0, 1.0], [0.5, 0.0]])
    svg = heat_map("a", "title", values, low=0.0, high=1.0, extent=(64, 64), points=[(10, 20)])
    np.testing.assert_array_equal(embedded(svg), coloured(values, 0.0, 1.0))
    assert re.findall(r'text-anchor="middle">(\d+)<', svg) == ["0", "20", "40", "60"]
    assert 'aria-labelledby="a-title"' in svg


def test_large_maps_are_averaged_and_not_sampled() -> None:
    values = np.indices((2 * LARGEST, 2 * LARGEST)).sum(0) % 2
    assert reduced(values.astype(float)).shape == (LARGEST, LARGEST)
    np.testing.assert_allclose(reduced(values.astype(float)), 0.5)


def test_labels_of_outlines_do_not_overlap() -> None:
    near = [Outline(10, 10, 30, 30, "20 %"), Outline(9, 9, 31, 31, "30 %"), Outline(2, 2, 60, 60, "99 %")]
    svg = heat_map("a", "title", np.zeros((64, 64)), low=0.0, high=1.0, outlines=near)
    assert svg.count('class="outline"') == 3
    assert re.findall(r">(\d+ %)<", svg) == ["20 %", "99 %"]


def test_dots_beyond_the_image_are_drawn_at_its_border() -> None:
    image = np.zeros((40, 80, 3), np.uint8)
    svg = picture_map("a", "title", image, dots=[Dot(40, 20, 1.0), Dot(-30, 20, 0.5), Dot(200, 90, 0.0)])
    assert svg.count('class="dot"') == 1
    assert svg.count('class="dot beyond"') == 2
    assert 'cx="46"' in svg  # the left border


def test_a_colour_bar_of_one_value_has_a_width() -> None:
    assert "quantity" in colour_bar(3.0, 3.0, "quantity")
    assert embedded(colour_bar(0.0, 1.0, "quantity")).shape == (1, 256, 3)
