"""Boxes, masks, names and scores over images. H x W pixels, N objects."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fourstage.report.label_maps import GAP, colours_of
from fourstage.report.pictures import PAPER, Font, shorten

Tag = tuple[float, float, float, float]  # x1 y1 x2 y2, pixels of the picture
Colour = tuple[int, int, int]

OPACITY = 0.45
LEAST = 480  # pixels: smaller images are enlarged, for names to be read
MOST = 1600


def draw_objects(
    image_HW3: np.ndarray, objects: Mapping[str, Any], classes: Sequence[str], side: int | None = None
) -> Image.Image:
    """The image with objects over it, those of the best scores on top.

    Args:
        image_HW3: uint8.
        objects: `boxes` (x1 y1 x2 y2, pixels), `labels`, perhaps `scores`, `crowd` (whether it is a region of many) and
            `masks` (COCO's compressed run lengths).
        side: of the picture, the longer one, pixels; None: that of the image, within limits.
    """
    height, width = image_HW3.shape[:2]
    names, colours = list(classes), colours_of(len(classes))
    order = range(len(objects["labels"]) - 1, -1, -1)
    pixels = image_HW3.astype(np.float32)
    for i in order if objects.get("masks") else ():
        mask_HW = _decoded(objects["masks"][i], (height, width))
        pixels[mask_HW] = (1 - OPACITY) * pixels[mask_HW] + OPACITY * np.array(_bright(colours[objects["labels"][i]]))
    longer = max(height, width, 1)
    scale = side / longer if side else min(max(LEAST / longer, 1.0), MOST / longer)
    how = Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.BICUBIC
    size = max(1, round(width * scale)), max(1, round(height * scale))
    picture = Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8)).resize(size, how)
    draw, line = ImageDraw.Draw(picture), max(2, round(max(size) / 320))
    font = ImageFont.load_default(size=max(12, round(max(size) / 36)))
    colour_of = [_bright(colours[label]) for label in objects["labels"]]
    boxes = [_inside(box, scale, size) for box in objects["boxes"]]
    texts = [shorten(_said(objects, i, names), font, size[0] - 6) for i in range(len(boxes))]
    places = _places(boxes, texts, font, size)
    for i in order:
        draw.rectangle(boxes[i], outline=colour_of[i], width=line)
    for i in order:
        _write_name(draw, places[i], texts[i], colour_of[i], font)
    return picture


def side_by_side(left: Image.Image, right: Image.Image) -> Image.Image:
    sheet = Image.new("RGB", (left.width + GAP + right.width, max(left.height, right.height)), PAPER)
    sheet.paste(left, (0, 0))
    sheet.paste(right, (left.width + GAP, 0))
    return sheet


def _inside(box: Sequence[float], scale: float, size: tuple[int, int]) -> Tag:
    """x1 y1 x2 y2 in pixels of the picture, on it as a whole."""
    limits = (*size, *size)
    x1, y1, x2, y2 = (min(max(edge * scale, 0), limit - 1) for edge, limit in zip(box, limits, strict=True))
    return x1, y1, max(x1, x2), max(y1, y2)


def _said(objects: Mapping[str, Any], i: int, names: Sequence[str]) -> str:
    """The name of an object, and its score or that it is a crowd where that is known."""
    score = f" {objects['scores'][i]:.0%}" if objects.get("scores") else ""
    crowd = " (crowd)" if objects.get("crowd") and objects["crowd"][i] else ""
    return f"{names[objects['labels'][i]]}{score}{crowd}"


def _places(boxes: Sequence[Tag], texts: Sequence[str], font: Font, size: tuple[int, int]) -> list[Tag]:
    """Where the names stand; the first ones, of the best scores, have the choice."""
    taken: list[Tag] = []
    for box, text in zip(boxes, texts, strict=True):
        taken.append(_place_name(box, text, font, size, taken))
    return taken


def _place_name(box: Tag, text: str, font: Font, size: tuple[int, int], taken: Sequence[Tag]) -> Tag:
    """Where a name stands in the picture: on its box or as near to a corner of it as no other name is."""
    x1, y1, x2, y2 = box
    left, _, right, bottom = font.getbbox(text)
    wide, high = right - left + 6, bottom + 4
    xs = [max(0, min(x, size[0] - 1 - wide)) for x in (x1, x2 - wide, x2)]
    ys = [y for y in (y1 - high, y1, y2, y2 - high) if 0 <= y <= size[1] - 1 - high] or [max(0, size[1] - 1 - high)]
    places = [(x, y, x + wide, y + high) for x in xs for y in ys]
    return next((place for place in places if not any(_overlap(place, other) for other in taken)), places[0])


def _write_name(draw: ImageDraw.ImageDraw, place: Tag, text: str, colour: Colour, font: Font) -> None:
    draw.rectangle(place, fill=colour)
    ink = (0, 0, 0) if 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2] > 128 else (255, 255, 255)
    draw.text((place[0] + 3, place[1] + 1), text, fill=ink, font=font)


def _overlap(a: Tag, b: Tag) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _bright(colour: Colour) -> Colour:
    """A colour that stands out from photographs: nothing of it is dark."""
    red, green, blue = (64 + round(value * 191 / 255) for value in colour)
    return red, green, blue


def _decoded(counts: str, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool."""
    from faster_coco_eval.core import mask

    return np.asarray(mask.decode({"size": list(size), "counts": counts})).astype(bool)
