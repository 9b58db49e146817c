"""What the engine asks of a task, and nothing else."""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

Record = Mapping[str, Any]  # what was predicted for one sample, as JSON has it: numbers, strings, lists, mappings


class Task(Protocol):
    """An `nn.Module`. What DDP and FSDP wrap is its `forward`.

    Attributes:
        main_metric: the metric, higher is better, that decides which checkpoint is the best.
    """

    main_metric: str

    def __call__(self, batch: Any) -> dict[str, Tensor]:
        """Named losses, scalars; their sum is minimised.

        Every batch gives the same names, none of them `total`, `grad_norm` or `skipped`; a loss without targets is 0.
        """
        ...

    def predict(self, batch: Any) -> dict[str, Record]:
        """One record a sample, by the sample's id."""
        ...

    def score(self, records: Mapping[str, Record]) -> dict[str, float]:
        """Metrics by fixed names. Pure: the same records give the same score, however many processes made them."""
        ...

    def tables(self, records: Mapping[str, Record]) -> dict[str, Any]:
        """What a report shows beside the metrics, as plain lists and dicts."""
        ...
