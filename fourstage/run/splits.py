"""The data of a run: opened first, read through later, so that a typing error is not told after a minute of reading."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Literal, TypedDict, cast

from fourstage.data.bad_images import find_bad_images, without
from fourstage.data.formats import find_format, open_dataset
from fourstage.data.sample import Dataset, Truth
from fourstage.data.shards.cache import is_address
from fourstage.data.shards.dataset import is_pattern, is_shards
from fourstage.engine.devices import Ranks
from fourstage.progress import Bar
from fourstage.recipe import EMBEDDED, Recipe
from fourstage.run.task_protocol import kind_of

SCAN_UP_TO = 20_000  # images that are all read once before training starts; larger sets are read as they come


class Scan(TypedDict):
    """What is known of the images of one split."""

    ids: str  # a fingerprint of all ids in their order
    bad: dict[str, str]  # id -> why it cannot be read


@dataclass(frozen=True)
class Splits:
    """The data of a run, and what a person should know about it."""

    train: Dataset
    val: Dataset
    notes: tuple[str, ...] = ()
    scans: dict[str, Scan] = field(default_factory=dict)


def data_path(data: str | Path) -> str:
    """A data set as a recipe stores it: the name of an embedded one, an address, or an absolute path."""
    text = str(data)
    if not text:
        raise ValueError("--data is empty; name a folder, or digits")
    return text if text in EMBEDDED or is_address(text) else str(Path(text).expanduser().resolve())


def open_split(recipe: Recipe, split: Literal["train", "val"], *, show: bool) -> Dataset:
    """One split of the recipe's data, no image read yet.

    Raises:
        ValueError: no data, none that is known, or classes that are not the recipe's.
    """
    if recipe.data is None:
        raise ValueError("the recipe names no data; add --data FOLDER, or --data digits to try it out")
    what = "making digit_scenes" if recipe.data == "digit_scenes" else "indexing shards"
    long = recipe.data == "digit_scenes" or is_pattern(recipe.data) or is_shards(Path(recipe.data))
    truth = cast(Truth, kind_of(recipe).TRUTH)
    with Bar(what, 1, show=show and long, every=5) as bar:
        try:
            dataset = open_dataset(recipe.data, split, truth=truth, progress=bar.of)
        except ValueError:
            _check_kind(recipe, truth)
            raise
    kind_of(recipe).check_data(recipe, dataset)
    if not len(dataset):
        raise ValueError(f"{recipe.data} has no images for {split}; add some, at least two for each class")
    return dataset


def _check_kind(recipe: Recipe, truth: Truth) -> None:
    """Raise ValueError where the data is of another kind than the recipe: what else is wrong with it is no matter."""
    assert recipe.data is not None
    if (found := find_format(recipe.data, truth).truth) != truth:
        kind_of(recipe).check_data(recipe, cast(Dataset, SimpleNamespace(truths=(found,), classes=())))


def open_splits(recipe: Recipe, *, show: bool) -> Splits:
    """Both splits; see `open_split`."""
    return Splits(open_split(recipe, "train", show=show), open_split(recipe, "val", show=show))


def readable_splits(opened: Splits, recipe: Recipe, ranks: Ranks, known: Path, *, show: bool) -> Splits:
    """Both splits without images that cannot be read, where the recipe says to skip them.

    Args:
        known: the file with the scans of an earlier start, which need not be made again.

    Raises:
        ValueError: images cannot be read.
    """
    before: Mapping[str, Scan] = json.loads(known.read_text()) if known.is_file() else {}
    train, train_scan, train_notes = readable(opened.train, "train", recipe, ranks, before.get("train"), show=show)
    val, val_scan, val_notes = readable(opened.val, "val", recipe, ranks, before.get("val"), show=show)
    notes = tuple(dict.fromkeys(train_notes + val_notes))
    return Splits(train, val, notes, {"train": train_scan, "val": val_scan})


def readable(
    dataset: Dataset, split: str, recipe: Recipe, ranks: Ranks, known: Scan | None = None, *, show: bool
) -> tuple[Dataset, Scan, tuple[str, ...]]:
    """One split without unreadable images, its scan and what there is to say about it; see `readable_splits`."""
    ids = fingerprint(dataset)
    scan = known if known is not None and known["ids"] == ids else None
    scan = scan or Scan(ids=ids, bad=_bad_images(dataset, split, recipe, ranks, show=show))
    notes = tuple(note for note in (getattr(dataset, "note", ""),) if note)
    if not scan["bad"]:
        return dataset, scan, notes
    first = next(iter(scan["bad"].values()))
    told = f"{len(scan['bad'])} of {len(dataset)} images in {split} cannot be read, the first: {first}"
    if not recipe.skip_bad_images:
        raise ValueError(
            f"{told}; mend them (`fourstage data check {recipe.data}` lists all), or add skip_bad_images=true"
        )
    if len(scan["bad"]) == len(dataset):
        raise ValueError(f"{told}; nothing is left, so give other --data")
    return without(dataset, scan["bad"]), scan, (*notes, f"skipped: {told}")


def fingerprint(dataset: Dataset) -> str:
    """A hash of all ids in their order: the same data set in another place has the same."""
    digest = hashlib.sha256()
    for index in range(len(dataset)):
        digest.update(dataset.id(index).encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()


def _bad_images(dataset: Dataset, split: str, recipe: Recipe, ranks: Ranks, *, show: bool) -> dict[str, str]:
    """Read every image once, in the first process, and tell the others; large sets are read as they come."""
    bad: dict[str, str] = {}
    if ranks.first and (recipe.skip_bad_images or len(dataset) <= SCAN_UP_TO):
        with Bar(f"reading {split}", len(dataset), show=show, every=5) as bar:
            found = find_bad_images(dataset, progress=lambda done, total: bar.update(done))
        bad = {id: str(error) for id, error in found.items()}
    return ranks.gather(bad)
