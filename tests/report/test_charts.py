"""Laws of the charts: whatever was logged, what is drawn lies inside the picture and reads in order."""

import json
import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourstage.report.charts import MAX_POINTS, Series, bar_chart, line_chart, smooth, sparkline, ticks

anything = st.floats(allow_nan=True, allow_infinity=True)
sane = st.floats(-1e6, 1e6)
values = st.one_of(
    st.lists(anything, max_size=40), st.lists(sane, min_size=1, max_size=40), st.lists(st.just(0.5), max_size=4)
)
flags = st.booleans()


def chart(*lines: list[float], percent: bool = False, from_zero: bool = False) -> ElementTree.Element:
    series = [Series(f"line {i}", np.arange(len(y)) * 0.2, np.array(y, float)) for i, y in enumerate(lines)]
    return ElementTree.fromstring(line_chart("key", "Title", series, percent=percent, from_zero=from_zero))


def drawn(svg: ElementTree.Element) -> list[tuple[float, float]]:
    points = [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in svg.iter("circle")]
    for path in svg.iter("path"):
        pairs = re.findall(r"[ML]([^ML]+)", path.attrib["d"])
        points += [(float(x), float(y)) for x, y in (pair.split() for pair in pairs)]
    return points


def labels(svg: ElementTree.Element, anchor: str) -> list[tuple[float, float, float]]:
    """(x, y, value) of the tick labels."""
    found = [t for t in svg.iter("text") if t.get("text-anchor") == anchor and t.text != "epoch"]
    return [(float(t.attrib["x"]), float(t.attrib["y"]), float(t.text or "nan")) for t in found]


@given(first=values, second=values, percent=flags, from_zero=flags)
@settings(max_examples=150, deadline=None)
def test_points_stay_inside_and_axes_read_in_order(
    first: list[float], second: list[float], percent: bool, from_zero: bool
) -> None:
    svg = chart(first, second, percent=percent, from_zero=from_zero)
    usable = [v for v in first + second if math.isfinite(v) and abs(v) < 1e30]
    if not usable:
        assert svg.tag == "p"
        return
    width, height = map(float, svg.attrib["viewBox"].split()[2:])
    points = drawn(svg)
    assert points
    assert all(0 <= x <= width and 0 <= y <= height for x, y in points)
    everything = ElementTree.tostring(svg, encoding="unicode")
    assert not re.search(r"\b(nan|inf)\b", everything)
    for (x, _, v), (x_next, _, v_next) in pairwise(labels(svg, "middle")):
        assert x < x_next
        assert v < v_next
    for (_, y, v), (_, y_next, v_next) in pairwise(labels(svg, "end")):
        assert y > y_next
        assert v < v_next


def test_the_smallest_number_there_is_breaks_no_axis() -> None:
    assert drawn(chart([1.0, 1.0, 51.0, 5e-324]))
    assert drawn(chart([5e-324, 0.0]))


@pytest.mark.parametrize("count", [1, 2, 12, 13, 1000, 5000])
def test_any_number_of_points_is_drawn(count: int) -> None:
    svg = chart(np.linspace(3, 1, count).tolist())
    assert len(list(svg.iter("circle"))) == (count if count <= 12 else 0)
    assert len(drawn(svg)) <= max(2 * count if count <= 12 else count, 0)
    assert len(drawn(svg)) <= MAX_POINTS + 60
    [text] = [t.text for t in svg.iter("text") if "label" in t.get("class", "")]
    assert text == ("3.00" if count == 1 else "1.00")
    assert len(labels(svg, "end")) >= 2


def test_a_higher_value_is_drawn_higher_and_a_later_one_further_right() -> None:
    points = drawn(chart([1.0, 5.0, 2.0]))[:3]
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x0 < x1 < x2
    assert y1 < y2 < y0


def test_ticks_are_where_their_values_are_drawn() -> None:
    svg = chart([0.0, 10.0, 20.0], from_zero=True)
    ys = {v: y - 4 for _, y, v in labels(svg, "end")}
    points = drawn(svg)
    for value, (_, y) in zip((0.0, 10.0, 20.0), points, strict=False):
        assert ys[value] == pytest.approx(y, abs=0.11)


def test_a_value_that_is_not_finite_leaves_a_gap_and_its_neighbours_stay() -> None:
    y = np.ones(100)
    y[40] = np.nan
    svg = chart(y.tolist())
    [path] = svg.iter("path")
    assert path.attrib["d"].count("M") == 2
    assert path.attrib["d"].count("L") == 97


def test_thinning_keeps_the_extremes() -> None:
    y = np.zeros(20_000)
    y[7777], y[12_345] = 9.0, -4.0
    heights = [y for _, y in drawn(chart(y.tolist()))]
    assert len({round(h) for h in heights}) == 3


def test_one_explosion_makes_the_axis_logarithmic() -> None:
    svg = chart([*np.linspace(1, 2, 50).tolist(), 1e5], from_zero=True)
    marks = [v for *_, v in labels(svg, "end")]
    assert marks[0] > 0
    ratios = {round(b / a) for a, b in pairwise(marks)}
    assert len(ratios) == 1


def test_percent_ends_at_a_hundred_and_labels_keep_apart() -> None:
    svg = chart([40.0, 97.0, 98.4], [35.0, 97.0, 98.5], percent=True)
    assert labels(svg, "end")[-1][2] == 100
    ends = [t for t in svg.iter("text") if "label" in t.get("class", "")]
    heights = sorted(float(t.attrib["y"]) for t in ends)
    assert heights[1] - heights[0] >= 14
    assert heights[0] >= 14, "within the picture"
    assert {t.text for t in ends} == {"line 0 98.4", "line 1 98.5"}


def test_the_script_gets_the_values_that_are_drawn() -> None:
    svg = chart([1.0, float("nan"), 3.25])
    [line] = json.loads(svg.attrib["data-lines"])
    assert [point[2:] for point in line["points"]] == [["0", "1"], ["0.4", "3.25"]]


@given(low=st.floats(-1e9, 1e9), span=st.floats(1e-3, 1e9), most=st.integers(5, 8))
@settings(max_examples=200, deadline=None)
def test_ticks_are_few_round_and_inside(low: float, span: float, most: int) -> None:
    found = ticks(low, low + span, most)
    assert len(found) <= most
    slack = 1e-6 * (span + abs(low))
    assert all(low - slack <= tick <= low + span + slack for tick in found)
    steps = {float(f"{b - a:.3g}") for a, b in pairwise(found)}
    if span > 1e-3 * abs(low):
        assert len(found) >= 2
        assert all(f"{step:e}"[0] in "125" for step in steps)


@given(st.lists(st.one_of(sane, st.just(math.nan), st.just(math.inf)), min_size=1, max_size=200))
@settings(max_examples=100, deadline=None)
def test_smoothing_stays_between_the_extremes_and_keeps_gaps(y: list[float]) -> None:
    smoothed = smooth(np.array(y))
    known = np.isfinite(y)
    assert len(smoothed) == len(y)
    if len(y) >= 24:
        assert (np.isfinite(smoothed) == known).all()
    if known.any():
        low, high = np.array(y)[known].min(), np.array(y)[known].max()
        slack = 1e-9 * max(abs(low), abs(high), 1)
        inside = smoothed[np.isfinite(smoothed)]
        assert (inside >= low - slack).all()
        assert (inside <= high + slack).all()


@given(values)
@settings(max_examples=50, deadline=None)
def test_a_sparkline_stays_inside(y: list[float]) -> None:
    text = sparkline("waiting", np.array(y, float))
    if text:
        svg = ElementTree.fromstring(text)
        assert all(0 <= a <= 140 and 0 <= b <= 22 for a, b in drawn(svg))


@given(times=st.lists(st.integers(0, 30_000), min_size=1, max_size=25))
@settings(max_examples=50, deadline=None)
def test_bars_lie_inside_and_are_as_high_as_often_they_count(times: list[int]) -> None:
    edges = np.linspace(0, 100, len(times) + 1)
    svg = ElementTree.fromstring(
        bar_chart("key", "Title", edges, np.array(times), size=(920, 220), x_name="per cent", of="classes")
    )
    bars = [{key: float(value) for key, value in rect.attrib.items()} for rect in svg.iter("rect")]
    assert len(bars) == sum(n > 0 for n in times)
    assert all(b["x"] >= 48 and b["x"] + b["width"] <= 920 and 14 <= b["y"] <= b["y"] + b["height"] for b in bars)
    highest = max([b["height"] for b in bars], default=1)
    for bar, n in zip(bars, [n for n in times if n], strict=True):
        assert bar["height"] / highest == pytest.approx(n / max(times), abs=0.002)
    assert all(a["x"] + a["width"] <= b["x"] for a, b in pairwise(bars))
