"""Embed pictures in the page as data URLs."""

import base64
import io
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from fourstage.report.markup import Markup, tag

SMALL_FILE = 16_384  # bytes; a larger file is embedded as a smaller copy
SIDE = 192  # longer side of that copy, pixels
SHARP = 48  # pixels a side; pictures up to this size are enlarged without smoothing


def inline(file: Path, description: str, side: int = SIDE) -> Markup:
    """Return an <img> with the picture; a large file as a copy whose longer side is `side` pixels."""
    content, form = file.read_bytes(), "png"
    try:
        with Image.open(io.BytesIO(content)) as image:
            sharp = max(image.size) <= SHARP
            if image.format != "PNG" or len(content) > SMALL_FILE:
                content, form = _smaller(image, side), "jpeg"
    except (UnidentifiedImageError, OSError):
        return tag("p", "unreadable picture", class_="nothing")
    data = base64.b64encode(content).decode()
    return tag("img", src=f"data:image/{form};base64,{data}", alt=description, class_="sharp" if sharp else None)


def _smaller(image: Image.Image, side: int) -> bytes:
    copy = image.convert("RGB")
    copy.thumbnail((side, side))
    out = io.BytesIO()
    copy.save(out, "JPEG", quality=85)
    return out.getvalue()
