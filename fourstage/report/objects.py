"""Draw boxes, masks, names and scores over images. H x W pixels, N objects."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from fourstage.report.label_maps import GAP, colours_of
from fourstage.report.pictures import PAPER, Font, font_for, shorten

Rectangle = tuple[float, float, float, float]  # x1 y1 x2 y2, pixels of the picture
Colour = tuple[int, int, int]
Label = tuple[Font, str]

OPACITY = 0.45
MIN_SIDE = 480  # pixels; smaller images are enlarged, so that names are readable
MAX_SIDE = 1600
PARTS = ("boxes", "labels", "scores", "crowd", "masks")
MOST_DRAWN = 300  # objects of an image; the places of more names take long to find, and nobody could read them


def draw_objects(
    image_HW3: np.ndarray, objects: Mapping[str, Any], classes: Sequence[str], side: int | None = None
) -> Image.Image:
    """Draw the first `MOST_DRAWN` objects over the image, those with the best scores on top.

    Args:
        image_HW3: uint8.
        objects: `boxes` (x1 y1 x2 y2, pixels) and `labels`; optional are `scores`, `crowd` (whether an object is a
            region of several) and `masks` (COCO's compressed run lengths).
        side: longer side of the picture, pixels; None: that of the image, within limits.
    """
    height, width = image_HW3.shape[:2]
    objects = {key: values[:MOST_DRAWN] for key in PARTS if (values := objects.get(key)) is not None}
    names, colours = list(classes), colours_of(len(classes))
    order = range(len(objects["labels"]) - 1, -1, -1)
    masked = bool(objects.get("masks"))
    pixels = image_HW3.astype(np.float32) if masked else image_HW3  # floats of a large image take gigabytes
    for i in order if masked else ():
        mask_HW = _decoded(objects["masks"][i], (height, width))
        pixels[mask_HW] = (1 - OPACITY) * pixels[mask_HW] + OPACITY * np.array(_bright(colours[objects["labels"][i]]))
    longer = max(height, width, 1)
    scale = side / longer if side else min(max(MIN_SIDE / longer, 1.0), MAX_SIDE / longer)
    filter_ = Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.BICUBIC
    size = max(1, round(width * scale)), max(1, round(height * scale))
    pixels = pixels.round().clip(0, 255).astype(np.uint8) if masked else np.ascontiguousarray(pixels)
    picture = Image.fromarray(pixels).resize(size, filter_)
    draw, line = ImageDraw.Draw(picture), max(2, round(max(size) / 320))
    colour_of = [_bright(colours[label]) for label in objects["labels"]]
    boxes = [_inside(box, scale, size) for box in objects["boxes"]]
    points = max(12, round(max(size) / 36))
    written = [font_for(_label_text(objects, i, names), points) for i in range(len(boxes))]
    labels = [(font, shorten(text, font, size[0] - 6)) for font, text in written]
    places = _label_boxes(boxes, labels, size)
    for i in order:
        draw.rectangle(boxes[i], outline=colour_of[i], width=line)
    for i in order:
        _write_name(draw, places[i], labels[i], colour_of[i])
    return picture


def draw_query_points(picture: Image.Image, queries: Sequence[Mapping[str, Any]], width: int, classes: int) -> None:
    """Draw the points that queries sample into a picture, larger where their weight is.

    Args:
        queries: of each `label`, `points` (x, y in pixels of the original image) and `weights` from 0 to 1.
        width: of the original image, pixels.
        classes: how many there are.
    """
    draw, scale, colours = ImageDraw.Draw(picture), picture.width / max(width, 1), colours_of(classes)
    largest = max(2.0, picture.width / 90)
    for query in queries:
        strongest = max(query["weights"], default=1.0) or 1.0
        for (x, y), weight in zip(query["points"], query["weights"], strict=True):
            radius = largest * (weight / strongest) ** 0.5
            spot = (x * scale - radius, y * scale - radius, x * scale + radius, y * scale + radius)
            draw.ellipse(spot, fill=_bright(colours[query["label"]]), outline=(0, 0, 0))


def side_by_side(left: Image.Image, right: Image.Image) -> Image.Image:
    """Return both pictures on one sheet."""
    sheet = Image.new("RGB", (left.width + GAP + right.width, max(left.height, right.height)), PAPER)
    sheet.paste(left, (0, 0))
    sheet.paste(right, (left.width + GAP, 0))
    return sheet


def _inside(box: Sequence[float], scale: float, size: tuple[int, int]) -> Rectangle:
    """Return x1 y1 x2 y2 in pixels of the picture, clipped to it."""
    limits = (*size, *size)
    x1, y1, x2, y2 = (min(max(edge * scale, 0), limit - 1) for edge, limit in zip(box, limits, strict=True))
    return x1, y1, max(x1, x2), max(y1, y2)


def _label_text(objects: Mapping[str, Any], i: int, names: Sequence[str]) -> str:
    """Return the class name of an object, with its score and `(crowd)` where they apply."""
    score = f" {objects['scores'][i]:.0%}" if objects.get("scores") else ""
    crowd = " (crowd)" if objects.get("crowd") and objects["crowd"][i] else ""
    return f"{names[objects['labels'][i]]}{score}{crowd}"


def _label_boxes(boxes: Sequence[Rectangle], labels: Sequence[Label], size: tuple[int, int]) -> list[Rectangle]:
    """Return the rectangles of the labels. Objects come by score, so that the best ones get the best places."""
    taken: list[Rectangle] = []
    for box, label in zip(boxes, labels, strict=True):
        taken.append(_label_box(box, label, size, taken))
    return taken


def _label_box(box: Rectangle, label: Label, size: tuple[int, int], taken: Sequence[Rectangle]) -> Rectangle:
    """Return the rectangle of a label: on its box or at one of its corners, the first that overlaps no other label."""
    (x1, y1, x2, y2), (font, text) = box, label
    left, _, right, bottom = font.getbbox(text)
    wide, high = right - left + 6, bottom + 4
    xs = [max(0, min(x, size[0] - 1 - wide)) for x in (x1, x2 - wide, x2)]
    ys = [y for y in (y1 - high, y1, y2, y2 - high) if 0 <= y <= size[1] - 1 - high] or [max(0, size[1] - 1 - high)]
    places = [(x, y, x + wide, y + high) for x in xs for y in ys]
    return next((place for place in places if not any(_overlap(place, other) for other in taken)), places[0])


def _write_name(draw: ImageDraw.ImageDraw, place: Rectangle, label: Label, colour: Colour) -> None:
    font, text = label
    draw.rectangle(place, fill=colour)
    ink = (0, 0, 0) if 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2] > 128 else (255, 255, 255)
    draw.text((place[0] + 3, place[1] + 1), text, fill=ink, font=font)


def _overlap(a: Rectangle, b: Rectangle) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _bright(colour: Colour) -> Colour:
    """Lighten a colour, so that it stands out from photographs."""
    red, green, blue = (64 + round(value * 191 / 255) for value in colour)
    return red, green, blue


def _decoded(counts: str, size: tuple[int, int]) -> np.ndarray:
    """Decode a mask to (H, W) bool."""
    from faster_coco_eval.core import mask

    return np.asarray(mask.decode({"size": list(size), "counts": counts})).astype(bool)
