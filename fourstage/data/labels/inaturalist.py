"""iNaturalist 2017 to 2019: `train2018.json` and `val2018.json` beside `train_val2018/`. 2021 has class folders."""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fourstage.data.findings import Finding
from fourstage.data.labels.listing import FileStore, Listing, empty_classes, hold_out, label_problems, missing_files
from fourstage.data.limits import as_id, as_name, check_classes, check_inside, colliding, leads_away
from fourstage.data.mapped_classes import KnownClasses, match_names
from fourstage.data.sample import NoSplitError, Split
from fourstage.documents import read_json

YEARS = "20[0-9][0-9]"
BYTES, VALUES = 2**29, 20_000_000  # of a json; that of 2017's 579,000 training images has 130 MB
CHECKED: dict[str, Callable[[Any], Any]] = {  # what returns the value of a key, or raises ValueError
    "id": as_id, "image_id": as_id, "category_id": as_id, "file_name": as_name, "name": lambda name: f"{name!s:.1000}",
}  # fmt: skip


def is_inaturalist(root: Path) -> bool:
    return any(any(root.glob(f"{split}{YEARS}.json")) for split in ("train", "val"))


def survey_inaturalist(root: Path, split: Split) -> Listing:
    """Return the listing of one split; classes are the categories in the order of their ids.

    Raises:
        NoSplitError: no json for this split.
        ValueError: the json is damaged.
    """
    found = {s: max(root.glob(f"{s}{YEARS}.json"), default=None) for s in ("train", "val")}
    if found["train"] is not None and found["val"] is not None and not _read(found["val"])["images"]:
        found["val"] = None
    path = found[split] or found["train"]
    if path is None or (split == "train" and found["train"] is None):
        raise NoSplitError(
            f"{root} holds {found['val']} but no train20xx.json; download it, or use this data for evaluation only"
        )
    content = _read(path)
    first = _read(found["train"]) if found["train"] not in (None, path) else content
    categories = sorted(first["categories"], key=lambda category: (isinstance(category["id"], str), category["id"]))
    classes = _names(categories)
    label = {category["id"]: i for i, category in enumerate(categories)}
    if first is not content and [*map(_id_and_name, content["categories"])] != [
        *map(_id_and_name, first["categories"])
    ]:
        label = _labels_by_name(content, classes, str(path))
    of_image = {a["image_id"]: label.get(a["category_id"], -1) for a in content["annotations"]}
    images = [image for image in content["images"] if image["id"] in of_image]
    names = [os.fsencode(image["file_name"]) for image in images]
    check_inside(root, (root / name for name in map(os.fsdecode, names) if leads_away(name)), path)
    labels_N = np.array([of_image[image["id"]] for image in images], dtype=np.int64)
    problems = label_problems(str(path), labels_N, classes)
    if left := len(content["images"]) - len(images):
        what, do = f"has no annotation for {left:,} of its images", "they are left out"
        problems.append(Finding("warning", "image without label", str(path), what, do))
    if split == "train":
        problems += empty_classes(str(path), labels_N, classes)
    store, missing = FileStore(root, names, path), missing_files(root, names)
    listing = Listing(str(path), classes, labels_N, store, np.arange(len(names)), problems, missing)
    return listing if found["val"] is not None else hold_out(listing, split)


def _id_and_name(category: dict[str, Any]) -> tuple[Any, str]:
    return category["id"], str(category["name"])


def _labels_by_name(content: dict[str, Any], classes: tuple[str, ...], source: str) -> dict[Any, int]:
    """Return the label of each category's id in the classes of the training split, matched by name."""
    used = {annotation["category_id"] for annotation in content["annotations"]}
    names = _names(content["categories"])
    positions = {i for i, category in enumerate(content["categories"]) if category["id"] in used}
    table_C = match_names(names, source, KnownClasses(classes, "the training split"), positions)
    return {category["id"]: int(label) for category, label in zip(content["categories"], table_C, strict=True)}


def _read(path: Path) -> dict[str, Any]:
    needed = {
        "images": ("id", "file_name"),
        "annotations": ("image_id", "category_id"),
        "categories": ("id", "name"),
    }
    try:
        content = read_json(path, most_bytes=BYTES, most_values=VALUES)
    except ValueError as error:
        raise ValueError(f"{path} is not a list of iNaturalist ({error}); download it again") from error
    if not isinstance(content, dict) or not all(isinstance(content.get(name), list) for name in needed):
        raise ValueError(f"{path} is not a list of iNaturalist: it needs {', '.join(needed)}; download it again")
    for name, keys in needed.items():
        for position, entry in enumerate(content[name]):
            if not _has(entry, keys):
                raise ValueError(f"{path}: an entry of {name!r} lacks one of {', '.join(keys)}; download it again")
            try:
                entry.update({key: CHECKED[key](entry[key]) for key in keys})
            except ValueError as error:
                raise ValueError(f"{path}: {name}[{position}]: {error}; download it again") from error
    check_classes(len(content["categories"]), path)
    for name in ("images", "categories"):
        if (id := colliding([entry["id"] for entry in content[name]])) is not None:
            raise ValueError(f"{path} has several {name} with the id {id!r:.80}; download it again")
    return content


def _has(entry: Any, keys: tuple[str, ...]) -> bool:
    return isinstance(entry, dict) and all(key in entry for key in keys)


def _names(categories: list[dict[str, Any]]) -> tuple[str, ...]:
    """Return the categories' names; those that occur twice (two kingdoms may share a name) get their id."""
    counts = Counter(str(category["name"]) for category in categories)
    return tuple(
        str(category["name"]) if counts[str(category["name"])] == 1 else f"{category['name']} ({category['id']})"
        for category in categories
    )
