"""Charts of several curves: names, gaps, intervals, and values without a range."""

import re

import numpy as np

from fourstage.report.curves import Curve, curve_chart, legend

X = np.arange(5.0)


def chart(*curves: Curve, y_range: tuple[float, float] | None = None) -> str:
    return curve_chart("key", "title", curves, x_name="across", y_name="up", y_range=y_range)


def test_curves_are_told_apart_by_classes_dashes_and_a_legend() -> None:
    svg = chart(Curve("one", X, X), Curve("two", X, 2 * X), Curve("<three>", X, 3 * X))
    assert [f'class="curve s{i}"' in svg for i in range(4)] == [True, True, True, False]
    assert "<span>one</span>" in svg
    assert "&lt;three&gt;" in svg
    dashes = re.findall(r'stroke-dasharray="([^"]+)"', svg)
    assert len(set(dashes)) == 2  # the first curve has none


def test_one_curve_needs_no_legend() -> None:
    assert "<ul" not in chart(Curve("one", X, X))
    assert legend(["one"]).count("<li>") == 1


def test_a_value_that_is_not_finite_leaves_a_gap() -> None:
    y = np.array([1.0, 2.0, np.nan, 3.0, np.inf])
    svg = chart(Curve("one", X, y))
    [path] = re.findall(r'<path d="([^"]+)"', svg)
    assert path.count("M") == 2
    assert svg.count("<circle") == 3
    assert "nan" not in svg
    assert "No finite value" in chart(Curve("one", X, np.full(5, np.nan)))


def test_intervals_are_bands_within_the_axis() -> None:
    svg = chart(Curve("one", X, np.full(5, 50.0), np.full(5, -20.0), np.full(5, 300.0)), y_range=(0.0, 100.0))
    [band] = re.findall(r'<path d="([^"]+)" class="band"', svg)
    heights = [float(point.split()[1].rstrip("Z")) for point in re.split("[ML]", band) if point]
    assert min(heights) == 28
    assert max(heights) == 248


def test_equal_values_and_a_single_point_can_be_drawn() -> None:
    for curve in (Curve("flat", X, np.full(5, 7.0)), Curve("point", np.array([3.0]), np.array([0.0]))):
        svg = chart(curve)
        assert "<svg" in svg
        assert "inf" not in svg
