"""Boxes, masks, names and scores over images. H x W pixels, N objects."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fourstage.report.label_maps import GAP, colours_of
from fourstage.report.pictures import PAPER, shorten

OPACITY = 0.45
LEAST = 480  # pixels: smaller images are enlarged, for names to be read
MOST = 1600


def draw_objects(image_HW3: np.ndarray, objects: Mapping[str, Any], classes: Sequence[str]) -> Image.Image:
    """The image with objects over it, those of the best scores on top.

    Args:
        image_HW3: uint8.
        objects: `boxes` (x1 y1 x2 y2, pixels), `labels`, perhaps `scores` and `masks` (COCO's compressed run lengths).
    """
    height, width = image_HW3.shape[:2]
    names, colours = list(classes), colours_of(len(classes))
    order = range(len(objects["labels"]) - 1, -1, -1)
    pixels = image_HW3.astype(np.float32)
    for i in order if objects.get("masks") else ():
        mask_HW = _decoded(objects["masks"][i], (height, width))
        pixels[mask_HW] = (1 - OPACITY) * pixels[mask_HW] + OPACITY * np.array(_bright(colours[objects["labels"][i]]))
    scale = min(max(LEAST / max(height, width), 1.0), MOST / max(height, width)) if max(height, width) else 1.0
    how = Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.BICUBIC
    size = max(1, round(width * scale)), max(1, round(height * scale))
    picture = Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8)).resize(size, how)
    draw, line = ImageDraw.Draw(picture), max(2, round(max(size) / 320))
    font = ImageFont.load_default(size=max(12, round(max(size) / 36)))
    for i in order:
        label, box = objects["labels"][i], [side * scale for side in objects["boxes"][i]]
        score = objects["scores"][i] if objects.get("scores") else None
        text = names[label] if score is None else f"{names[label]} {score:.0%}"
        _outline(draw, box, size, text, _bright(colours[label]), line, font)
    return picture


def side_by_side(left: Image.Image, right: Image.Image) -> Image.Image:
    sheet = Image.new("RGB", (left.width + GAP + right.width, max(left.height, right.height)), PAPER)
    sheet.paste(left, (0, 0))
    sheet.paste(right, (left.width + GAP, 0))
    return sheet


def _outline(
    draw: ImageDraw.ImageDraw,
    box: Sequence[float],
    size: tuple[int, int],
    text: str,
    colour: tuple[int, int, int],
    line: int,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    """A box with its name in the corner, inside the picture."""
    x1, y1, x2, y2 = (min(max(value, 0), limit - 1) for value, limit in zip(box, (*size, *size), strict=True))
    draw.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=colour, width=line)
    text = shorten(text, font, size[0])
    left, _, right, bottom = font.getbbox(text)
    wide, high = right - left + 6, bottom + 4
    x, y = min(x1, size[0] - wide), y1 - high if y1 >= high else y1
    draw.rectangle((x, y, x + wide, y + high), fill=colour)
    ink = (0, 0, 0) if 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2] > 128 else (255, 255, 255)
    draw.text((x + 3, y + 1), text, fill=ink, font=font)


def _bright(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    """A colour that stands out from photographs: nothing of it is dark."""
    red, green, blue = (64 + round(value * 191 / 255) for value in colour)
    return red, green, blue


def _decoded(counts: str, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool."""
    from faster_coco_eval.core import mask

    return np.asarray(mask.decode({"size": list(size), "counts": counts})).astype(bool)
