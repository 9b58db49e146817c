"""Pictures inside the page: their bytes as text."""

import base64
import io
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from fourstage.report.markup import Markup, tag

SMALL_FILE = 16_384  # bytes; a larger picture goes into the page as a smaller copy
SIDE = 192  # longer side of that copy, pixels
SHARP = 48  # pictures of up to so many pixels a side are shown with sharp pixels


def inline(file: Path, description: str, side: int = SIDE) -> Markup:
    """The picture itself; a large one as a copy whose longer side is `side` pixels."""
    content, kind = file.read_bytes(), "png"
    try:
        with Image.open(io.BytesIO(content)) as image:
            sharp = max(image.size) <= SHARP
            if image.format != "PNG" or len(content) > SMALL_FILE:
                content, kind = _smaller(image, side), "jpeg"
    except (UnidentifiedImageError, OSError):
        return tag("p", "unreadable picture", class_="nothing")
    data = base64.b64encode(content).decode()
    return tag("img", src=f"data:image/{kind};base64,{data}", alt=description, class_="sharp" if sharp else None)


def _smaller(image: Image.Image, side: int) -> bytes:
    copy = image.convert("RGB")
    copy.thumbnail((side, side))
    out = io.BytesIO()
    copy.save(out, "JPEG", quality=85)
    return out.getvalue()
