"""The page of effective receptive fields. H x W pixels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fourstage.analysis.erf import Erf, Profile, Scale, Square, scaled
from fourstage.plurals import plural
from fourstage.report.analyses.layout import analysis_page, figure, notes, panels, section
from fourstage.report.curves import Curve, curve_chart
from fourstage.report.heat_maps import Outline, colour_bar, heat_map
from fourstage.report.markup import Markup, table
from fourstage.report.number_format import significant

FAINTEST = -6.0  # log10 of the smallest contribution that is drawn, against the largest
FORMS: dict[Scale, str] = {"replknet": "RepLKNet", "raw": "raw map", "power": "power"}
NAMES: dict[Scale, str] = {
    "replknet": "log10(A + 1), over its maximum",
    "raw": "A, over its maximum",
    "power": "A to the power of {power:g}, over its maximum",
}


@dataclass(frozen=True)
class Field:
    """The receptive field of one network with its numbers."""

    name: str
    weights: str
    erf: Erf
    squares: Mapping[Scale, Mapping[float, Square | None]]
    profile: Profile
    centre: tuple[float, float]
    power: float
    luo_size: float


def erf_page(fields: Sequence[Field], images: str) -> str:
    """Return the page: the maps in two forms, the radial profiles, the table, and how to read them."""
    tap = fields[0].erf.tap
    return analysis_page(
        "Effective receptive fields",
        f"Contribution of each pixel to the centre of the map {tap!r}; {images}.",
        [
            section("RepLKNet's form", _maps(fields, "replknet")),
            section("A form that does not depend on scale", _maps(fields, "power")),
            section("By distance from the centre", _profiles(fields)),
            section("Numbers", _table(fields), _widths(fields)),
            section("How to read this", notes(_REMARKS)),
        ],
    )


def _maps(fields: Sequence[Field], scale: Scale) -> Markup:
    drawn = [_panel(f"{scale}{i}", field, scale) for i, field in enumerate(fields)]
    name = NAMES[scale].format(power=fields[0].power)
    return Markup(panels(drawn) + colour_bar(0.0, 1.0, name))


def _panel(key: str, field: Field, scale: Scale) -> Markup:
    map_HW = scaled(field.erf.map_HW, scale, field.power)
    largest = float(map_HW.max())
    outlines = [_outline(share, one, field.centre) for share, one in field.squares[scale].items() if one is not None]
    drawing = heat_map(
        key,
        f"{field.name}, {field.weights}",
        map_HW / largest if largest > 0 else map_HW,
        low=0.0,
        high=1.0,
        extent=field.erf.size,
        outlines=outlines,
        points=[field.erf.unit_centre],
    )
    rows, columns = field.erf.cells
    return figure(
        drawing, field.name, f"{field.weights}; {rows} x {columns} cells; {plural(field.erf.images, 'image')}"
    )


def _outline(share: float, square: Square, centre: tuple[float, float]) -> Outline:
    half = square.side / 2
    row, column = (value + 0.5 for value in centre)
    return Outline(column - half, row - half, column + half, row + half, f"{100 * share:.0f} %")


def _profiles(fields: Sequence[Field]) -> Markup:
    curves = [_curve(field) for field in fields]
    return curve_chart(
        "profiles",
        "mean contribution by distance from the centre",
        curves,
        x_name="distance from the centre, pixels",
        y_name="mean contribution, log10, over the largest",
        size=(440, 280),
    )


def _curve(field: Field) -> Curve:
    """Return the logarithm of the profile up to the border; distances with almost no contribution are gaps."""
    most = min(field.erf.size) // 2
    value_R = field.profile.value_R[:most]
    with np.errstate(divide="ignore", invalid="ignore"):
        log_R = np.log10(value_R / np.nanmax(value_R))
    log_R[~(log_R >= FAINTEST)] = np.nan
    return Curve(f"{field.name}, {field.weights}", field.profile.distance_R[:most], log_R)


def _table(fields: Sequence[Field]) -> Markup:
    shares = list(next(iter(fields[0].squares.values())))
    rows = []
    for field in fields:
        for scale, by_share in field.squares.items():
            cells = ["–" if one is None else f"{100 * one.ratio:.1f}" for one in by_share.values()]
            rows.append((field.name, field.weights, FORMS[scale], *cells))
    head = ("network", "weights", "form", *(f"{100 * share:.0f} %" for share in shares))
    return table(head, rows, caption="Area of the smallest centred square, % of the image", class_="numbers")


def _widths(fields: Sequence[Field]) -> Markup:
    rows = []
    for field in fields:
        unit_row, unit_column = field.erf.unit_centre
        row, column = field.centre
        rows.append(
            (
                field.name,
                field.weights,
                significant(field.profile.sigma, 3),
                significant(field.profile.deviation, 3),
                significant(field.luo_size, 3),
                f"{row:g}, {column:g}",
                f"{unit_row:g}, {unit_column:g}",
                f"{field.erf.images} + {field.erf.skipped} with NaN",
            )
        )
    head = ("network", "weights", "Gaussian px", "deviation px", "Luo px", "centre px", "unit's centre px", "images")
    return table(head, rows, caption="Widths in pixels, and where the field is measured", class_="numbers")


_REMARKS = (
    "The map A is the gradient of the centre unit's positive channels by the normalised image, cut at zero, summed "
    "over the colours and averaged over the images (RepLKNet, https://arxiv.org/abs/2203.06717).",
    "A square shows the smallest centred area that holds 20, 30, 50 or 99 % of a panel's sum. A uniform map has "
    "areas of 20, 30, 50 and 99 %.",
    "RepLKNet's form depends on the scale of the gradient: a constant factor in the network's normalisation changes "
    "its ratios. Compare networks by the raw map or by the power form, which do not depend on scale.",
    "The size of the images matters as well. At 224 pixels the field of most networks covers the image. Squares end "
    "one pixel before its border, so the 99 % square then has 223 pixels a side.",
    "Untrained networks may have larger fields than trained ones; each row says which of the two it is.",
    "Gaussian px is the width of the Gaussian that fits the radial profile, deviation px the map's own standard "
    "deviation along one axis, Luo px the square root of the number of pixels above 4.55 % of the centre's value.",
    "The cross marks the pixel on which the unit is centred. It is not always the centre of the image, around "
    "which RepLKNet measures.",
)
