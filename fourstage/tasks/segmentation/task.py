"""Semantic segmentation as the engine runs it. B images, C classes, H x W pixels."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from fourstage.data.sample import Batch, Progress
from fourstage.data.transforms.resizing import Normalise
from fourstage.tasks.parts.intervals import Intervals
from fourstage.tasks.parts.losses import check_losses
from fourstage.tasks.segmentation import miou
from fourstage.tasks.segmentation.inference import Inference
from fourstage.tasks.segmentation.protocol import Protocol
from fourstage.tasks.segmentation.segmentor import Segmentor

Record = Mapping[str, Any]

CONFUSED = 50  # pairs of classes


class Segmentation(nn.Module):
    """A segmentor, trained by the cross-entropy of pixels.

    Args:
        network: the segmentor.
        classes: class names, in the order of the logits.
        mean, std: of images that come as bytes, per channel, in units of 1 (white).
        single: the protocol of `miou_ss`.
        multi: the protocol of `miou_ms_flip` beside it; None: no second protocol.
        over_valid: whether losses are means over the pixels that are not ignored, instead of all.
        boundaries: whether boundaries are scored too.

    Attributes:
        palette: a colour for each class, as bytes of red, green and blue; None: the data has none.
        on_label_map: is called with an image's id and its label map by the single-scale protocol when `predict` has it.

    Raises:
        ValueError: not one name for each class of the segmentor.
    """

    main_metric = "miou_ss"

    def __init__(
        self,
        network: Segmentor,
        classes: Sequence[str],
        *,
        mean: Sequence[float],
        std: Sequence[float],
        single: Protocol | None = None,
        multi: Protocol | None = None,
        over_valid: bool = False,
        boundaries: bool = False,
    ) -> None:
        super().__init__()
        if len(classes) != network.num_classes:
            raise ValueError(
                f"got {len(classes)} class names for a segmentor of {network.num_classes} classes; give one for each"
            )
        self.network, self.classes = network, tuple(classes)
        self.normalise = Normalise.of(mean, std)
        self.single, self.multi = single or Protocol(), multi
        self.over_valid, self.boundaries = over_valid, boundaries
        self.palette: tuple[tuple[int, int, int], ...] | None = None
        self.on_label_map: Callable[[str, Tensor], None] | None = None

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the losses of a batch of normalised images with their label maps, of the same size."""
        assert batch.label_maps_BHW is not None, "training needs label maps"
        images_BCHW = batch.images_BCHW.to(next(self.network.parameters()).dtype)
        losses = self.network.losses(images_BCHW, batch.label_maps_BHW, over_valid=self.over_valid)
        return check_losses(losses, self.network)

    def label_maps(
        self, batch: Batch, protocol: Protocol | None = None, progress: Progress | None = None
    ) -> dict[str, Tensor]:
        """Return by id the label map of each image, (H, W) uint8 of its original size; see `Inference`.

        Args:
            protocol: None: the single-scale protocol.
            progress: is called with the pixels of an image that are done and all of them.
        """
        inference = Inference(self.network, self.normalise, progress=progress)
        return dict(zip(batch.ids, inference.label_maps(batch, protocol or self.single), strict=True))

    def predict(self, batch: Batch) -> dict[str, Record]:
        """Return by id the pixels of each pair of true and predicted class; see `miou.count_pairs`.

        With a second protocol, its counts are below `multi`; with `boundaries`, those of `miou.count_boundaries` are
        below `boundary`. Without ground truth: the predicted `classes` and their `pixels`.

        Args:
            batch: images as bytes, as `evaluation_transform` leaves them, with label maps of the same size.
        """
        protocols = {"single": self.single, **({} if self.multi is None else {"multi": self.multi})}
        maps = {name: self.label_maps(batch, protocol) for name, protocol in protocols.items()}
        if self.on_label_map is not None:
            for id, labels_HW in maps["single"].items():
                self.on_label_map(id, labels_HW)
        return {id: self._record({n: m[id] for n, m in maps.items()}, batch, i) for i, id in enumerate(batch.ids)}

    def _record(self, maps: Mapping[str, Tensor], batch: Batch, i: int) -> Record:
        guess_HW = maps["single"]
        if batch.label_maps_BHW is None:
            classes, pixels = guess_HW.unique(return_counts=True)
            return {"classes": classes.tolist(), "pixels": pixels.tolist()}
        height, width = batch.original_sizes[i]
        truth_HW = batch.label_maps_BHW[i, :height, :width].cpu()
        counts = {name: miou.count_pairs(map_HW, truth_HW, len(self.classes)) for name, map_HW in maps.items()}
        record: dict[str, Any] = {**counts.pop("single"), **counts}
        if self.boundaries:
            record["boundary"] = miou.count_boundaries(guess_HW, truth_HW)
        return record

    def score(self, records: Mapping[str, Record]) -> dict[str, float]:
        """Return in per cent mIoU, mean accuracy and pixel accuracy of each protocol, and the F1 of boundaries."""
        ordered = [records[id] for id in sorted(records)]
        scores = {f"{name}_ss": value for name, value in miou.means(self._matrix(ordered)).items()}
        if several := [record["multi"] for record in ordered if "multi" in record]:
            scores |= {f"{name}_ms_flip": value for name, value in miou.means(self._matrix(several)).items()}
        if edges := [record["boundary"] for record in ordered if "boundary" in record]:
            scores["boundary_f1_ss"] = miou.boundary_f1(edges, len(self.classes))
        return scores

    def intervals(self, records: Mapping[str, Record]) -> Intervals:
        """Return intervals of mIoU, mean accuracy and pixel accuracy of each protocol; see `miou.intervals`."""
        ordered = [records[id] for id in sorted(records)]
        protocols = {"ss": ordered, "ms_flip": [record["multi"] for record in ordered if "multi" in record]}
        return miou.intervals({name: counts for name, counts in protocols.items() if counts}, len(self.classes))

    def tables(self, records: Mapping[str, Record]) -> dict[str, Any]:
        """Return results class by class, as plain lists.

        Returns:
            `per_class`: for each class its name, `iou` and `acc` in per cent (None where it does not occur), and its
            true and `predicted` `pixels`; `iou_ms_flip` with a second protocol. `confused`: [truth, prediction, pixels]
            of the most frequent mistakes. `protocols`: the protocols in words.
        """
        matrix_CC = self._matrix(records.values())
        columns: dict[str, Sequence[Any]] = {
            "iou": _per_cent(miou.ious(matrix_CC)),
            "acc": _per_cent(miou.accuracies(matrix_CC)),
            "pixels": matrix_CC.sum(axis=1).tolist(),
            "predicted": matrix_CC.sum(axis=0).tolist(),
        }
        protocols = {"ss": str(self.single)}
        if several := [record["multi"] for record in records.values() if "multi" in record]:
            columns["iou_ms_flip"] = _per_cent(miou.ious(self._matrix(several)))
            protocols["ms_flip"] = str(self.multi)
        return {
            "per_class": [
                {"name": name, **{column: values[i] for column, values in columns.items()}}
                for i, name in enumerate(self.classes)
            ],
            "confused": miou.most_confused(matrix_CC, CONFUSED),
            "protocols": protocols,
        }

    def _matrix(self, records: Any) -> np.ndarray:
        return miou.summed(records, len(self.classes))


def _per_cent(values: np.ndarray) -> list[float | None]:
    return [miou.or_none(100 * value) for value in values]
