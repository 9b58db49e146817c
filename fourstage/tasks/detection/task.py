"""Object detection and instance segmentation as the engine runs them. B images, N detections, C classes."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from fourstage.data.sample import Batch
from fourstage.plurals import plural
from fourstage.tasks.detection import coco_ap
from fourstage.tasks.detection.detector import Detections, Detector
from fourstage.tasks.parts.intervals import Intervals
from fourstage.tasks.parts.losses import check_losses

Record = Mapping[str, Any]


class Detection(nn.Module):
    """A detector, trained by its own losses and scored by COCO's average precision.

    Args:
        network: the detector.
        classes: class names, in the order of the labels.
        limits: detections of one class in one image that count; see `coco_ap`.
        category_ids: the number of each class in the data's own COCO json, for results in that format; None: it has
            none.

    Raises:
        ValueError: not one name for each class of the detector.
    """

    main_metric = "box_map"

    def __init__(
        self,
        network: Detector,
        classes: Sequence[str],
        limits: Sequence[int] = coco_ap.LIMITS,
        category_ids: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if len(classes) != network.num_classes:
            raise ValueError(
                f"the detector has {plural(network.num_classes, 'class', 'classes')}; got {len(classes)} names; "
                "name each class"
            )
        self.network, self.classes, self.limits = network, tuple(classes), tuple(limits)
        self.category_ids = None if category_ids is None else tuple(category_ids)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the detector's losses; its random choices follow from torch's generator."""
        return check_losses(self.network.losses(batch), self.network)

    def detect(self, batch: Batch) -> Sequence[Detections]:
        """Return the detections in each image, in pixels of the original image, best score first."""
        return _checked(self.network.detect(batch), len(batch), self.network)

    def predict(self, batch: Batch) -> dict[str, Record]:
        """Return by id `boxes` (x1 y1 x2 y2 in pixels of the original image), `labels`, `scores`, best first, `masks`.

        Masks are COCO's compressed run lengths. Where the ground truth is known, it is added as `truth`.
        """
        detections = self.detect(batch)
        records = {id: _record(one) for id, one in zip(batch.ids, detections, strict=True)}
        if batch.references is not None:
            for id, reference in zip(batch.ids, batch.references, strict=True):
                records[id]["truth"] = reference
        return dict(records)

    def score(self, records: Mapping[str, Record]) -> dict[str, float]:
        """Return COCO's metrics in per cent, of boxes and of masks, without those of sizes that no object has."""
        metrics = coco_ap.score(records, self.classes, limits=self.limits)
        return {name: value for name, value in metrics.items() if value != coco_ap.UNKNOWN or name == self.main_metric}

    def intervals(self, records: Mapping[str, Record]) -> Intervals:
        """Return intervals of `box_map` and `mask_map`; see `coco_ap.intervals`."""
        return coco_ap.intervals(records, self.classes, limits=self.limits)

    def tables(self, records: Mapping[str, Record]) -> dict[str, Any]:
        """Return the results of each class, and curves of precision over recall; see `coco_ap.tables`."""
        return coco_ap.tables(records, self.classes, limits=self.limits)


def _checked(detections: object, images: int, network: Detector) -> Sequence[Detections]:
    """Return what `detect` returned. Raises ValueError unless it is one `Detections` for each image."""
    if not isinstance(detections, list | tuple):
        raise ValueError(
            f"{type(network).__name__}.detect returned a {type(detections).__name__}; return a list of Detections"
        )
    wrong = next((one for one in detections if not isinstance(one, Detections)), None)
    if wrong is not None or len(detections) != images:
        came = f"a list with a {type(wrong).__name__}" if wrong is not None else f"{len(detections)} items"
        raise ValueError(
            f"{type(network).__name__}.detect returned {came} for {plural(images, 'image')}; return one "
            f"Detections for each image"
        )
    return detections


def _record(detections: Detections) -> dict[str, Any]:
    record: dict[str, Any] = {
        "boxes": detections.boxes_N4.tolist(),
        "labels": detections.labels_N.tolist(),
        "scores": detections.scores_N.tolist(),
    }
    if detections.masks is not None:
        record["masks"] = detections.masks.run_lengths()
    return record
