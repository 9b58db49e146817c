"""The interface between the engine and a task."""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

Record = Mapping[str, Any]  # the predictions for one sample as JSON: numbers, strings, lists, mappings


class Task(Protocol):
    """An `nn.Module` whose `forward` DDP and FSDP wrap.

    Attributes:
        main_metric: the metric that decides which checkpoint is the best; higher is better.
    """

    main_metric: str

    def __call__(self, batch: Any) -> dict[str, Tensor]:
        """Return named scalar losses, whose sum is minimised.

        Every batch gives the same names, never `total`, `grad_norm` or `skipped`; a loss without targets is 0.
        """
        ...

    def predict(self, batch: Any) -> dict[str, Record]:
        """Return one record per sample, by the sample's id."""
        ...

    def score(self, records: Mapping[str, Record]) -> dict[str, float]:
        """Return metrics by fixed names. Pure: the same records give the same score for any number of processes."""
        ...

    def tables(self, records: Mapping[str, Record]) -> dict[str, Any]:
        """Return the tables of a report, beside the metrics, as plain lists and dicts."""
        ...
