"""Draw label maps: a colour for each class over the image, with a legend. H x W pixels, C classes."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from fourstage.report.pictures import INK, MARGIN, PAPER, write_line

Colours = Sequence[tuple[int, int, int]]

IGNORED = (255, 255, 255)
OPACITY = 0.6
SIDE, LARGEST = 360, 1024  # smallest and largest side of an image in a sheet, pixels
SWATCH, LINE, LEGEND = 18, 26, 220
GAP = 8
HATCH = 10  # pixels from one stripe to the next
EDGE = 20  # space left of a legend below a sheet
ROWS = 40  # most rows of a legend


def colours_of(classes: int, palette: Colours | None = None) -> list[tuple[int, int, int]]:
    """Return a colour for each class: the palette's where it has enough colours, else well separated ones."""
    if palette is not None and len(palette) >= classes:
        return [(int(r), int(g), int(b)) for r, g, b in palette[:classes]]
    return [_spread(i) for i in range(classes)]


def _spread(i: int) -> tuple[int, int, int]:
    """Deal the bits of a number to red, green and blue, most significant first, as Pascal VOC colours its classes."""
    colour, i = [0, 0, 0], i + 1
    for place in range(7, -1, -1):
        for channel in range(3):
            colour[channel] |= (i >> channel & 1) << place
        i >>= 3
    return colour[0], colour[1], colour[2]


def index_picture(labels_HW: np.ndarray, colours: Colours) -> Image.Image:
    """Return the label map as an indexed image with a palette: its pixels are the labels."""
    picture = Image.fromarray(np.ascontiguousarray(labels_HW, dtype=np.uint8))
    picture.putpalette(_table(colours).reshape(-1).tolist())
    return picture


def overlay(image_HW3: np.ndarray, labels_HW: np.ndarray, colours: Colours) -> np.ndarray:
    """Return (H, W, 3) uint8: the image below the colours of its classes; ignored pixels stay as they are."""
    coloured_HW3 = _table(colours)[labels_HW].astype(np.float32)
    mixed_HW3 = (1 - OPACITY) * image_HW3.astype(np.float32) + OPACITY * coloured_HW3
    counted_HW1 = (labels_HW < len(colours))[..., None]
    return np.where(counted_HW1, mixed_HW3, image_HW3).round().clip(0, 255).astype(np.uint8)


def truth_and_prediction(
    image_HW3: np.ndarray, truth_HW: np.ndarray, guess_HW: np.ndarray, colours: Colours, side: int = 256
) -> Image.Image:
    """Draw the image, the true label map over it and the predicted one over it, side by side."""
    plain = fitted(image_HW3, side)
    pictures = [plain, *(_coloured(plain, labels_HW, colours) for labels_HW in (truth_HW, guess_HW))]
    width, height = pictures[0].size
    sheet = Image.new("RGB", (3 * width + 2 * GAP, height), PAPER)
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i * (width + GAP), 0))
    return sheet


def overlay_with_legend(
    image_HW3: np.ndarray, labels_HW: np.ndarray, names: Sequence[str], colours: Colours, title: str
) -> Image.Image:
    """Draw the image, its label map over it, and the names of the classes that occur, largest first."""
    plain = fitted(image_HW3, min(max(SIDE, *labels_HW.shape), LARGEST))
    pictures = [plain, _coloured(plain, labels_HW, colours)]
    labels, pixels = np.unique(labels_HW[labels_HW < len(names)], return_counts=True)
    order = [int(labels[i]) for i in np.argsort(-pixels, kind="stable")]
    shares = {int(c): n / labels_HW.size for c, n in zip(labels, pixels, strict=True)}
    width, height = pictures[0].size
    more = len(order) - ROWS
    tall = max(height, LINE * (min(len(order), ROWS) + (more > 0)))
    size = (4 * MARGIN + 2 * width + LEGEND, 2 * MARGIN + LINE + tall)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    write_line(draw, (MARGIN, MARGIN // 2), title, 18, width=size[0] - 2 * MARGIN, ink=INK)
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (MARGIN + i * (width + MARGIN), MARGIN + LINE))
    left = 3 * MARGIN + 2 * width
    for row, c in enumerate(order[:ROWS]):
        top = MARGIN + LINE + row * LINE
        draw.rectangle((left, top, left + SWATCH, top + SWATCH), fill=tuple(colours[c]), outline=INK)
        text = f"{names[c]}  {shares[c]:.1%}"
        write_line(draw, (left + SWATCH + GAP, top), text, 15, width=LEGEND - SWATCH - GAP, ink=INK)
    if more > 0:
        write_line(draw, (left, MARGIN + LINE + ROWS * LINE), f"and {more} more", 15, width=LEGEND, ink=INK)
    return sheet


def fitted(image_HW3: np.ndarray, side: int) -> Image.Image:
    """Resize the image to `side` pixels on its longer side; a small one is enlarged without smoothing."""
    height, width = image_HW3.shape[:2]
    scale = side / max(height, width)
    filter_ = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return Image.fromarray(np.ascontiguousarray(image_HW3)).resize(size, filter_)


def labelled(image_HW3: np.ndarray, labels_HW: np.ndarray, colours: Colours, side: int) -> Image.Image:
    """Draw the label map over the image, with `side` pixels on its longer side; ignored pixels are hatched."""
    plain = fitted(image_HW3, side)
    labels = Image.fromarray(np.ascontiguousarray(labels_HW, dtype=np.uint8))
    resized_HW = np.asarray(labels.resize(plain.size, Image.Resampling.NEAREST))
    return Image.fromarray(_hatched(overlay(np.asarray(plain), resized_HW, colours), resized_HW >= len(colours)))


def add_legend(sheet: Image.Image, names: Sequence[tuple[str, tuple[int, int, int]]], ignored: bool) -> Image.Image:
    """Add a legend below the sheet, in columns.

    Args:
        names: classes with their colours; those beyond a limit are only counted.
        ignored: add an entry for the hatched, ignored pixels.
    """
    columns = max(1, (sheet.width - MARGIN) // LEGEND)
    listed = names[: columns * ROWS - 2]
    more = len(names) - len(listed)
    lines = -(-(len(listed) + (more > 0) + ignored) // columns)
    out = Image.new("RGB", (sheet.width, sheet.height + lines * LINE + MARGIN // 2), PAPER)
    out.paste(sheet, (0, 0))
    draw = ImageDraw.Draw(out)

    def place(row: int) -> tuple[int, int]:
        return EDGE + row % columns * LEGEND, sheet.height + row // columns * LINE

    def write(row: int, text: str) -> None:
        x, y = place(row)
        write_line(draw, (x + SWATCH + GAP, y), text, 15, width=LEGEND - SWATCH - 2 * GAP, ink=INK)

    for row, (name, colour) in enumerate(listed):
        x, y = place(row)
        draw.rectangle((x, y, x + SWATCH, y + SWATCH), fill=tuple(colour), outline=INK)
        write(row, name)
    if more > 0:
        write(len(listed), f"and {more} more")
    if ignored:
        row = len(listed) + (more > 0)
        swatch_HW3 = np.full((SWATCH + 1, SWATCH + 1, 3), IGNORED, dtype=np.uint8)
        out.paste(Image.fromarray(_hatched(swatch_HW3, np.ones(swatch_HW3.shape[:2], dtype=bool))), place(row))
        write(row, "ignored, like padding")
    return out


def _hatched(image_HW3: np.ndarray, where_HW: np.ndarray) -> np.ndarray:
    """Draw thin dark and light stripes, which are visible on any image; between them the image stays as it is."""
    rows_H1, columns_1W = np.ogrid[: image_HW3.shape[0], : image_HW3.shape[1]]
    stripe_HW = (rows_H1 + columns_1W) % HATCH
    out_HW3 = image_HW3.copy()
    out_HW3[where_HW & (stripe_HW < 2)] = INK
    out_HW3[where_HW & ((stripe_HW == 2) | (stripe_HW == 3))] = PAPER
    return out_HW3


def _table(colours: Colours) -> np.ndarray:
    """Return (256, 3) uint8: a colour for every byte."""
    table = np.full((256, 3), IGNORED, dtype=np.uint8)
    table[: len(colours)] = np.asarray(colours, dtype=np.uint8).reshape(-1, 3)
    return table


def _coloured(plain: Image.Image, labels_HW: np.ndarray, colours: Colours) -> Image.Image:
    """Return the image, which has its final size, below the colours of its classes."""
    labels = Image.fromarray(np.ascontiguousarray(labels_HW, dtype=np.uint8))
    labels = labels.resize(plain.size, Image.Resampling.NEAREST)
    return Image.fromarray(overlay(np.asarray(plain), np.asarray(labels), colours))
