"""What a detector got wrong in one image: what it found that is not there, and what it missed.

N detections, G true objects.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fourstage.tasks.detection.boxes import box_iou

SURE = 0.3  # the score from which a detection counts as said
MEETS = 0.5  # intersection over union from which it is at an object; over a crowd region, the share of it inside


@dataclass(frozen=True)
class Errors:
    """Positions in a record and in its truth."""

    false: tuple[tuple[int, int | None], ...]  # a detection, and the object of another class that it is at
    missed: tuple[int, ...]  # objects that no detection is at, of whatever class
    weight: float  # scores of the false detections and one for each object that is missed: what to look at first


def errors_of(record: Mapping[str, Any], sure: float = SURE) -> Errors:
    """The mistakes in one image, by boxes.

    The best detection takes the object of its class that it overlaps most, then the next one; a second detection of an
    object is a mistake. Crowd regions are neither missed, nor is what lies in them false.

    Args:
        record: `boxes` (x1 y1 x2 y2), `labels`, `scores`, best first, and `truth` with `boxes`, `labels`, `crowd`.
        sure: detections with a lower score are left out.
    """
    truth = record["truth"]
    said = [n for n, score in enumerate(record["scores"]) if score >= sure]
    there = [g for g, crowd in enumerate(truth["crowd"]) if not crowd]
    crowds = [g for g, crowd in enumerate(truth["crowd"]) if crowd]
    iou = _table(record["boxes"], said, truth["boxes"], there)
    excused = _inside(record["boxes"], said, truth["boxes"], crowds)
    taken, false = set[int](), list[int]()
    for i, n in enumerate(said):
        fitting = [j for j, g in enumerate(there) if truth["labels"][g] == record["labels"][n] and j not in taken]
        best = max(fitting, key=lambda j: iou[i][j], default=None)
        if best is not None and iou[i][best] >= MEETS:
            taken.add(best)
        elif not excused[i]:
            false.append(i)
    at = {i: max(range(len(there)), key=lambda j: iou[i][j], default=None) for i in false}
    others = {i: j for i, j in at.items() if j is not None and j not in taken and iou[i][j] >= MEETS}
    missed = [there[j] for j in range(len(there)) if j not in taken and j not in others.values()]
    return Errors(
        false=tuple((said[i], there[others[i]] if i in others else None) for i in false),
        missed=tuple(missed),
        weight=sum(record["scores"][said[i]] for i in false) + len(missed),
    )


def _table(boxes: Any, rows: list[int], others: Any, columns: list[int]) -> list[list[float]]:
    """Intersection over union of some boxes with some others."""
    if not rows or not columns:
        return [[] for _ in rows]
    return box_iou(torch.tensor([boxes[n] for n in rows]), torch.tensor([others[g] for g in columns])).tolist()


def _inside(boxes: Any, rows: list[int], regions: Any, columns: list[int]) -> list[bool]:
    """Whether at least half of each box lies in one of the regions."""
    out: list[bool] = []
    for x1, y1, x2, y2 in (boxes[n] for n in rows):
        area = max(x2 - x1, 0) * max(y2 - y1, 0)
        parts = [
            max(min(x2, right) - max(x1, left), 0) * max(min(y2, bottom) - max(y1, top), 0)
            for left, top, right, bottom in (regions[g] for g in columns)
        ]
        out.append(any(part > 0 and part >= MEETS * area for part in parts))
    return out
