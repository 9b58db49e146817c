"""COCO's average precision of boxes and masks, by faster-coco-eval. The numbers equal those of pycocotools.

T thresholds of intersection over union, R points of recall, K classes, A ranges of area, M limits on detections.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fourstage.extras import install
from fourstage.tasks.parts.intervals import Intervals, affordable_resamples, bootstrap

Record = Mapping[str, Any]
IoUType = Literal["box", "mask"]

LIMITS = (1, 10, 100)  # detections of one class in one image that count: COCO's own
MMDET_LIMITS = (100, 300, 1000)  # MMDetection's, under which AP50, AP75 and those by size count 1,000
SIZES = {"s": "small", "m": "medium", "l": "large"}  # boundaries are 32 x 32 and 96 x 96 pixels
MAIN_LIMIT = 100  # of the mean AP, whatever the limits are
WORK = 10**8  # detections and pairs of image and class for all resamples of `intervals`: about 30 s of a CPU
UNKNOWN = -1.0  # a metric of objects that the ground truth does not have


@dataclass(frozen=True, eq=False)
class Measured:
    """Precision and recall of one evaluation; -1 where the ground truth has no such object."""

    iou_type: IoUType
    classes: tuple[str, ...]
    limits: tuple[int, ...]
    precision_TRKAM: np.ndarray
    recall_TKAM: np.ndarray
    scores_TRKAM: np.ndarray  # the score at which a recall is reached
    counts_K: np.ndarray  # objects that are no crowd

    @property
    def main_limit(self) -> int:
        """The place of `MAIN_LIMIT` among the limits, else of the last one."""
        return self.limits.index(MAIN_LIMIT) if MAIN_LIMIT in self.limits else len(self.limits) - 1

    def metrics(self) -> dict[str, float]:
        """Return COCO's twelve numbers in per cent, as `box_map`, `box_map50`, ...; `UNKNOWN` without such objects.

        `map` averages over ten thresholds from 0.50 to 0.95, with up to 100 detections of a class in an image; the
        others count up to the last limit, and `recall<M>` up to M. `s`, `m`, `l` are small, medium and large objects.
        """
        last, all_sizes = len(self.limits) - 1, 0
        out = {
            "map": self._ap(slice(None), slice(None), all_sizes, self.main_limit),
            "map50": self._ap(0, slice(None), all_sizes, last),
            "map75": self._ap(5, slice(None), all_sizes, last),
        }
        out |= {f"map_{s}": self._ap(slice(None), slice(None), a, last) for a, s in enumerate(SIZES, 1)}
        out |= {f"recall{n}": _mean(self.recall_TKAM[:, :, all_sizes, m]) for m, n in enumerate(self.limits)}
        out |= {f"recall_{s}": _mean(self.recall_TKAM[:, :, a, last]) for a, s in enumerate(SIZES, 1)}
        return {f"{self.iou_type}_{name}": value for name, value in out.items()}

    def per_class(self) -> list[dict[str, Any]]:
        """Return for each class its name, the number of objects, and in per cent `box_map`, `box_map50`, ... or
        `mask_map`, ...; None where the ground truth has no such object.
        """
        last = len(self.limits) - 1
        rows: list[dict[str, Any]] = []
        for k, name in enumerate(self.classes):
            values = {
                "map": self._ap(slice(None), k, 0, self.main_limit),
                "map50": self._ap(0, k, 0, last),
                "map75": self._ap(5, k, 0, last),
                **{f"map_{s}": self._ap(slice(None), k, a, last) for a, s in enumerate(SIZES, 1)},
                "recall": _mean(self.recall_TKAM[:, k, 0, last]),
            }
            known = {f"{self.iou_type}_{key}": None if v == UNKNOWN else v for key, v in values.items()}
            rows.append({"name": name, "count": int(self.counts_K[k]), **known})
        return rows

    def curves(self) -> dict[str, Any]:
        """Return precision over recall, for charts.

        Returns:
            `recall`: the R points, 0 to 1. `mean`: for the thresholds "0.50", "0.75" and "0.50:0.95" the precision at
            each point, the mean of all classes that the ground truth has. `per_class`: by name, the precision at
            threshold 0.50, and `scores`: by name, the score that reaches each recall there (0 where none does).
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
) -> dict[IoUType, Measured]:
    """Evaluate the predictions for a set of images.

    Args:
        records: by the sample's id, in any order. Each has `boxes` (x1 y1 x2 y2 in pixels of the image on disk),
            `labels`, `scores`, perhaps `masks` (COCO's compressed run lengths as strings), and the ground truth as
            `truth`, see `ObjectTable.reference`.
        classes: names, in the order of the labels.
        limits: detections of one class in one image that count, ascending: `LIMITS` or `MMDET_LIMITS`.

    Returns:
        "box", and "mask" where both the predictions and the ground truth have masks.

    Raises:
        ValueError: records without ground truth, impossible limits; the library is missing.
    """
    if not limits or list(limits) != sorted(set(limits)) or min(limits) < 1:
        raise ValueError(f"limits on detections must ascend and be above 0, such as [1, 10, 100]; got {list(limits)}")
    ordered = _ordered(records)
    return {form: _evaluate(ordered, tuple(classes), tuple(limits), form) for form in _iou_types(ordered)}


def score(records: Mapping[str, Record], classes: Sequence[str], *, limits: Sequence[int] = LIMITS) -> dict[str, float]:
    """Return the metrics of boxes, and of masks where there are some; see `Measured.metrics`."""
    out: dict[str, float] = {}
    for measured in measure(records, classes, limits=limits).values():
        out |= measured.metrics()
    return out


def tables(records: Mapping[str, Record], classes: Sequence[str], *, limits: Sequence[int] = LIMITS) -> dict[str, Any]:
    """Return what a report shows.

    Returns:
        `per_class`: for each class its name, the number of its objects, and its metrics of boxes and masks.
        `curves`: by "box" and "mask", see `Measured.curves`.
    """
    measured = measure(records, classes, limits=limits)
    rows = [dict[str, Any]() for _ in classes]
    for one in measured.values():
        for row, more in zip(rows, one.per_class(), strict=True):
            row.update(more | {"count": row.get("count", more["count"])})  # of boxes: some objects may have no mask
    return {"per_class": rows, "curves": {iou_type: one.curves() for iou_type, one in measured.items()}}


def intervals(records: Mapping[str, Record], classes: Sequence[str], *, limits: Sequence[int] = LIMITS) -> Intervals:
    """Return intervals of `box_map` and `mask_map` by the bootstrap over images.

    The detections of each image are matched once. Each resample accumulates its images together, as the score does;
    AP is no mean over images. The resamples become fewer with more detections, images and classes: COCO's validation
    images have about a hundred. Data for which `WORK` allows too few has no interval.
    """
    ordered = _ordered(records)
    detections = sum(len(record["labels"]) for record in ordered)
    resamples = affordable_resamples(detections + len(ordered) * len(classes), WORK)
    out: dict[str, tuple[float, float]] = {}
    for iou_type in _iou_types(ordered) if resamples and ordered else ():
        measure = resampled_map(ordered, tuple(classes), tuple(limits), iou_type)
        out |= bootstrap(len(ordered), measure, resamples=resamples)
    return Intervals(f"bootstrap over images, {resamples} resamples", out)


def resampled_map(
    records: Sequence[Record], classes: tuple[str, ...], limits: tuple[int, ...], iou_type: IoUType
) -> Callable[[np.ndarray], dict[str, float]]:
    """Return a function from (N,) indices of images to their mean AP in per cent by its name; NaN without objects."""
    one = _library_evaluation(records, classes, iou_type, separate_eval=True)
    one.params.maxDets = [MAIN_LIMIT if MAIN_LIMIT in limits else limits[-1]]
    one.params.areaRng, one.params.areaRngLbl = one.params.areaRng[:1], one.params.areaRngLbl[:1]  # of all sizes
    one.evaluate()
    matched = list(one._evalImgs_cpp)  # of every image, class by class
    first_K1 = np.arange(len(classes))[:, None] * len(records)

    def measure(chosen_N: np.ndarray) -> dict[str, float]:
        one._evalImgs_cpp = [matched[i] for i in (first_K1 + chosen_N).ravel().tolist()]
        one.accumulate()
        value = _mean(one.eval["precision"])
        return {f"{iou_type}_map": float("nan") if value == UNKNOWN else value}

    return measure


def _iou_types(records: Sequence[Record]) -> tuple[IoUType, ...]:
    masks = bool(records) and all("masks" in record and "masks" in record["truth"] for record in records)
    return ("box", "mask") if masks else ("box",)


def _ordered(records: Mapping[str, Record]) -> list[Record]:
    """Return the records in the order of COCO's image numbers, which ranks equal scores; without them, by id."""
    for id, record in records.items():
        if record.get("truth") is None:
            raise ValueError(f"the image {id} has no ground truth; evaluate on data with objects")
    numbered = all(isinstance(record["truth"].get("image_id"), int) for record in records.values())
    ids = sorted(records, key=(lambda id: records[id]["truth"]["image_id"]) if numbered else None)
    return [records[id] for id in ids]


def _evaluate(
    records: Sequence[Record], classes: tuple[str, ...], limits: tuple[int, ...], iou_type: IoUType
) -> Measured:
    one = _library_evaluation(records, classes, iou_type)
    one.params.maxDets = list(limits)
    one.evaluate()
    one.accumulate()
    truth = one.cocoGt.dataset["annotations"]
    counts_K = np.bincount([o["category_id"] for o in truth if not o["iscrowd"]], minlength=len(classes))
    return Measured(
        iou_type,
        classes,
        limits,
        one.eval["precision"],
        one.eval["recall"],
        one.eval["scores"],
        counts_K.astype(np.int64),
    )


def _library_evaluation(
    records: Sequence[Record], classes: tuple[str, ...], iou_type: IoUType, *, separate_eval: bool = False
) -> Any:
    """Return the library's evaluation, before its first step; `separate_eval` keeps the matches of each image."""
    coco, evaluation = _library()
    images = [
        {"id": i, "height": record["truth"]["size"][0], "width": record["truth"]["size"][1]}
        for i, record in enumerate(records, 1)
    ]
    categories = [{"id": k, "name": name} for k, name in enumerate(classes)]
    objects, detections = _objects(records, iou_type), _detections(records, iou_type)
    sets = [
        coco({"images": images, "categories": categories, "annotations": annotations})
        for annotations in (objects, detections)
    ]
    kind = "bbox" if iou_type == "box" else "segm"
    return evaluation(*sets, iouType=kind, print_function=_quiet, separate_eval=separate_eval)


def _objects(records: Sequence[Record], iou_type: IoUType) -> list[dict[str, Any]]:
    """Return the ground truth in COCO's format.

    In the score of masks an object without one is a crowd region of its box's extent: masks in it are no mistakes.
    """
    out: list[dict[str, Any]] = []
    for image, record in enumerate(records, 1):
        truth = record["truth"]
        columns = zip(truth["boxes"], truth["labels"], truth["crowd"], truth["areas"], strict=True)
        for i, ((x1, y1, x2, y2), label, crowd, area) in enumerate(columns):
            one = {
                "id": len(out) + 1, "image_id": image, "category_id": label, "iscrowd": int(crowd), "area": area,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
            }  # fmt: skip
            if iou_type == "mask":
                one["segmentation"] = {"size": truth["size"], "counts": truth["masks"][i]}
                if not truth.get("masked", truth["masks"])[i]:
                    one |= {"iscrowd": 1, "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]]}
            out.append(one)
    return out


def _detections(records: Sequence[Record], iou_type: IoUType) -> list[dict[str, Any]]:
    """Return the predictions in COCO's format; the area of a mask is its own, not that of its box."""
    out: list[dict[str, Any]] = []
    for image, record in enumerate(records, 1):
        columns = zip(record["boxes"], record["labels"], record["scores"], strict=True)
        masks = [{"size": record["truth"]["size"], "counts": m} for m in record["masks"]] if iou_type == "mask" else []
        areas = _areas(masks) if masks else []
        for i, ((x1, y1, x2, y2), label, score) in enumerate(columns):
            one = {
                "id": len(out) + 1, "image_id": image, "category_id": label, "iscrowd": 0, "score": score,
                "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1),
            }  # fmt: skip
            if iou_type == "mask":
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
    """Replace the function by which the library prints its progress."""


def _library() -> tuple[Any, Any]:
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError as error:
        raise ValueError(f"evaluation needs faster-coco-eval, which is missing: {install('train')}") from error
    return COCO, COCOeval_faster
