"""The data of a run: opened first, read later, so that a mistake in a recipe is reported before a minute of reading."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, TypedDict, TypeGuard, cast

from fourstage.data.bad_images import find_bad_images, without
from fourstage.data.formats import find_format
from fourstage.data.opening import InClasses, in_classes_of_training, open_usable, refuse_empty
from fourstage.data.sample import Dataset
from fourstage.data.shards.dataset import is_pattern, is_shards
from fourstage.documents import read_json
from fourstage.engine.devices import Ranks
from fourstage.files import typed
from fourstage.progress import Bar
from fourstage.recipe import EMBEDDED, Recipe
from fourstage.run.task_protocol import AnyProtocol

SCAN_UP_TO = 20_000  # images; up to here all are read once before training starts, larger sets only as they come


class Scan(TypedDict):
    """Which images of one split cannot be read."""

    ids: str  # fingerprint of all ids in their order
    bad: dict[str, str]  # id -> reason


@dataclass(frozen=True)
class Splits:
    """The data of a run, with notes for the user."""

    train: Dataset
    val: Dataset
    notes: tuple[str, ...] = ()
    scans: dict[str, Scan] = field(default_factory=dict)


def open_split(
    protocol: AnyProtocol, split: Literal["train", "val"], *, show: bool, mapped: InClasses | None = None
) -> Dataset:
    """Open one split of the recipe's data; no image is read yet.

    Args:
        mapped: returns the split in other classes; it is given the split, and its name for messages.

    Raises:
        ValueError: no data, data in no known format, other classes than the recipe's, or labels of a class that is not
            known.
    """
    recipe: Recipe = protocol.recipe
    if recipe.data is None:
        raise ValueError("the recipe names no data; add --data FOLDER, or --data digits to try it out")
    what = "making digit_scenes" if recipe.data == "digit_scenes" else "indexing shards"
    long = recipe.data == "digit_scenes" or is_pattern(recipe.data) or is_shards(Path(recipe.data))
    with Bar(what, 1, show=show and long, every=5) as bar:
        try:
            dataset = open_usable(recipe.data, split, truth=protocol.truth, mapped=mapped, progress=bar.of)
        except ValueError:
            _check_format(protocol)
            raise
    protocol.check_data(dataset)
    refuse_empty(dataset, recipe.data, split)
    return dataset


def _check_format(protocol: AnyProtocol) -> None:
    """Raise ValueError where the data is for another task: that matters more than other faults of the data."""
    if protocol.recipe.data in EMBEDDED:  # it has no folder, and lacks a library
        return
    if (truth := find_format(protocol.recipe.data, protocol.truth).truth) != protocol.truth:
        protocol.check_data(cast(Dataset, SimpleNamespace(truths=(truth,), classes=())))


def open_splits(protocol: AnyProtocol, *, show: bool) -> Splits:
    """Open both splits, the validation split in the classes of the training split; see `open_split`."""
    train = open_split(protocol, "train", show=show)
    return Splits(train, open_split(protocol, "val", show=show, mapped=in_classes_of_training(train)))


def readable_splits(opened: Splits, recipe: Recipe, ranks: Ranks, known: Path | None, *, show: bool) -> Splits:
    """Read both splits and return them without unreadable images, where the recipe says to skip these.

    Args:
        known: the file with the scans of an earlier start, which are not repeated; None: the run is new.

    Raises:
        ValueError: there are unreadable images, and the recipe does not skip them.
    """
    before = {} if known is None else scans_before(known)
    train, train_scan, train_notes = readable(opened.train, "train", recipe, ranks, before.get("train"), show=show)
    val, val_scan, val_notes = readable(opened.val, "val", recipe, ranks, before.get("val"), show=show)
    notes = tuple(dict.fromkeys(train_notes + val_notes))
    return Splits(train, val, notes, {"train": train_scan, "val": val_scan})


def scans_before(known: Path) -> dict[str, Scan]:
    """Return the scans by split in the file of an earlier start; those that are damaged are left out, and repeated."""
    try:
        content = read_json(known) if known.is_file() else {}
    except ValueError:
        return {}
    return {split: scan for split, scan in content.items() if _is_scan(scan)} if isinstance(content, dict) else {}


def _is_scan(value: Any) -> TypeGuard[Scan]:
    if not isinstance(value, dict) or not isinstance(value.get("ids"), str) or not isinstance(value.get("bad"), dict):
        return False
    return all(isinstance(report, str) for report in value["bad"].values())


def readable(
    dataset: Dataset, split: str, recipe: Recipe, ranks: Ranks, known: Scan | None = None, *, show: bool
) -> tuple[Dataset, Scan, tuple[str, ...]]:
    """Return one split without unreadable images, its scan and its notes; see `readable_splits`.

    Raises:
        ValueError: unreadable images that the recipe does not skip, or no readable one.
    """
    ids = fingerprint(dataset)
    scan = known if known is not None and known["ids"] == ids else None
    if scan is None or (scan["bad"] and not recipe.skip_bad_images):  # which may have been repaired meanwhile
        scan = Scan(ids=ids, bad=_bad_images(dataset, split, recipe, ranks, show=show))
    notes = tuple(note for note in (getattr(dataset, "note", ""),) if note)
    if not scan["bad"]:
        return dataset, scan, notes
    first = next(iter(scan["bad"].values()))
    report = f"{len(scan['bad'])} of {len(dataset)} images in {split} cannot be read, the first: {first}"
    if not recipe.skip_bad_images:
        raise ValueError(
            f"{report}; repair them (`fourstage data check {typed(str(recipe.data))}` lists all), or add "
            f"skip_bad_images=true"
        )
    if len(scan["bad"]) == len(dataset):
        raise ValueError(f"{report}; no image is left, so give other data with --data")
    return without(dataset, scan["bad"]), scan, (*notes, f"skipped: {report}")


def fingerprint(dataset: Dataset) -> str:
    """Return a hash of all ids in their order; the same data set in another folder has the same hash."""
    digest = hashlib.sha256()
    for index in range(len(dataset)):
        digest.update(dataset.id(index).encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()


def _bad_images(dataset: Dataset, split: str, recipe: Recipe, ranks: Ranks, *, show: bool) -> dict[str, str]:
    """Read every image once in the first process and share the result; large data sets are not read in advance."""
    bad: dict[str, str] = {}
    if ranks.first and (recipe.skip_bad_images or len(dataset) <= SCAN_UP_TO):
        with Bar(f"reading {split}", len(dataset), show=show, every=5) as bar:
            errors = find_bad_images(dataset, progress=lambda done, total: bar.update(done))
        bad = {id: str(error) for id, error in errors.items()}
    return ranks.gather(bad)
