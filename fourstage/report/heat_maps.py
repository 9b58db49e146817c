"""Maps over an image as inline SVG, with axes in pixels and a colour bar. H x W pixels or cells."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from fourstage.report.charts import ticks
from fourstage.report.colour_scales import coloured
from fourstage.report.markup import Markup, tag
from fourstage.report.number_format import significant

LARGEST = 512  # pixels a side of an embedded map; a larger one is averaged down
LEFT, TOP, BOTTOM = 46, 8, 40  # margins of a heat map, SVG units
SIDE = 320


@dataclass(frozen=True, slots=True)
class Outline:
    """A square or box on a map, in pixels of the axes, with a short label at its upper left corner."""

    left: float
    top: float
    right: float
    bottom: float
    label: str = ""


@dataclass(frozen=True, slots=True)
class Dot:
    """A point on an image, (x, y) in its pixels; its area is its weight, 0 to 1. It may be outside of the image."""

    x: float
    y: float
    weight: float


def heat_map(
    key: str,
    title: str,
    values_HW: np.ndarray,
    *,
    low: float,
    high: float,
    extent: tuple[float, float] | None = None,
    outlines: Sequence[Outline] = (),
    points: Sequence[tuple[float, float]] = (),
    smooth: bool = True,
) -> Markup:
    """Draw a map with axes.

    Args:
        key: prefix of the ids in the figure; unique in the page, letters and digits only.
        title: text for screen readers.
        values_HW: numbers; those that are not finite are grey.
        low, high: ends of the colours; give all panels of a figure the same.
        extent: (height, width) of the axes in pixels; None: those of the map.
        points: (row, column) of crosses.
        smooth: whether the browser may smooth an enlarged map.
    """
    rows, columns = extent or values_HW.shape
    width = SIDE
    height = max(40, round(SIDE * rows / columns))
    across, down = width / columns, height / rows
    drawn = _marks(outlines, points, across, down)
    picture = tag(
        "image", href=data_url(coloured(reduced(values_HW), low, high)), x=LEFT, y=TOP, width=width,
        height=height, preserveAspectRatio="none", style=None if smooth else "image-rendering: pixelated",
    )  # fmt: skip
    return _drawing(key, title, (rows, columns), (width, height), picture, drawn)


def chosen_map(
    key: str,
    title: str,
    tiles_RSHW: np.ndarray,
    cells: tuple[Sequence[int], Sequence[int]],
    chosen: tuple[int, int],
    *,
    high: float,
    extent: tuple[int, int],
    point: tuple[float, float],
) -> Markup:
    """Draw one of many maps, which the page's script exchanges for that of a clicked point; see `heat_map`.

    All maps are tiles of one embedded picture, of which the drawing shows one, so that no script has to draw.

    Args:
        tiles_RSHW: a map for each of R x S cells, in colours from 0 to `high`.
        cells: the rows and the columns of these cells.
        chosen: (row, column) of the cell whose map is shown at first.
        point: (row, column) of the cross.
    """
    rows, columns = extent
    width, height = SIDE, max(40, round(SIDE * rows / columns))
    tall, wide = tiles_RSHW.shape[2:]
    sheet_HW = tiles_RSHW.transpose(0, 2, 1, 3).reshape(len(cells[0]) * tall, len(cells[1]) * wide)
    row, column = (list(known).index(own) for known, own in zip(cells, chosen, strict=True))
    picture = tag(
        "svg",
        tag("image", href=palette_url(sheet_HW, high), width=sheet_HW.shape[1], height=sheet_HW.shape[0],
            style="image-rendering: pixelated"),
        class_="tiles", x=LEFT, y=TOP, width=width, height=height, preserveAspectRatio="none",
        viewBox=f"{column * wide} {row * tall} {wide} {tall}",
        data_rows=" ".join(map(str, cells[0])), data_columns=" ".join(map(str, cells[1])), data_tile=f"{wide} {tall}",
    )  # fmt: skip
    y, x = point
    cross = _cross(LEFT + (x + 0.5) * width / columns, TOP + (y + 0.5) * height / rows)
    return _drawing(key, title, extent, (width, height), picture, [cross])


def picture_map(
    key: str,
    title: str,
    image_HW3: np.ndarray,
    outlines: Sequence[Outline] = (),
    *,
    points: Sequence[tuple[float, float]] = (),
    dots: Sequence[Dot] = (),
) -> Markup:
    """Draw an image of colours with axes in its pixels; see `heat_map`. Dots beyond the border are drawn at it."""
    rows, columns = image_HW3.shape[:2]
    width, height = SIDE, max(40, round(SIDE * rows / columns))
    across, down = width / columns, height / rows
    drawn = _marks(outlines, points, across, down)
    drawn += [_dot(one, across, down, width, height) for one in dots]
    drawing = tag(
        "image", href=data_url(image_HW3), x=LEFT, y=TOP, width=width, height=height, preserveAspectRatio="none",
        style="image-rendering: pixelated" if max(rows, columns) <= 64 else None,
    )  # fmt: skip
    return _drawing(key, title, (rows, columns), (width, height), drawing, drawn)


def _drawing(
    key: str,
    title: str,
    extent: tuple[float, float],
    size: tuple[int, int],
    picture: Markup,
    drawn: Sequence[Markup],
) -> Markup:
    """Return a picture of `size` (width, height) with axes of `extent` (height, width), and what is drawn over it."""
    (rows, columns), (width, height) = extent, size
    content = [tag("title", title, id=f"{key}-title"), picture, *_axes(rows, columns, width, height), *drawn]
    return tag(
        "svg", *content, class_="chart heat", viewBox=f"0 0 {LEFT + width + 10} {TOP + height + BOTTOM}", role="img",
        aria_labelledby=f"{key}-title",
        data_place=f"{LEFT} {TOP} {width} {height} {columns} {rows}",  # by which the page's script finds the pixels
    )  # fmt: skip


def colour_bar(low: float, high: float, name: str) -> Markup:
    """Draw the colours from `low` to `high` with ticks and the name of the quantity."""
    strip_HW = np.linspace(low, high, 256)[None]
    width, left = SIDE, LEFT
    content = [
        tag(
            "image", href=data_url(coloured(strip_HW, low, high)), x=left, y=4, width=width, height=12,
            preserveAspectRatio="none",
        )
    ]  # fmt: skip
    span = high - low if high > low else 1.0
    for value in ticks(low, low + span, most=6):
        x = left + (value - low) / span * width
        content.append(tag("line", class_="tick", x1=_n(x), x2=_n(x), y1=16, y2=20))
        content.append(tag("text", significant(value), x=_n(x), y=33, text_anchor="middle"))
    content.append(tag("text", name, x=left + width / 2, y=50, text_anchor="middle"))
    return tag(
        "svg", *content, class_="chart heat bar-of-colours", viewBox=f"0 0 {left + width + 10} 56", role="img",
        aria_label=f"colours from {significant(low)} to {significant(high)}: {name}",
    )  # fmt: skip


def reduced(values_HW: np.ndarray) -> np.ndarray:
    """Return a map of at most LARGEST cells a side, averaged over whole blocks of cells."""
    factor = -(-max(values_HW.shape) // LARGEST)
    if factor == 1:
        return values_HW
    rows, columns = (side // factor for side in values_HW.shape)
    cut_HW = values_HW[: rows * factor, : columns * factor]
    return cut_HW.reshape(rows, factor, columns, factor).mean(axis=(1, 3))


def data_url(image_HW3: np.ndarray) -> str:
    """Return an image as a PNG in a data URL."""
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image_HW3)).save(out, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


def palette_url(values_HW: np.ndarray, high: float) -> str:
    """Return numbers from 0 to `high` as a PNG of 256 colours in a data URL, a third of one of full colours."""
    index_HW = np.rint(255 * np.clip(values_HW / (high or 1.0), 0, 1)).astype(np.uint8)
    picture = Image.fromarray(index_HW, mode="P")
    picture.putpalette(coloured(np.arange(256)[None], 0, 255)[0].tobytes())
    out = io.BytesIO()
    picture.save(out, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


def _axes(rows: float, columns: float, width: float, height: float) -> list[Markup]:
    out = []
    for value in ticks(0, columns, most=5):
        x = LEFT + value * width / columns
        out.append(tag("line", class_="tick", x1=_n(x), x2=_n(x), y1=_n(TOP + height), y2=_n(TOP + height + 4)))
        out.append(tag("text", significant(value), x=_n(x), y=_n(TOP + height + 17), text_anchor="middle"))
    for value in ticks(0, rows, most=5):
        y = TOP + value * height / rows
        out.append(tag("line", class_="tick", x1=LEFT - 4, x2=LEFT, y1=_n(y), y2=_n(y)))
        out.append(tag("text", significant(value), x=LEFT - 7, y=_n(y + 4), text_anchor="end"))
    out.append(tag("text", "pixels", x=_n(LEFT + width / 2), y=_n(TOP + height + 33), text_anchor="middle"))
    return out


def _marks(
    outlines: Sequence[Outline], points: Sequence[tuple[float, float]], across: float, down: float
) -> list[Markup]:
    free = _free(outlines, across, down)
    drawn = [_outline(one, across, down, labelled) for one, labelled in zip(outlines, free, strict=True)]
    return drawn + [_cross(LEFT + (column + 0.5) * across, TOP + (row + 0.5) * down) for row, column in points]


def _free(outlines: Sequence[Outline], across: float, down: float) -> list[bool]:
    """Return for each outline whether its label overlaps none of those before it."""
    corners: list[tuple[float, float]] = []
    out = []
    for one in outlines:
        x, y = one.left * across, one.top * down
        out.append(all(abs(x - a) > 30 or abs(y - b) > 11 for a, b in corners))
        if out[-1]:
            corners.append((x, y))
    return out


def _outline(one: Outline, across: float, down: float, labelled: bool) -> Markup:
    x, y = LEFT + one.left * across, TOP + one.top * down
    box = {
        "x": _n(x),
        "y": _n(y),
        "width": _n((one.right - one.left) * across),
        "height": _n((one.bottom - one.top) * down),
    }
    label = tag("text", one.label, x=_n(x + 3), y=_n(y + 11)) if one.label and labelled else None
    return tag("g", tag("rect", class_="under", **box), tag("rect", **box), label, class_="outline")


def _cross(x: float, y: float) -> Markup:
    arms = f"M{_n(x - 6)} {_n(y)}H{_n(x + 6)}M{_n(x)} {_n(y - 6)}V{_n(y + 6)}"
    return tag("g", tag("path", d=arms, class_="under"), tag("path", d=arms), class_="outline")


def _dot(one: Dot, across: float, down: float, width: float, height: float) -> Markup:
    x, y = (one.x + 0.5) * across, (one.y + 0.5) * down
    inside = 0 <= x <= width and 0 <= y <= height
    x, y = min(max(x, 0.0), width), min(max(y, 0.0), height)
    radius = max(1.2, 6 * max(one.weight, 0.0) ** 0.5)
    return tag("circle", cx=_n(LEFT + x), cy=_n(TOP + y), r=_n(radius), class_="dot" if inside else "dot beyond")


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
