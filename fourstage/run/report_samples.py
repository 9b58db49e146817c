"""Pictures of single images that a run folder keeps for its report."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fourstage.data.sample import Dataset, Sample
from fourstage.files import write_file, write_text

if TYPE_CHECKING:
    from PIL.Image import Image

Draw = Callable[[Sample, np.ndarray], "tuple[Image, dict[str, Any]]"]


def keep(folder: Path, val: Dataset, ids: Sequence[str], draw: Draw) -> None:
    """Write pictures of these images into `samples/` of a run folder, with an index for the report.

    Args:
        draw: takes a sample and its image, (H, W, 3) uint8; returns the picture and the values on its card.
    """
    index = {val.id(i): i for i in range(len(val))}
    (folder / "samples").mkdir(exist_ok=True)
    lines = []
    for number, id in enumerate(ids):
        sample, name = val.sample(index[id]), f"{number:03}.png"
        assert isinstance(sample.image, np.ndarray), "data sets give arrays"
        picture, values = draw(sample, sample.image)
        write_file(folder / "samples" / name, lambda file, p=picture: p.save(file, "PNG"))
        lines.append({"file": name, "id": id, **values})
    write_text(folder / "samples" / "index.json", json.dumps(lines))


def worst_and_others(worst: Sequence[str], every: Iterable[str], most: int) -> list[str]:
    """Return up to `most` ids: others than the worst, drawn evenly over the data, and at most a quarter of the worst.

    Images that are drawn evenly show how good the network is, the worst ones what it finds hard.
    """
    last = list(worst[: most // 4])
    rest, left = sorted(set(every) - set(last)), most - len(last)
    return drawn_evenly(rest, left) + last


def drawn_evenly(ids: Sequence[str], most: int) -> list[str]:
    """Return up to `most` of some ids, from the first on, at even distances."""
    count = min(most, len(ids))
    return [ids[i * len(ids) // count] for i in range(count)]
