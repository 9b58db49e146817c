"""The page of modulators, attention and sampling points. H x W pixels, h heads, Q queries, S points."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fourstage.analysis.maps import AttentionGrid, MixerMaps
from fourstage.report.analyses.layout import analysis_page, figure, notes, panels, section
from fourstage.report.curves import Curve, curve_chart
from fourstage.report.heat_maps import Dot, Outline, chosen_map, colour_bar, heat_map, picture_map
from fourstage.report.markup import Markup, join, tag

MOST_HEADS = 4  # of a layer that are drawn
COLOURS = 0.999  # quantile of a map that gets the last colour: single large weights would hide all others


@dataclass(frozen=True)
class QueryPoints:
    """The best queries of a DINO: their boxes, and the points that they read, in pixels of the image."""

    boxes_Q4: np.ndarray
    names: tuple[str, ...]
    scores_Q: np.ndarray
    points_QS2: np.ndarray
    weights_QS: np.ndarray


@dataclass(frozen=True)
class ImageMaps:
    """All maps of one image by one network."""

    name: str
    weights: str
    image: str
    image_HW3: np.ndarray
    point: tuple[float, float]
    mixers: tuple[MixerMaps, ...]
    query_points: QueryPoints | None

    def last_of_stages(self) -> list[MixerMaps]:
        """Return of each stage the last mixer of each kind."""
        last = {(maps.name.partition(".blocks.")[0], maps.kind): maps for maps in self.mixers}
        return [maps for maps in self.mixers if any(maps is one for one in last.values())]


def maps_page(found: Sequence[ImageMaps], images: str) -> str:
    """Return the page: for each network and image one row of figures per layer, then distances over depth."""
    sections = [_section(i, one) for i, one in enumerate(found)]
    return analysis_page(
        "Maps of mixers",
        f"What the layers of networks look at; {images}.",
        [
            *sections,
            section("Mean distance by depth", _distances(found)),
            section("How to read this", notes(_REMARKS)),
        ],
    )


def _section(number: int, one: ImageMaps) -> Markup:
    x, y = one.point
    photograph = picture_map(f"photo{number}", one.image, one.image_HW3, points=[(y - 0.5, x - 0.5)])
    chosen = tag("bdi", f"{x:g},{y:g}", class_="point")  # the page's script writes a clicked one into it
    rows = [panels([figure(photograph, one.image, join(["the cross is the point ", chosen]))])]
    if one.query_points is not None:
        rows.append(panels(_queries(f"dino{number}", one, one.query_points), wide=True))
    rows += [_layer(f"m{number}x{i}", one, maps) for i, maps in enumerate(one.last_of_stages())]
    return section(f"{one.name} ({one.weights})", *rows)


def _layer(key: str, one: ImageMaps, maps: MixerMaps) -> Markup:
    size = f"{maps.size[0]} x {maps.size[1]} cells"
    title = tag("h3", maps.name, tag("span", f" {maps.kind}, {size}", class_="quiet"))
    if maps.points_hP2 is not None and maps.weights_hP is not None:
        return Markup(title + panels(_points(key, one, maps.points_hP2, maps.weights_hP)))
    drawn: list[tuple[str, np.ndarray]] = []
    if maps.modulator_HW is not None:
        drawn.append(("modulator, mean of |M|", maps.modulator_HW))
    if maps.heads_hHW is not None:
        word = "scale" if maps.modulator_HW is not None else "head"
        if word == "head":
            drawn.append(("mean over heads", maps.heads_hHW.mean(axis=0)))
        drawn += [(f"{word} {h + 1}", map_HW) for h, map_HW in enumerate(maps.heads_hHW[:MOST_HEADS])]
    if not drawn:
        return Markup(title + tag("p", "A convolution: the same for every image; see the distances.", class_="quiet"))
    own, others = (drawn[:1], drawn[1:]) if maps.modulator_HW is not None else ([], drawn)
    if maps.grid is not None:
        return Markup(title + _chosen(key, one, maps, maps.grid, [label for label, _ in others]))
    high = max(float(np.quantile(map_HW, COLOURS)) for _, map_HW in others)
    name = "mean of |scale|" if maps.modulator_HW is not None else "attention weight"
    bars = [colour_bar(0.0, high, name)]
    figures = []
    if own:
        own_high = float(np.quantile(own[0][1], COLOURS))
        figures.append(_map(f"{key}g", one, *own[0], own_high))
        bars.insert(0, colour_bar(0.0, own_high, "modulator, mean of |M|"))
    figures += [_map(f"{key}h{i}", one, label, map_HW, high) for i, (label, map_HW) in enumerate(others)]
    return Markup(title + panels(figures) + panels(bars))


def _chosen(key: str, one: ImageMaps, maps: MixerMaps, grid: AttentionGrid, labels: Sequence[str]) -> Markup:
    """Draw the attention of the given point, with that of the other points of a grid to be chosen by a click."""
    high = max(float(np.quantile(own, COLOURS)) for own in grid.weights_gRSHW)
    cells, (x, y), extent = (grid.rows_R.tolist(), grid.columns_S.tolist()), one.point, one.image_HW3.shape[:2]
    figures = [
        figure(
            chosen_map(f"{key}h{i}", f"{label} of {one.image}", tiles_RSHW, cells, maps.cell, high=high,
                       extent=(extent[0], extent[1]), point=(y - 0.5, x - 0.5)),
            label,
        )
        for i, (label, tiles_RSHW) in enumerate(zip(labels, grid.weights_gRSHW, strict=True))
    ]  # fmt: skip
    return Markup(panels(figures) + panels([colour_bar(0.0, high, "attention weight")]))


def _map(key: str, one: ImageMaps, label: str, map_HW: np.ndarray, high: float) -> Markup:
    x, y = one.point
    drawing = heat_map(
        key,
        f"{label} of {one.image}",
        map_HW,
        low=0.0,
        high=high,
        extent=one.image_HW3.shape[:2],
        points=[(y - 0.5, x - 0.5)],
        smooth=False,
    )
    return figure(drawing, label)


def _points(key: str, one: ImageMaps, points_hP2: np.ndarray, weights_hP: np.ndarray) -> list[Markup]:
    """Draw the sampling points of the first heads; a dot's area is its weight."""
    x, y = one.point
    out = []
    for h in range(min(MOST_HEADS, len(points_hP2))):
        dots = _dots(points_hP2[h], weights_hP[h])
        drawing = picture_map(
            f"{key}h{h}", f"points of head {h + 1}", one.image_HW3, points=[(y - 0.5, x - 0.5)], dots=dots
        )
        out.append(figure(drawing, f"head {h + 1}", _outside(points_hP2[h], one)))
    return out


def _queries(key: str, one: ImageMaps, best: QueryPoints) -> list[Markup]:
    out = []
    for q, name in enumerate(best.names):
        left, top, right, bottom = (float(v) for v in best.boxes_Q4[q])
        box = Outline(left, top, right, bottom)
        dots = _dots(best.points_QS2[q], best.weights_QS[q])
        drawing = picture_map(f"{key}q{q}", f"points of {name}", one.image_HW3, [box], dots=dots)
        out.append(
            figure(drawing, f"{name} {best.scores_Q[q]:.2f}", "points of all heads and levels of the last layer")
        )
    return out


def _dots(points_S2: np.ndarray, weights_S: np.ndarray) -> list[Dot]:
    largest = float(weights_S.max()) or 1.0
    return [Dot(float(x), float(y), float(w) / largest) for (x, y), w in zip(points_S2, weights_S, strict=True)]


def _outside(points_P2: np.ndarray, one: ImageMaps) -> str:
    height, width = one.image_HW3.shape[:2]
    out = ((points_P2 < -0.5) | (points_P2 > np.array([width, height]) - 0.5)).any(axis=1).sum()
    return f"{out} of {len(points_P2)} points outside of the image read zeros" if out else ""


def _distances(found: Sequence[ImageMaps]) -> Markup:
    """Draw the mean distance of each layer, and the range of its heads, for each network; means over images."""
    curves = []
    for name in dict.fromkeys((one.name, one.weights) for one in found):
        own = [one for one in found if (one.name, one.weights) == name and one.mixers]
        if not own:
            continue
        by_layer = [np.mean([one.mixers[i].distances_h for one in own], axis=0) for i in range(len(own[0].mixers))]
        mean, low, high = (np.array([f(d) for d in by_layer]) for f in (np.mean, np.min, np.max))
        curves.append(Curve(", ".join(name), np.arange(1, len(by_layer) + 1), mean, low, high))
    if not curves:
        return tag("p", "The backbones have none of this package's mixers.", class_="nothing")
    return curve_chart(
        "distances", "mean distance by depth", curves, x_name="layer, from the image on",
        y_name="mean distance, pixels; bands are the smallest and largest head", size=(440, 280),
    )  # fmt: skip


_REMARKS = (
    "Attention maps show how much the cell below the cross takes from every other cell. Cells outside of its window or "
    "block have zero: these borders are real. Keys that stand for squares of cells fill these squares.",
    "What is added to attention, such as the depth-wise convolutions of SMT and ScalableViT, is not in these maps. "
    "Attention rollout is not offered: windows move and change their size between layers.",
    "SMT's modulator is the tensor that is multiplied with the values, and a scale is the output of its depth-wise "
    "convolution. Both are means of absolute values over channels.",
    "The dots of DCNv3 are the nine points that the cell reads in one head; their areas are the weights.",
    "The panels of one layer have the same colours, except for the modulator, which has its own. The last colour is "
    "for the largest 0.1 % of values.",
    "The mean distance is weighted by attention, by the weights of sampling points, or by absolute kernels.",
)
