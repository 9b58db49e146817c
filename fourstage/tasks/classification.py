"""Image classification. B images, C classes."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fourstage.data.sample import Batch

Record = Mapping[str, Any]


class Classification(nn.Module):
    """A network with a classifier, trained by cross-entropy.

    Args:
        network: (B, 3, H, W) images to (B, C) logits.
        classes: class names, in the order of the logits.
        smoothing: share of the target that is spread over all classes, where no mixing made soft targets.
    """

    main_metric = "top1"

    def __init__(self, network: nn.Module, classes: Sequence[str], smoothing: float = 0.0) -> None:
        super().__init__()
        self.network, self.classes, self.smoothing = network, tuple(classes), smoothing

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The cross-entropy of a batch, against its soft targets where mixing made some."""
        logits_BC = self._logits(batch)
        if batch.targets_BC is not None:
            return {"loss_class": F.cross_entropy(logits_BC, batch.targets_BC.to(logits_BC.dtype))}
        assert batch.labels_B is not None, "training needs labels"
        return {"loss_class": F.cross_entropy(logits_BC, batch.labels_B, label_smoothing=self.smoothing)}

    def _logits(self, batch: Batch) -> Tensor:
        """(B, C), in float32 or better."""
        dtype = next(self.network.parameters()).dtype
        logits_BC = self.network(batch.images_BCHW.to(dtype))
        return logits_BC if dtype == torch.float64 else logits_BC.float()

    @torch.inference_mode()
    def predict(self, batch: Batch) -> dict[str, Record]:
        """By id: `top`, up to five [class, probability], best first; `truth` and `loss` where the label is known."""
        log_p_BC = self._logits(batch).log_softmax(dim=1)
        scores, classes = log_p_BC.exp().topk(min(5, log_p_BC.shape[1]))
        records: dict[str, dict[str, Any]] = {
            id: {"top": [list(pair) for pair in zip(c, s, strict=True)]}
            for id, c, s in zip(batch.ids, classes.tolist(), scores.tolist(), strict=True)
        }
        if batch.labels_B is not None:
            losses = F.nll_loss(log_p_BC, batch.labels_B, reduction="none").tolist()
            for record, truth, loss in zip(records.values(), batch.labels_B.tolist(), losses, strict=True):
                record |= {"truth": truth, "loss": loss}
        return dict(records)

    def score(self, records: Mapping[str, Record]) -> dict[str, float]:
        """`top1` and `top5` in per cent, and the mean `loss`."""
        ordered = [records[id] for id in sorted(records)]  # the same sum in the same order, whoever gathered it
        right = sum(record["truth"] == record["top"][0][0] for record in ordered)
        in_five = sum(any(record["truth"] == c for c, _ in record["top"]) for record in ordered)
        return {
            "top1": 100 * right / len(ordered),
            "top5": 100 * in_five / len(ordered),
            "loss": sum(record["loss"] for record in ordered) / len(ordered),
        }

    def tables(self, records: Mapping[str, Record]) -> dict[str, Any]:
        """`confusion` (rows: truth, columns: prediction) and `per_class` accuracy in per cent, as plain lists."""
        confusion = [[0] * len(self.classes) for _ in self.classes]
        for record in records.values():
            confusion[record["truth"]][record["top"][0][0]] += 1
        per_class = [
            {"name": name, "count": sum(row), "top1": 100 * row[i] / max(1, sum(row))}
            for i, (name, row) in enumerate(zip(self.classes, confusion, strict=True))
        ]
        return {"confusion": confusion, "per_class": per_class}
