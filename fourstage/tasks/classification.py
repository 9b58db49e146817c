"""Image classification. B images, C classes."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fourstage.data.sample import Batch

Record = Mapping[str, Any]

LARGEST_MATRIX = 100  # classes; with more, the table of all pairs gives way to the most confused ones
CONFUSED = 50  # so many of those


class Classification(nn.Module):
    """A network with a classifier, trained by cross-entropy.

    Args:
        network: (B, 3, H, W) images to (B, C) logits.
        classes: class names, in the order of the logits.
        smoothing: share of the target that is spread over all classes, where no mixing made soft targets.

    Attributes:
        among: the classes that predictions are taken among, ascending; None: all of them.
    """

    main_metric = "top1"

    def __init__(self, network: nn.Module, classes: Sequence[str], smoothing: float = 0.0) -> None:
        super().__init__()
        self.network, self.classes, self.smoothing = network, tuple(classes), smoothing
        self.among: tuple[int, ...] | None = None

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
        logits_BC = self._logits(batch)
        log_p_BC = self._only_among(logits_BC).log_softmax(dim=1)
        scores, classes = log_p_BC.exp().topk(min(5, len(self.among) if self.among else log_p_BC.shape[1]))
        records: dict[str, dict[str, Any]] = {
            id: {"top": [list(pair) for pair in zip(c, s, strict=True)]}
            for id, c, s in zip(batch.ids, classes.tolist(), scores.tolist(), strict=True)
        }
        if batch.labels_B is not None:
            losses = F.nll_loss(log_p_BC, batch.labels_B, reduction="none").tolist()
            for record, truth, loss in zip(records.values(), batch.labels_B.tolist(), losses, strict=True):
                record |= {"truth": truth, "loss": loss}
        return dict(records)

    def _only_among(self, logits_BC: Tensor) -> Tensor:
        """(B, C), with minus infinity for the classes that no prediction may name."""
        if self.among is None:
            return logits_BC
        kept = torch.tensor(self.among, device=logits_BC.device)
        return torch.full_like(logits_BC, float("-inf")).index_copy(1, kept, logits_BC[:, kept])

    def score(self, records: Mapping[str, Record]) -> dict[str, float]:
        """`top1` and `top5` in per cent, and the mean `loss`."""
        return _means([records[id] for id in sorted(records)])  # the same sum in the same order, whoever gathered it

    def tables(self, records: Mapping[str, Record]) -> dict[str, Any]:
        """What the records come to, class by class, as plain lists.

        Returns:
            `per_class`: for each class its name, `count`, `top1` and `top5` in per cent and mean `loss`; None for
            these three where no image is of that class. Classes that no prediction may name are left out.
            `confusion`: rows are the truth, columns the prediction. For more than LARGEST_MATRIX classes there is
            `confused` instead: [truth, prediction, count] of the most frequent mistakes, those first.
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
    """Of the samples whose list of valid classes is not empty, those with the first guess in it, in per cent.

    Source: the labels and the metric of "Are we done with ImageNet?", https://arxiv.org/abs/2006.07159. NaN where all
    lists are empty.
    """
    judged = [id for id in records if valid[id]]
    right = sum(records[id]["top"][0][0] in valid[id] for id in judged)
    return 100 * right / len(judged) if judged else float("nan")


def _most_frequent(pairs: Counter[tuple[int, int]], of_class: Sequence[Sequence[Record]]) -> list[list[int]]:
    """Mistakes only; of equally frequent ones, those that cost their class more come first."""
    mistakes = [[truth, guess, times] for (truth, guess), times in pairs.items() if truth != guess]
    return sorted(mistakes, key=lambda pair: (-pair[2], len(of_class[pair[0]]), *pair[:2]))[:CONFUSED]
