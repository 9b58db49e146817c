"""COCO's average precision of boxes and masks, by faster-coco-eval. Numbers equal pycocotools'.

T thresholds of intersection over union, R points of recall, K classes, A ranges of area, M limits on detections.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Record = Mapping[str, Any]
Kind = Literal["box", "mask"]

LIMITS = (1, 10, 100)  # detections of one class in one image that count: COCO's own
MMDET_LIMITS = (100, 300, 1000)  # MMDetection's, under which AP50, AP75 and those by size count 1,000
SIZES = {"s": "small", "m": "medium", "l": "large"}  # boundaries are 32 x 32 and 96 x 96 pixels
MAIN_LIMIT = 100  # of the mean AP, whatever the limits are
UNKNOWN = -1.0  # a metric of something that the truth does not have


@dataclass(frozen=True, eq=False)
class Measured:
    """What one evaluation came to. -1 stands where the truth has no such object."""

    kind: Kind
    classes: tuple[str, ...]
    limits: tuple[int, ...]
    precision_TRKAM: np.ndarray
    recall_TKAM: np.ndarray
    scores_TRKAM: np.ndarray  # the score at which a recall is reached
    counts_K: np.ndarray  # objects that are no crowd

    def metrics(self) -> dict[str, float]:
        """COCO's twelve numbers in per cent, as `box_map`, `box_map50`, ...; `UNKNOWN` where there is no such object.

        `map` averages over ten thresholds from 0.50 to 0.95, with up to 100 detections of a class in an image; the
        others count up to the last limit, and `recall<M>` up to M. `s`, `m`, `l` are small, medium and large objects.
        """
        last, all_sizes = len(self.limits) - 1, 0
        main = self.limits.index(MAIN_LIMIT) if MAIN_LIMIT in self.limits else last
        out = {
            "map": self._ap(slice(None), slice(None), all_sizes, main),
            "map50": self._ap(0, slice(None), all_sizes, last),
            "map75": self._ap(5, slice(None), all_sizes, last),
        }
        out |= {f"map_{s}": self._ap(slice(None), slice(None), a, last) for a, s in enumerate(SIZES, 1)}
        out |= {f"recall{n}": _mean(self.recall_TKAM[:, :, all_sizes, m]) for m, n in enumerate(self.limits)}
        out |= {f"recall_{s}": _mean(self.recall_TKAM[:, :, a, last]) for a, s in enumerate(SIZES, 1)}
        return {f"{self.kind}_{name}": value for name, value in out.items()}

    def per_class(self) -> list[dict[str, Any]]:
        """For each class its name, the number of objects, and in per cent `<kind>_map`, `<kind>_map50`, ...; None
        where the truth has no such object.
        """
        last = len(self.limits) - 1
        main = self.limits.index(MAIN_LIMIT) if MAIN_LIMIT in self.limits else last
        rows: list[dict[str, Any]] = []
        for k, name in enumerate(self.classes):
            values = {
                "map": self._ap(slice(None), k, 0, main),
                "map50": self._ap(0, k, 0, last),
                "map75": self._ap(5, k, 0, last),
                **{f"map_{s}": self._ap(slice(None), k, a, last) for a, s in enumerate(SIZES, 1)},
                "recall": _mean(self.recall_TKAM[:, k, 0, last]),
            }
            known = {f"{self.kind}_{key}": None if v == UNKNOWN else v for key, v in values.items()}
            rows.append({"name": name, "count": int(self.counts_K[k]), **known})
        return rows

    def curves(self) -> dict[str, Any]:
        """Precision over recall, for pictures.

        Returns:
            `recall`: the R points, 0 to 1. `mean`: for the thresholds "0.50", "0.75" and "0.50:0.95" the precision at
            each point, the mean of all classes that the truth has. `per_class`: by name, the precision at threshold
            0.50, and `scores`: by name, the score that reaches each recall there (0 where none does).
        """
        precision_TRK, scores_RK = self.precision_TRKAM[:, :, :, 0, -1], self.scores_TRKAM[0, :, :, 0, -1]
        known_K = np.flatnonzero((precision_TRK > UNKNOWN).all(axis=(0, 1)))
        precision_TRK = precision_TRK[:, :, known_K]
        means_TR = precision_TRK.mean(axis=2) if len(known_K) else np.zeros(precision_TRK.shape[:2])
        mean = {"0.50": means_TR[0], "0.75": means_TR[5], "0.50:0.95": means_TR.mean(axis=0)}
        names = [self.classes[k] for k in known_K]
        return {
            "recall": _short(np.linspace(0, 1, precision_TRK.shape[1])),
            "mean": {name: _short(values) for name, values in mean.items()},
            "per_class": {name: _short(precision_TRK[0, :, i]) for i, name in enumerate(names)},
            "scores": {name: _short(scores_RK[:, k].clip(0)) for name, k in zip(names, known_K, strict=True)},
        }

    def _ap(self, threshold: int | slice, classes: int | slice, area: int, limit: int) -> float:
        return _mean(self.precision_TRKAM[threshold, :, classes, area, limit])


def measure(
    records: Mapping[str, Record], classes: Sequence[str], *, limits: Sequence[int] = LIMITS
) -> dict[Kind, Measured]:
    """Evaluate what was predicted for a set of images.

    Args:
        records: by the sample's id, in any order. Each has `boxes` (x1 y1 x2 y2 in pixels of the image on disk),
            `labels`, `scores`, perhaps `masks` (COCO's compressed run lengths as strings), and what it is scored
            against as `truth`, see `ObjectTable.reference`.
        classes: names, in the order of the labels.
        limits: detections of one class in one image that count, ascending: `LIMITS` or `MMDET_LIMITS`.

    Returns:
        "box", and "mask" where both the predictions and the truth have masks.

    Raises:
        ValueError: records without truth, impossible limits; the library is missing.
    """
    if not limits or list(limits) != sorted(set(limits)) or min(limits) < 1:
        raise ValueError(f"limits on detections ascend and are above 0, such as [1, 10, 100]; got {list(limits)}")
    ordered = _ordered(records)
    masks = bool(ordered) and all("masks" in record and "masks" in record["truth"] for record in ordered)
    kinds: tuple[Kind, ...] = ("box", "mask") if masks else ("box",)
    return {kind: _evaluate(ordered, tuple(classes), tuple(limits), kind) for kind in kinds}


def score(records: Mapping[str, Record], classes: Sequence[str], *, limits: Sequence[int] = LIMITS) -> dict[str, float]:
    """The metrics of boxes, and of masks where there are some, see `Measured.metrics`; in any order of records."""
    out: dict[str, float] = {}
    for measured in measure(records, classes, limits=limits).values():
        out |= measured.metrics()
    return out


def tables(records: Mapping[str, Record], classes: Sequence[str], *, limits: Sequence[int] = LIMITS) -> dict[str, Any]:
    """What a report shows.

    Returns:
        `per_class`: for each class its name, the number of its objects, and its metrics of boxes and masks.
        `curves`: by "box" and "mask", see `Measured.curves`.
    """
    measured = measure(records, classes, limits=limits)
    rows = [dict[str, Any]() for _ in classes]
    for one in measured.values():
        for row, more in zip(rows, one.per_class(), strict=True):
            row.update(more)
    return {"per_class": rows, "curves": {kind: one.curves() for kind, one in measured.items()}}


def _ordered(records: Mapping[str, Record]) -> list[Record]:
    """In the order of COCO's own numbers where all images have one, for equal scores are ranked by it; else by id."""
    for id, record in records.items():
        if record.get("truth") is None:
            raise ValueError(f"the image {id} has no truth to be scored against; evaluate on data with objects")
    numbered = all(isinstance(record["truth"].get("image_id"), int) for record in records.values())
    ids = sorted(records, key=(lambda id: records[id]["truth"]["image_id"]) if numbered else None)
    return [records[id] for id in ids]


def _evaluate(records: Sequence[Record], classes: tuple[str, ...], limits: tuple[int, ...], kind: Kind) -> Measured:
    coco, evaluation = _library()
    images = [
        {"id": i, "height": record["truth"]["size"][0], "width": record["truth"]["size"][1]}
        for i, record in enumerate(records, 1)
    ]
    categories = [{"id": k, "name": name} for k, name in enumerate(classes)]
    objects, found = _objects(records, kind), _found(records, kind)
    sets = [
        coco({"images": images, "categories": categories, "annotations": annotations})
        for annotations in (objects, found)
    ]
    one = evaluation(*sets, iouType="bbox" if kind == "box" else "segm", print_function=_quiet)
    one.params.maxDets = list(limits)
    one.evaluate()
    one.accumulate()
    counts_K = np.bincount([o["category_id"] for o in objects if not o["iscrowd"]], minlength=len(classes))
    return Measured(
        kind, classes, limits, one.eval["precision"], one.eval["recall"], one.eval["scores"], counts_K.astype(np.int64)
    )


def _objects(records: Sequence[Record], kind: Kind) -> list[dict[str, Any]]:
    """The truth as COCO has it."""
    out: list[dict[str, Any]] = []
    for image, record in enumerate(records, 1):
        truth = record["truth"]
        columns = zip(truth["boxes"], truth["labels"], truth["crowd"], truth["areas"], strict=True)
        for i, ((x1, y1, x2, y2), label, crowd, area) in enumerate(columns):
            one = {
                "id": len(out) + 1, "image_id": image, "category_id": label, "iscrowd": int(crowd), "area": area,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
            }  # fmt: skip
            if kind == "mask":
                one["segmentation"] = {"size": truth["size"], "counts": truth["masks"][i]}
            out.append(one)
    return out


def _found(records: Sequence[Record], kind: Kind) -> list[dict[str, Any]]:
    """The predictions as COCO has them; the size of a mask is its own, not that of its box."""
    out: list[dict[str, Any]] = []
    for image, record in enumerate(records, 1):
        columns = zip(record["boxes"], record["labels"], record["scores"], strict=True)
        masks = [{"size": record["truth"]["size"], "counts": m} for m in record["masks"]] if kind == "mask" else []
        areas = _areas(masks) if masks else []
        for i, ((x1, y1, x2, y2), label, score) in enumerate(columns):
            one = {
                "id": len(out) + 1, "image_id": image, "category_id": label, "iscrowd": 0, "score": score,
                "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1),
            }  # fmt: skip
            if kind == "mask":
                one |= {"segmentation": masks[i], "area": areas[i]}
            out.append(one)
    return out


def _areas(masks: list[dict[str, Any]]) -> list[int]:
    from faster_coco_eval.core import mask

    return [int(area) for area in mask.area(masks)]


def _mean(values: np.ndarray) -> float:
    known = values[values > UNKNOWN]
    return 100 * float(np.mean(known)) if known.size else UNKNOWN


def _short(values: np.ndarray) -> list[float]:
    return [round(float(value), 4) for value in values]


def _quiet(*_: object) -> None:
    """The library prints how far it is."""


def _library() -> tuple[Any, Any]:
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError as error:
        raise ValueError(
            'evaluation needs faster-coco-eval, which is missing: pip install "fourstage[train]"'
        ) from error
    return COCO, COCOeval_faster
