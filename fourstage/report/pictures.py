"""Draw a prediction beside its image, and contact sheets of images, with PIL alone.

H x W pixels, uint8 RGB.
"""

from collections.abc import Sequence
from functools import lru_cache
from unicodedata import combining, normalize

import numpy as np
from PIL import Image, ImageDraw, ImageFont

PAPER, INK, QUIET, TRACK, ACCENT = (255, 255, 255), (27, 31, 36), (89, 98, 109), (233, 236, 240), (31, 95, 191)
SIDE = 400  # of the square around an image, pixels
MARGIN = 32
BARS = 440  # width of the column of bars
THICK = 12  # of a bar
ROW = 60  # height of one bar with its name
TINY = 64  # images up to this side are enlarged without smoothing, so that their pixels stay visible
CELL = 160  # of a contact sheet
GUESSES = 5

FALLBACKS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial Unicode.ttf", "arial.ttf")  # for letters beyond ASCII

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def draw_prediction(image: np.ndarray, names_and_probabilities: Sequence[tuple[str, float]], title: str) -> Image.Image:
    """Draw the image beside the five most probable classes as bars.

    Args:
        image: (H, W, 3) uint8, 1 x 1 or larger. It is resized to a fixed size and keeps its aspect ratio.
        names_and_probabilities: most probable first, probabilities from 0 to 1; up to five are drawn.
        title: text above the bars, such as the file's name.

    Returns:
        An RGB picture of a fixed size.

    Raises:
        ValueError: `image` is not (H, W, 3) uint8, or empty.
    """
    width, height = MARGIN + SIDE + MARGIN + BARS + MARGIN, MARGIN + SIDE + MARGIN
    sheet = Image.new("RGB", (width, height), PAPER)
    _paste(sheet, image, (MARGIN, MARGIN), SIDE)
    draw, left = ImageDraw.Draw(sheet), MARGIN + SIDE + MARGIN
    write_line(draw, (left, MARGIN - 4), title, 22, width=BARS, ink=INK)
    for i, (name, probability) in enumerate(names_and_probabilities[:GUESSES]):
        _bar(sheet, (left, MARGIN + 56 + i * (ROW + 10)), name, probability, INK if i == 0 else QUIET)
    return sheet


def contact_sheet(images: Sequence[np.ndarray], captions: Sequence[str], columns: int, side: int = CELL) -> Image.Image:
    """Draw images in rows, each with its caption below it.

    Args:
        images: (H, W, 3) uint8 each, of any sizes.
        captions: one per image; long ones are shortened.
        columns: images per row; the last row may have fewer.
        side: of the square around each image, pixels.

    Raises:
        ValueError: there is no image, not one caption per image, no column, or an image has another form.
    """
    if not images or len(images) != len(captions) or columns < 1:
        raise ValueError(
            f"a contact sheet needs images, a caption for each and a column or more; got {len(images)} images, "
            f"{len(captions)} captions and {columns} columns"
        )
    columns, gap, line = min(columns, len(images)), 20, 24
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (gap + columns * (side + gap), gap + rows * (side + line + gap)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        x, y = gap + i % columns * (side + gap), gap + i // columns * (side + line + gap)
        _paste(sheet, image, (x, y), side)
        write_line(draw, (x, y + side + 5), caption, 15, width=side, ink=INK)
    return sheet


def shorten(text: str, font: Font, width: float) -> str:
    """Return the text in one line; where it is wider than `width` pixels, an ellipsis replaces its end."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    low, high = 0, len(text)  # the length of the longest beginning that fits is in [low, high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if font.getlength(text[:middle].rstrip() + "…") <= width else (low, middle)
    return text[:low].rstrip() + "…"


def write_line(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], text: str, size: int, *, width: float, ink: tuple[int, int, int]
) -> None:
    """Draw one line of text, shortened to `width` pixels."""
    font, text = font_for(text, size)
    draw.text(corner, shorten(text, font, width), fill=ink, font=font)


def font_for(text: str, size: int) -> tuple[Font, str]:
    """Return a font and the text. PIL's font has ASCII alone; without a system font, other letters lose accents."""
    font, complete = _font(size, text.isascii())
    if not complete:
        text = "".join(letter for letter in normalize("NFKD", text) if not combining(letter))
    return font, text


@lru_cache(maxsize=32)
def _font(size: int, ascii_alone: bool) -> tuple[Font, bool]:
    """Return a font, and whether it has the letters that are asked for."""
    for name in () if ascii_alone else FALLBACKS:
        try:
            return ImageFont.truetype(name, size), True
        except OSError:
            continue
    return ImageFont.load_default(size=size), ascii_alone


def _bar(sheet: Image.Image, corner: tuple[int, int], name: str, probability: float, ink: tuple[int, int, int]) -> None:
    """Draw a name and its probability above a bar."""
    (x, y), draw, font = corner, ImageDraw.Draw(sheet), ImageFont.load_default(size=18)
    share = f"{100 * probability:.1f} %"
    write_line(draw, corner, name, 18, width=BARS - font.getlength(share) - 24, ink=ink)
    draw.text((x + BARS, y), share, fill=ink, font=font, anchor="ra")
    _pill(sheet, (x, y + 30), BARS, TRACK)
    length = round(BARS * min(max(probability, 0.0), 1.0))
    if length:
        _pill(sheet, (x, y + 30), max(length, THICK), ACCENT if ink == INK else QUIET)


def _pill(sheet: Image.Image, corner: tuple[int, int], length: int, colour: tuple[int, int, int]) -> None:
    """Draw a bar with round ends, four times as large and then reduced, because PIL's edges are jagged."""
    shape = Image.new("L", (4 * length, 4 * THICK))
    ImageDraw.Draw(shape).rounded_rectangle((0, 0, 4 * length - 1, 4 * THICK - 1), radius=2 * THICK, fill=255)
    sheet.paste(colour, corner, shape.resize((length, THICK), Image.Resampling.BOX))


def _paste(sheet: Image.Image, image: np.ndarray, corner: tuple[int, int], side: int) -> None:
    """Fit the image into a square of `side` pixels, centred on a light grey background."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ValueError(f"a picture must be (H, W, 3) uint8; got {image.shape} {image.dtype}; convert it to RGB first")
    height, width = image.shape[:2]
    scale = side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    sharp = max(height, width) <= TINY
    filter_ = Image.Resampling.NEAREST if sharp else Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.LANCZOS
    fitted = Image.fromarray(np.ascontiguousarray(image)).resize(size, filter_, reducing_gap=3.0)
    x, y = corner[0] + (side - size[0]) // 2, corner[1] + (side - size[1]) // 2
    ImageDraw.Draw(sheet).rectangle((*corner, corner[0] + side - 1, corner[1] + side - 1), fill=(246, 247, 249))
    sheet.paste(fitted, (x, y))
