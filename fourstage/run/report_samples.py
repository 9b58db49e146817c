"""Single images as a run's folder keeps them for its report, and as a line about one names what is in it."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fourstage.data.sample import Dataset, Sample
from fourstage.engine.state import write_text, write_whole

if TYPE_CHECKING:
    from PIL.Image import Image

NAMED = 5  # what one line about an image names
Draw = Callable[[Sample, np.ndarray], "tuple[Image, dict[str, Any]]"]


def keep(folder: Path, val: Dataset, ids: Sequence[str], draw: Draw) -> None:
    """Write pictures of these images into `samples/` of a run's folder, and what is said of them.

    Args:
        draw: gives the picture of a sample and its image, (H, W, 3) uint8, and what its card in the report says.
    """
    index = {val.id(i): i for i in range(len(val))}
    (folder / "samples").mkdir(exist_ok=True)
    lines = []
    for number, id in enumerate(ids):
        sample, name = val.sample(index[id]), f"{number:03}.png"
        assert isinstance(sample.image, np.ndarray), "data sets give arrays"
        picture, said = draw(sample, sample.image)
        write_whole(folder / "samples" / name, lambda file, p=picture: p.save(file, "PNG"))
        lines.append({"file": name, "id": id, **said})
    write_text(folder / "samples" / "index.json", json.dumps(lines))


def worst_and_others(worst: Sequence[str], every: Iterable[str], most: int) -> list[str]:
    """Of `worst` the first, half of `most` at most, and others drawn evenly over the data."""
    first = list(worst[: most // 2])
    rest, left = sorted(set(every) - set(first)), most - len(first)
    return first + rest[:: max(1, len(rest) // left)][:left]


def in_a_line(parts: Sequence[str]) -> str:
    """The first few of them, and how many more there are."""
    more = f"   and {len(parts) - NAMED} more" if len(parts) > NAMED else ""
    return "   ".join(parts[:NAMED]) + more
