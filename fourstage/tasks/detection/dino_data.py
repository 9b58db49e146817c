"""What the objects of the training data ask of a DINO: its number of queries, and what it cannot learn."""

from collections.abc import Mapping
from inspect import signature
from typing import Any

from fourstage.plurals import plural
from fourstage.tasks.detection.dino import DINO

FEWEST, MOST = 100, 900  # queries that follow the data; more where an image has more than half as many objects


def queries_for(objects: int) -> int:
    """Return the number of queries that suits data whose fullest image has `objects` objects: ten for each.

    COCO's fullest image has 93, and DINO 900 queries.
    """
    return max(FEWEST, min(10 * objects, MOST), 2 * objects)


def notes_on_objects(arguments: Mapping[str, Any], data: str, most: int) -> list[str]:
    """Return one sentence for each limit of the detector that an image of `data` with `most` objects exceeds.

    Args:
        arguments: of `DINO`, as far as they are set.
    """
    defaults = {name: value.default for name, value in signature(DINO).parameters.items()}
    queries, denoising = ({**defaults, **arguments}[name] for name in ("queries", "denoising"))
    notes = []
    if isinstance(queries, int) and most > queries:
        notes.append(
            f"an image of {data} has {most} objects, and each of {queries} queries detects one: training stops there; "
            f"add method_args.queries=auto."
        )
    if 0 < denoising < most:
        notes.append(
            f"denoising learns from {plural(denoising, 'object')} of an image, and one has {most}: it draws from these."
        )
    return notes
