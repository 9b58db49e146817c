"""Some samples of a data set as a data set."""

import numpy as np

from fourstage.data.sample import Dataset, Sample


class Subset:
    """Some samples of a data set, in the same order and with the same classes.

    Args:
        indices_n: (n,) int64, ascending: the samples to keep.

    Attributes:
        note, shard_sizes: as the data set has them, see `Dataset`.
    """

    def __init__(self, dataset: Dataset, indices_n: np.ndarray) -> None:
        assert indices_n.dtype == np.int64, "positions, not flags"
        self._dataset, self._indices_n = dataset, indices_n
        self.classes, self.truths = dataset.classes, dataset.truths
        self.note: str = getattr(dataset, "note", "")
        sizes: tuple[int, ...] = getattr(dataset, "shard_sizes", ())
        shards_n = np.searchsorted(np.cumsum(sizes), self._indices_n, side="right") if sizes else self._indices_n[:0]
        self.shard_sizes = tuple(np.bincount(shards_n, minlength=len(sizes)).tolist()) if sizes else ()

    def __len__(self) -> int:
        return len(self._indices_n)

    def id(self, index: int) -> str:
        return self._dataset.id(int(self._indices_n[index]))

    def sample(self, index: int) -> Sample:
        return self._dataset.sample(int(self._indices_n[index]))
