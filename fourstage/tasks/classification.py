"""Image classification. B images, C classes."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fourstage.data.sample import Batch
from fourstage.tasks.parts.intervals import Intervals, wilson

Record = Mapping[str, Any]

LARGEST_MATRIX = 100  # classes; with more, a list of the most confused pairs replaces the matrix
CONFUSED = 50  # pairs in that list


class Classification(nn.Module):
    """A network with a classifier, trained by cross-entropy.

    Args:
        network: (B, 3, H, W) images to (B, C) logits.
        classes: class names, in the order of the logits.
        smoothing: share of the target that is spread over all classes, unless mixing gave soft targets.

    Attributes:
        among: the classes that may be predicted, ascending; None: all of them.
    """

    main_metric = "top1"

    def __init__(self, network: nn.Module, classes: Sequence[str], smoothing: float = 0.0) -> None:
        super().__init__()
        self.network, self.classes, self.smoothing = network, tuple(classes), smoothing
        self.among: tuple[int, ...] | None = None

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy of a batch, against its soft targets if mixing gave some."""
        logits_BC = self._logits(batch)
        if batch.targets_BC is not None:
            return {"loss_class": F.cross_entropy(logits_BC, batch.targets_BC.to(logits_BC.dtype))}
        assert batch.labels_B is not None, "training needs labels"
        return {"loss_class": F.cross_entropy(logits_BC, batch.labels_B, label_smoothing=self.smoothing)}

    def _logits(self, batch: Batch) -> Tensor:
        """Return (B, C) logits in float32 or better."""
        dtype = next(self.network.parameters()).dtype
        logits_BC = self.network(batch.images_BCHW.to(dtype))
        return logits_BC if dtype == torch.float64 else logits_BC.float()

    @torch.inference_mode()
    def predict(self, batch: Batch) -> dict[str, Record]:
        """Return by id `top`, up to five [class, probability], best first; `truth` and `loss` if the label is known."""
        logits_BC = self._logits(batch)
        log_p_BC = self._only_among(logits_BC).log_softmax(dim=1)
        scores, classes = log_p_BC.exp().topk(min(5, len(self.among) if self.among else log_p_BC.shape[1]))
        records: list[dict[str, Any]] = [
            {"top": [list(pair) for pair in zip(c, s, strict=True)]}
            for c, s in zip(classes.tolist(), scores.tolist(), strict=True)
        ]
        if batch.labels_B is not None:
            losses = F.nll_loss(log_p_BC, batch.labels_B, reduction="none").tolist()
            for record, truth, loss in zip(records, batch.labels_B.tolist(), losses, strict=True):
                record |= {"truth": truth, "loss": loss}
        return dict(zip(batch.ids, records, strict=True))  # an image may be there twice: see `with_replacements`

    def _only_among(self, logits_BC: Tensor) -> Tensor:
        """Return (B, C) logits, with minus infinity for classes that may not be predicted."""
        if self.among is None:
            return logits_BC
        kept = torch.tensor(self.among, device=logits_BC.device)
        return torch.full_like(logits_BC, float("-inf")).index_copy(1, kept, logits_BC[:, kept])

    def score(self, records: Mapping[str, Record]) -> dict[str, float]:
        """Return `top1` and `top5` in per cent, and the mean `loss`."""
        return _means([records[id] for id in sorted(records)])  # the same order on any number of processes

    def intervals(self, records: Mapping[str, Record]) -> Intervals:
        """Return Wilson's intervals of `top1` and `top5`."""
        shares, count = _means(list(records.values())), len(records)
        right = {name: round(shares[name] * count / 100) for name in ("top1", "top5")}
        return Intervals("Wilson", {name: wilson(times, count) for name, times in right.items()})

    def tables(self, records: Mapping[str, Record]) -> dict[str, Any]:
        """Return results class by class, as plain lists.

        Returns:
            `per_class`: for each class its name, `count`, `top1` and `top5` in per cent and mean `loss`; None for
            these three if no image has that class. Classes that may not be predicted are left out.
            `confusion`: rows are the truth, columns the prediction. For more than LARGEST_MATRIX classes there is
            `confused` instead: [truth, prediction, count] of the most frequent mistakes, in descending order.
        """
        of_class: list[list[Record]] = [[] for _ in self.classes]
        for id in sorted(records):
            of_class[records[id]["truth"]].append(records[id])
        shown = self.among or range(len(self.classes))
        nothing = {"top1": None, "top5": None, "loss": None}
        per_class = [
            {"name": self.classes[c], "count": len(of_class[c]), **(_means(of_class[c]) if of_class[c] else nothing)}
            for c in shown
        ]
        pairs = Counter((record["truth"], record["top"][0][0]) for record in records.values())
        if len(self.classes) > LARGEST_MATRIX:
            return {"confused": _most_frequent(pairs, of_class), "per_class": per_class}
        confusion = [[pairs[truth, guess] for guess in range(len(self.classes))] for truth in range(len(self.classes))]
        return {"confusion": confusion, "per_class": per_class}


def _means(records: Sequence[Record]) -> dict[str, float]:
    right = sum(record["truth"] == record["top"][0][0] for record in records)
    in_five = sum(any(record["truth"] == c for c, _ in record["top"]) for record in records)
    return {
        "top1": 100 * right / len(records),
        "top5": 100 * in_five / len(records),
        "loss": sum(record["loss"] for record in records) / len(records),
    }


def share_within(records: Mapping[str, Record], valid: Mapping[str, Sequence[int]]) -> float:
    """Return the share of samples whose first guess is among their valid classes, in per cent.

    Samples without valid classes are left out; NaN if no sample has any. Source: the labels and the metric of "Are we
    done with ImageNet?", https://arxiv.org/abs/2006.07159.
    """
    judged = [id for id in records if valid[id]]
    right = sum(records[id]["top"][0][0] in valid[id] for id in judged)
    return 100 * right / len(judged) if judged else float("nan")


def _most_frequent(pairs: Counter[tuple[int, int]], of_class: Sequence[Sequence[Record]]) -> list[list[int]]:
    """Return mistakes only; of equally frequent ones, those of smaller classes come first."""
    mistakes = [[truth, guess, times] for (truth, guess), times in pairs.items() if truth != guess]
    return sorted(mistakes, key=lambda pair: (-pair[2], len(of_class[pair[0]]), *pair[:2]))[:CONFUSED]
