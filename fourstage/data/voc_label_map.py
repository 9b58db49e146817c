"""The `labelmap.txt` of CVAT's exports in Pascal VOC's layout: the names of the classes and their colours.

A line is `label:red,green,blue:parts:actions`; lines that begin with `#` are comments.
https://docs.cvat.ai/docs/dataset_management/formats/format-smask
"""

from pathlib import Path

from fourstage.data.limits import TEXT_BYTES, decoded, text_lines
from fourstage.files import read_bytes

LABEL_MAP = "labelmap.txt"

Colour = tuple[int, int, int]


def read_label_map(path: Path) -> dict[str, Colour | None]:
    """Return the colour of each class, in the order of the file; None where a line has none.

    Raises:
        ValueError: a line is not of this form, or two classes share a name or a colour.
    """
    colours: dict[str, Colour | None] = {}
    for line in text_lines(decoded(read_bytes(path, TEXT_BYTES), path).encode(), path):
        if line.startswith("#"):
            continue
        name, *rest = line.rsplit(":", 3) if line.count(":") >= 3 else line.split(":")
        colour = _colour(rest[0] if rest else "")
        if not name or (rest and rest[0] and colour is None):
            raise ValueError(f"{path} has the line {line!r:.60}, which is not `label:red,green,blue::`; correct it")
        if name in colours or (colour is not None and colour in colours.values()):
            raise ValueError(f"{path} has the name or the colour of {line!r:.60} twice; give each class its own")
        colours[name] = colour
    return colours


def _colour(text: str) -> Colour | None:
    words = text.split(",")
    if len(words) != 3 or not all(word.strip().isdecimal() and len(word.strip()) <= 3 for word in words):
        return None
    red, green, blue = (int(word) for word in words)
    return (red, green, blue) if max(red, green, blue) < 256 else None
