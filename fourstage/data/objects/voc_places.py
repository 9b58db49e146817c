"""Where data sets in Pascal VOC's layout keep the XML files and the images of each split."""

import re
from itertools import islice
from pathlib import Path

from fourstage.data.limits import LIST_BYTES, as_name, check_inside, leads_away, text_lines
from fourstage.data.sample import NoSplitError, Split
from fourstage.data.splits import EXPORT_SPLIT_NAMES, held_out_note, joined_notes, split_positions
from fourstage.files import open_regular, read_bytes

IMAGES = ("JPEGImages", "images", "Images", "imgs")  # beside a folder of XML files
ROOT = re.compile(rb"<annotation[\s>]")  # not <annotations>, which CVAT writes for all images in one file
SNIFFED = 4096  # bytes of an XML file


def is_voc(root: Path) -> bool:
    """Whether `root` is a folder of VOC, holds some, or has XML files next to its images or in `annotations`."""
    if _voc_folders(root) or any(any((root / name).glob("*.xml")) for name in EXPORT_SPLIT_NAMES["train"]):
        return True
    return any(_begins(folder) for _, folder in _folders(root))


def has_lists(root: Path) -> bool:
    """Whether `root` has the lists of VOC itself, `ImageSets/Main`."""
    return any((folder / "ImageSets" / "Main").is_dir() for folder in _voc_folders(root))


def find_files(root: Path, split: Split) -> tuple[list[Path], str]:
    """Return the XML files of one split, in the order of the lists, and a note for the user.

    Raises:
        NoSplitError: no list and no folder for this split.
        ValueError: a list names files outside of the data folder.
    """
    if folders := _voc_folders(root):
        listed = [_listed(folder, split) for folder in folders]
        return [file for files, _ in listed for file in files], joined_notes(*(note for _, note in listed))
    by_split: dict[Split, list[Path]] = {"train": [], "val": []}
    for one, folder in _folders(root):
        by_split[one] = by_split[one] or sorted(folder.glob("*.xml"))
    if not by_split["val"] and by_split["train"]:
        return _held_apart(root, by_split["train"], split)
    if not by_split[split]:
        raise NoSplitError(f"{root} holds no XML files for {split}, such as {EXPORT_SPLIT_NAMES[split][0]}/*.xml")
    return by_split[split], ""


def image_places(annotation: Path) -> list[Path]:
    """Return the folders that may hold the image of an XML file: one beside `annotations`, or the file's own."""
    names = list(annotation.parent.parts)
    above = [i for i, name in enumerate(names) if name.lower() == "annotations"]
    if not above:
        return [annotation.parent]
    start, rest = Path(*names[: above[-1]]), names[above[-1] + 1 :]
    beside = [start / name for name in IMAGES if (start / name).is_dir()] or [start / IMAGES[0]]
    return [*(folder.joinpath(*rest) for folder in beside), annotation.parent]


def _folders(root: Path) -> list[tuple[Split, Path]]:
    """Return the folders that may hold the XML files of a split, those of the splits before one for all."""
    places: list[tuple[Split, Path]] = []
    for split, names in EXPORT_SPLIT_NAMES.items():
        for name in names:
            below = (name, f"{name}/annotations", f"annotations/{name}", f"Annotations/{name}")
            places.extend((split, root / folder) for folder in below)
    places.extend(("train", root / folder) for folder in ("", "annotations", "Annotations"))
    return [(split, folder) for split, folder in places if folder.is_dir()]


def _begins(folder: Path) -> bool:
    """Return whether one of the first XML files of a folder is of this layout, by its beginning."""
    for path in islice(folder.glob("*.xml"), 3):
        try:
            with open_regular(path) as file:
                if ROOT.search(file.read(SNIFFED)):
                    return True
        except (OSError, ValueError):  # ValueError: a folder or a named pipe
            continue
    return False


def _voc_folders(root: Path) -> list[Path]:
    candidates = (root, *sorted(root.glob("VOC[0-9]*")), *sorted(root.glob("VOCdevkit/VOC[0-9]*")))
    return [path for path in candidates if (path / "Annotations").is_dir() and (path / "JPEGImages").is_dir()]


def _listed(folder: Path, split: Split) -> tuple[list[Path], str]:
    """Return the XML files that the lists of a folder of VOC name, or all where it has no list."""
    there = {path.stem.lower(): path for path in sorted((folder / "ImageSets" / "Main").glob("*.txt"))}
    paired: dict[Split, tuple[str, ...]] = {
        "train": ("train", "trainval"),
        "val": ("val", "test", "valid", "validation"),
    }
    train, val = ([there[name] for name in names if name in there] for names in paired.values())
    if "val" not in there:  # trainval goes with test
        train.reverse()
    if not train and not val:
        one = there.get("default")  # CVAT's name for images without a split
        files = sorted((folder / "Annotations").glob("*.xml")) if one is None else _of_list(folder, one)
        return _held_apart(folder, files, split)
    if split == "train" and not train:
        raise NoSplitError(f"{folder} has no list for {split}: ImageSets/Main/{split}.txt is needed")
    val = [path for path in val if not train or text_lines(read_bytes(path, LIST_BYTES), path)]
    if not val:
        return _held_apart(train[0], _of_list(folder, train[0]), split)
    return _of_list(folder, (train if split == "train" else val)[0]), ""


def _of_list(folder: Path, path: Path) -> list[Path]:
    stems = [as_name(line.split()[0]) for line in text_lines(read_bytes(path, LIST_BYTES), path)]
    files = [folder / "Annotations" / f"{stem}.xml" for stem in stems]
    away = [file for stem, file in zip(stems, files, strict=True) if leads_away(stem)]
    check_inside(folder, away, path)
    return files


def _held_apart(source: Path, files: list[Path], split: Split) -> tuple[list[Path], str]:
    names = [file.stem for file in files]
    if not files:
        raise NoSplitError(f"{source} holds no XML files for {split}, such as Annotations/0001.xml")
    return [files[i] for i in split_positions(names, split)], held_out_note(source, names)
