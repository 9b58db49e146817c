"""The page of class activation maps. H x W pixels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from fourstage.analysis.cam_methods import NAMES
from fourstage.analysis.cam_scores import Faithfulness
from fourstage.analysis.cam_targets import Box
from fourstage.report.analyses.layout import analysis_page, figure, notes, panels, section
from fourstage.report.colour_scales import coloured
from fourstage.report.heat_maps import Outline, colour_bar, picture_map
from fourstage.report.markup import Markup, table, tag
from fourstage.report.number_format import significant

STRENGTH = 0.55  # of the colours over the grey image

SCORES = ("road", "morf", "lerf", "insertion", "deletion", "drop", "increase")  # attributes of `Faithfulness`


@dataclass(frozen=True)
class Explained:
    """All maps of one image by one network.

    Attributes:
        image_HW3: uint8, as the network saw it.
        explained: the class, in words; `score` is its logit, or the detection's score.
        maps: by method, in [0, 1).
        box: of the explained object, in pixels of the image.
    """

    name: str
    weights: str
    image: str
    image_HW3: np.ndarray
    explained: str
    score: float
    taps: tuple[str, ...]
    maps: Mapping[str, np.ndarray]
    scores: Mapping[str, Faithfulness]
    box: Box | None
    notes: tuple[str, ...]


def cam_page(found: Sequence[Explained], images: str, warnings: Sequence[str]) -> str:
    """Return the page: for each network and image the photograph and one overlay per method, then the scores."""
    sections = [_section(i, one) for i, one in enumerate(found)]
    scores = section("How faithful the maps are", _scores(found)) if any(one.scores for one in found) else None
    remarks = [*warnings, *_REMARKS]
    return analysis_page(
        "Class activation maps",
        f"Where networks see evidence for what they predict; {images}.",
        [*sections, section("Colours", colour_bar(0.0, 1.0, "evidence, over the largest of the image")), scores,
         section("How to read this", notes(remarks))],
    )  # fmt: skip


def _section(number: int, one: Explained) -> Markup:
    outlines = [Outline(*one.box)] if one.box else []
    drawn = [figure(picture_map(f"cam{number}photo", one.image, one.image_HW3, outlines), "image", one.image)]
    for i, (method, map_HW) in enumerate(one.maps.items()):
        drawing = picture_map(
            f"cam{number}m{i}", f"{NAMES[method]} of {one.image}", overlay(one.image_HW3, map_HW), outlines
        )
        scores = one.scores.get(method)
        line = f"ROAD {scores.road:.3f}" if scores else "no evidence" if map_HW.max() <= 0 else ""
        drawn.append(figure(drawing, NAMES[method], line))
    what = f"{one.explained}, score {significant(one.score, 3)}; from {' and '.join(one.taps)}"
    return section(f"{one.name} ({one.weights})", tag("p", what), panels(drawn))


def overlay(image_HW3: np.ndarray, map_HW: np.ndarray) -> np.ndarray:
    """Return the map's colours over the grey image."""
    grey_HW = np.asarray(Image.fromarray(image_HW3).convert("L"), float)
    colours_HW3 = coloured(map_HW, 0.0, 1.0).astype(float)
    return np.rint((1 - STRENGTH) * grey_HW[..., None] + STRENGTH * colours_HW3).astype(np.uint8)


def _scores(found: Sequence[Explained]) -> Markup:
    rows = []
    for one in found:
        for method, scores in one.scores.items():
            values = (getattr(scores, key) for key in SCORES)
            rows.append((one.name, one.image, NAMES[method], *(f"{value:.3f}" for value in values)))
    for name in dict.fromkeys(one.name for one in found if one.scores):
        rows += _means(name, [one for one in found if one.name == name and one.scores])
    head = ("network", "image", "method", "ROAD", "MoRF", "LeRF", "insertion", "deletion", "drop", "increase")
    return table(head, rows, caption="Scores of the maps", class_="numbers")


def _means(name: str, found: Sequence[Explained]) -> list[tuple[str, ...]]:
    rows = []
    for method in found[0].scores:
        scores = [one.scores[method] for one in found]
        means = [np.mean([getattr(score, key) for score in scores]) for key in SCORES]
        rows.append((name, "mean", NAMES[method], *(f"{value:.3f}" for value in means)))
    return rows


_REMARKS = (
    "A map is cut at zero, scaled to [0, 1] for its image, and enlarged from the layer's cells. Its colours compare "
    "positions of one image, and not images or methods.",
    "The layer is the last map before the global pooling, or the output of the final norm where a network norms before "
    "it pools. Before a LayerNorm, gradients are orthogonal to the map, and products of both vanish.",
    "Eigen-CAM does not depend on the class. Its sign is chosen such that the largest absolute value is positive.",
    "ROAD is (LeRF - MoRF) / 2: how much more the probability falls when the most relevant pixels are replaced by "
    "their neighbours than when the least relevant ones are. Higher is better, as for insertion; for deletion, lower "
    "is better. Blurry maps score better than sharp ones.",
    "Drop is how much the probability falls where the normalised image is multiplied by the map, and increase the "
    "share of images whose probability rises.",
)
