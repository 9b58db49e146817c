"""Where a folder keeps the COCO json and the images of each split, as annotation tools export them."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from urllib.parse import unquote

from fourstage.data.file_names import found_names
from fourstage.data.limits import check_inside, leads_away
from fourstage.data.sample import NoSplitError, Split
from fourstage.data.splits import EXPORT_SPLIT_NAMES, SPLIT_NAMES, of_split
from fourstage.documents import read_json
from fourstage.files import open_regular

EXPORTED = "_annotations.coco.json"
MOST_FILES = 20  # json files of one folder; more are labels of one image each, in another format
SNIFFED = 2**20  # bytes from the beginning and the end of a json
OTHER = re.compile(r"(person_keypoints|captions|panoptic|stuff|image_info)_|.*_bboxes$|_")  # json with other content


@dataclass(frozen=True)
class Annotated:
    """Where one split is."""

    annotations: Path  # the json
    images: Path  # the folder that its file names start from
    root: Path  # the data folder, in which all images are
    held_out: bool = False  # whether the json is of both splits, of which one is a tenth


def is_coco(root: Path) -> bool:
    """Whether `root` looks like a folder in COCO layout, or is a json of COCO itself."""
    if root.is_file():
        return is_coco_json(root)
    return any(root.glob("annotations/instances_*.json")) or any(root.glob(f"*/{EXPORTED}")) or bool(_others(root))


def is_coco_json(data: str | Path) -> bool:
    """Whether `--data` names a json."""
    return str(data).lower().endswith(".json") and Path(data).is_file()


def find_split(root: Path, split: Split) -> Annotated:
    """Return the json and the image folder of one split.

    Where there is none for validation, or one without images, both splits are of one json.

    Raises:
        NoSplitError: there is no json for this split.
        ValueError: there are several, and none is of this split by its name.
    """
    if is_coco_json(root):
        return Annotated(root, _image_folder(_above(root), root), _above(root), held_out=True)
    train, val = _of(root, "train"), _of(root, "val")
    if train is None and val is None:
        train = _only(root)
    place = train if split == "train" or val is None else val
    if place is None:
        raise NoSplitError(
            f"{root} holds no annotations for the {split} split: annotations/instances_{split}*.json "
            f"or {'train' if split == 'train' else 'valid'}/{EXPORTED} is needed"
        )
    return Annotated(place.annotations, place.images, root, held_out=val is None)


def find_images(place: Annotated, names: Sequence[str]) -> tuple[Annotated, dict[int, str]]:
    """Return a place whose folder is the one of the names, and by position the names that files have instead.

    Raises:
        ValueError: an image is not in the data folder; see `check_inside`.
    """
    first = unquote(names[0]).replace("\\", "/") if names else ""  # as Label Studio writes it on Windows
    if first and not leads_away(first) and not any((place.images / name).is_file() for name in (names[0], first)):
        folders = (place.root, place.annotations.parent)
        place = replace(place, images=next((f for f in folders if (f / first).is_file()), place.images))
    found = found_names(place.root, place.images, names)
    away = (place.images / name for i, name in enumerate(names) if leads_away(name) and i not in found)
    check_inside(place.root, away, place.annotations)
    return place, found


def _of(root: Path, split: Split) -> Annotated | None:
    def used(paths: Iterable[Path]) -> list[Path]:
        return [path for path in paths if path.is_file() and not (split == "val" and _lists_nothing(path))]

    for name in EXPORT_SPLIT_NAMES[split]:
        if used([root / name / EXPORTED]):
            return Annotated(root / name / EXPORTED, root / name, root)
    for name in EXPORT_SPLIT_NAMES[split]:
        found = used(sorted(root.glob(f"annotations/instances_{name}*.json"), reverse=True))  # 2017 before 2014
        places = [Annotated(path, _image_folder(root, path), root) for path in found]
        if places:
            return next((place for place in places if place.images.is_dir()), places[0])
    path = of_split(used(_instances(root)), split) or of_split(used(_others(root)), split)
    return None if path is None else Annotated(path, _image_folder(root, path), root)


def _lists_nothing(path: Path) -> bool:
    """Return whether a json of COCO lists no image, as that of an export whose validation split is empty."""
    try:
        if path.stat().st_size > SNIFFED:
            return False
        content = read_json(path)
    except (OSError, ValueError):
        return False  # the reader says what is wrong
    return isinstance(content, dict) and content.get("images") == []


def _only(root: Path) -> Annotated | None:
    """Return the json of a folder whose names say nothing about splits."""
    paths = _instances(root) or _others(root)
    if len(paths) > 1:
        names = ", ".join(path.name for path in paths[:5])
        raise ValueError(
            f"{root} has the annotations {names}, and no name says which are for training; call them "
            "instances_train.json and instances_val.json, or give one of them as --data"
        )
    return Annotated(paths[0], _image_folder(root, paths[0]), root) if paths else None


def _instances(root: Path) -> list[Path]:
    return sorted(root.glob("annotations/instances_*.json"))


def _others(root: Path) -> list[Path]:
    """Return the json files in `root`, or else in `annotations`, that hold boxes by their first and last megabyte."""
    for folder in (root, root / "annotations"):
        paths = sorted(islice(folder.glob("*.json"), MOST_FILES + 1))
        named = [path for path in paths if not OTHER.match(path.stem) and not path.name.startswith(".")]
        if len(paths) <= MOST_FILES and (found := [path for path in named if _holds_boxes(path)]):
            return found
    return []


def _holds_boxes(path: Path) -> bool:
    try:
        with open_regular(path) as file:
            text, size = file.read(SNIFFED), path.stat().st_size
            file.seek(max(SNIFFED, size - SNIFFED))
            text += file.read(SNIFFED)
    except (OSError, ValueError):  # ValueError: a folder or a named pipe
        return False
    return b'"bbox"' in text and b'"category_id"' in text


def _image_folder(root: Path, annotations: Path) -> Path:
    name = annotations.stem.removeprefix("instances_")
    aliases = next((names for names in SPLIT_NAMES.values() if name.lower() in names), ())
    candidates = [root / folder / one for one in (name, *aliases) for folder in ("", "images")]
    folder = next((folder for folder in (*candidates, root / "images") if folder.is_dir()), None)
    return folder or (root / name if annotations.name.startswith("instances_") else root)


def _above(annotations: Path) -> Path:
    """Return the data folder of a json: the one it is in, or the one above `annotations`."""
    folder = annotations.parent
    return folder.parent if folder.name.lower() == "annotations" else folder
