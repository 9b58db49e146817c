"""The two splits of a data set: names of their folders, and the share that is held out without a validation split."""

from collections.abc import Sequence

from fourstage.data.order import hash_order
from fourstage.data.sample import Split

SPLIT_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "test"),  # the first that exists
}
EXPORT_SPLIT_NAMES: dict[Split, tuple[str, ...]] = {  # as annotation tools write them
    "train": ("train",),
    "val": SPLIT_NAMES["val"],
}
VAL_SHARE = 0.1


def split_positions(names: Sequence[str], split: Split) -> list[int]:
    """Return the positions, ascending, of the names that belong to `split` when a tenth is held out for validation.

    At least one of two names is held out. A hash of the names decides, so every machine holds out the same ones.
    """
    count = max(1, round(len(names) * VAL_SHARE)) if len(names) > 1 else 0
    order = hash_order(names)
    return sorted(order[:count] if split == "val" else order[count:])
