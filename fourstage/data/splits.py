"""The two splits of a data set: names of their folders, and the share that is held out without a validation split."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

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


def held_out_note(source: str | Path, names: Sequence[str]) -> str:
    """Return the sentence for a data set of which `split_positions` holds out some images."""
    count = len(split_positions(names, "val"))
    return (
        f"{source} has no validation split: a fixed {VAL_SHARE:.0%} of the images ({count:,} of {len(names):,}) is "
        "held out for validation."
    )


def of_split(paths: Iterable[Path], split: Split) -> Path | None:
    """Return the file whose name has the split as a word: `instances_Train.json`, `val2017.json`; None: no such file.

    Raises:
        ValueError: several files are of the split by one word.
    """
    by_word: Mapping[str, list[Path]] = {name: [] for name in SPLIT_NAMES[split]}
    for path in paths:
        for word in re.split(r"[^a-z]+", path.stem.lower()):
            if word in by_word:
                by_word[word].append(path)
    found = next((paths for paths in by_word.values() if paths), [])
    if len(found) > 1:
        names = ", ".join(path.name for path in found[:5])
        raise ValueError(f"{found[0].parent} has several files for {split} ({names}); leave one, and move the others")
    return found[0] if found else None


def joined_notes(*notes: str) -> str:
    """Return several notes as one text, without the empty ones."""
    return " ".join(note for note in notes if note)
