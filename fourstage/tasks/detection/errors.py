"""False detections and missed objects of one image. N detections, G objects."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fourstage.tasks.detection.boxes import box_iou
from fourstage.tasks.detection.shown import SHOWN_SCORE

# least overlap (IoU) of a detection with its object; with a crowd region, least share of the box inside
SAME_OBJECT = 0.5


@dataclass(frozen=True)
class Errors:
    """Indices of detections in a record and of objects in its ground truth."""

    false: tuple[tuple[int, int | None], ...]  # a detection, and the object of another class that it overlaps
    missed: tuple[int, ...]  # objects that no detection of any class overlaps
    weight: float  # sum of the scores of false detections, plus 1 for each missed object: ranks images


def find_errors(record: Mapping[str, Any], min_score: float = SHOWN_SCORE) -> Errors:
    """Return the errors in one image, by boxes.

    Detections are matched in the order of their scores, each to the object of its class that it overlaps most and that
    is still free; a second detection of an object is false. A crowd region is never missed, and a detection in it is
    never false.

    Args:
        record: `boxes` (x1 y1 x2 y2), `labels`, `scores`, best first, and `truth` with `boxes`, `labels`, `crowd`.
        min_score: detections with a lower score are left out.
    """
    truth = record["truth"]
    detected = [n for n, score in enumerate(record["scores"]) if score >= min_score]
    objects = [g for g, crowd in enumerate(truth["crowd"]) if not crowd]
    crowds = [g for g, crowd in enumerate(truth["crowd"]) if crowd]
    iou = _table(record["boxes"], detected, truth["boxes"], objects)
    excused = _inside(record["boxes"], detected, truth["boxes"], crowds)
    taken, false = set[int](), list[int]()
    for i, n in enumerate(detected):
        fitting = [j for j, g in enumerate(objects) if truth["labels"][g] == record["labels"][n] and j not in taken]
        best = max(fitting, key=lambda j: iou[i][j], default=None)
        if best is not None and iou[i][best] >= SAME_OBJECT:
            taken.add(best)
        elif not excused[i]:
            false.append(i)
    at = {i: max(range(len(objects)), key=lambda j: iou[i][j], default=None) for i in false}
    others = {i: j for i, j in at.items() if j is not None and j not in taken and iou[i][j] >= SAME_OBJECT}
    missed = [objects[j] for j in range(len(objects)) if j not in taken and j not in others.values()]
    return Errors(
        false=tuple((detected[i], objects[others[i]] if i in others else None) for i in false),
        missed=tuple(missed),
        weight=sum(record["scores"][detected[i]] for i in false) + len(missed),
    )


def _table(boxes: Any, rows: list[int], others: Any, columns: list[int]) -> list[list[float]]:
    """Return the intersection over union of some boxes with some others."""
    if not rows or not columns:
        return [[] for _ in rows]
    return box_iou(torch.tensor([boxes[n] for n in rows]), torch.tensor([others[g] for g in columns])).tolist()


def _inside(boxes: Any, rows: list[int], regions: Any, columns: list[int]) -> list[bool]:
    """Return for each box whether at least half of it is in one of the regions."""
    out: list[bool] = []
    for x1, y1, x2, y2 in (boxes[n] for n in rows):
        area = max(x2 - x1, 0) * max(y2 - y1, 0)
        shares = [
            max(min(x2, right) - max(x1, left), 0) * max(min(y2, bottom) - max(y1, top), 0)
            for left, top, right, bottom in (regions[g] for g in columns)
        ]
        out.append(any(share > 0 and share >= SAME_OBJECT * area for share in shares))
    return out
