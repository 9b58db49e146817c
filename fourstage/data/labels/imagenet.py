"""ImageNet in other forms than class folders: lists, zip archives, the 22K lists, and Kaggle's tree.

    train/... val/... meta/train.txt meta/val.txt               lines "path label"                   (OpenMMLab, STM)
    train.zip train_map.txt val.zip val_map.txt                 lines "path<TAB>label"               (Swin, SMT)
    n01440764/... ILSVRC2011fall_whole_map_{train,val}.txt      JSON: [[path, label], ...]           (Swin on 22K)
    ILSVRC/Data/CLS-LOC/{train,val} LOC_val_solution.csv        val/ without folders                 (Kaggle)

Labels count from 0. N images.
"""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from fourstage.data.findings import Finding
from fourstage.data.labels.listing import (
    FileStore,
    Listing,
    Store,
    class_names,
    empty_classes,
    folder_labels,
    hold_out,
    label_problems,
    missing_files,
)
from fourstage.data.labels.zips import ZipStore
from fourstage.data.limits import (
    LIST_BYTES,
    TEXT_BYTES,
    as_label,
    as_name,
    check_classes,
    check_inside,
    is_path,
    leads_away,
    text_lines,
)
from fourstage.data.sample import NoSplitError, Split
from fourstage.data.walk import image_files, subfolders
from fourstage.documents import parse_json
from fourstage.files import read_bytes

FALL = "ILSVRC2011fall_whole_map_{}.txt"
KAGGLE = "ILSVRC/Data/CLS-LOC"
LABEL = re.compile(rb"[-+]?[0-9]{1,18}")
PAIRS = 60_000_000  # values of a 22K list, which has three for each image
SHOWN = 100  # broken lines of one list that are reported; a file that is not a list may have a million


@dataclass(frozen=True)
class Entries:
    """The content of a list: paths as bytes, labels, and what is wrong with its lines."""

    names: list[bytes]
    labels_N: np.ndarray
    problems: list[Finding] = field(default_factory=list)


@dataclass(frozen=True)
class Layout:
    """How one of the forms is read."""

    lists: dict[Split, Path]
    read: Callable[[Path], Entries]
    store: Callable[[Split, Sequence[bytes]], tuple[Store, tuple[int, ...]]]  # with the positions of missing images
    classes: tuple[str, ...] = ()  # where they are known without the lists
    images: dict[Split, Path] = field(default_factory=dict)  # where a split's images would be


def survey(root: Path, layout: Layout, split: Split) -> Listing:
    """Return the listing of one split; without a validation list, a tenth of the training list is held out.

    Raises:
        NoSplitError: neither the list nor the images of this split.
        ValueError: images of this split without the list.
    """
    here, place = {s: path for s, path in layout.lists.items() if path.is_file()}, layout.images.get(split)
    if "val" in here and "train" in here and not read_bytes(here["val"], LIST_BYTES).strip():
        del here["val"]
    if split not in here and (split == "train" or "train" not in here or (place is not None and place.exists())):
        lacking = place is None or not place.exists()
        raise (NoSplitError if lacking else ValueError)(
            f"{root if lacking else place} comes without {layout.lists[split]}, so its images have no labels: "
            "write that list, with a path and a label in each line"
        )
    known = layout.read(here.get("train", layout.lists["val"]))
    own = known if split not in here or "train" not in here else layout.read(here[split])
    source = str(here.get(split, layout.lists["train"]))
    classes = layout.classes or class_names(root, known.names, known.labels_N, source)
    own, twice = _without_duplicates(own, source)
    if own is not known and (labels_N := labels_by_folder(known, own)) is not None:
        what, do = f"numbers the folders of {layout.lists['train']} differently", "labels are matched by the folders"
        twice.append(Finding("note", "other numbers", source, what, do))
        own = replace(own, labels_N=labels_N)
    store, missing = layout.store(split if split in here else "train", own.names)
    listing = Listing(
        source=source,
        classes=classes,
        labels_N=own.labels_N,
        store=store,
        rows_N=np.arange(len(own.names)),
        problems=[*own.problems, *twice, *label_problems(source, own.labels_N, classes)],
        missing=missing,
        note="; ".join(map(str, (problem for problem in twice if problem.severity == "note"))),
    )
    if split == "train" and len(own.labels_N):
        listing.problems.extend(empty_classes(source, own.labels_N, classes))
    return listing if "val" in here else hold_out(listing, split)


def _without_duplicates(entries: Entries, source: str) -> tuple[Entries, list[Finding]]:
    """Drop the copies of images that are listed more than once with one label; two labels of one image are an error."""
    if len(set(entries.names)) == len(entries.names):
        return entries, []
    labels: dict[bytes, int] = {}
    kept, findings, copies = list[int](), list[Finding](), 0
    for place, (name, label) in enumerate(zip(entries.names, entries.labels_N.tolist(), strict=True)):
        if name not in labels:
            labels[name] = label
            kept.append(place)
        elif labels[name] == label:
            copies += 1
        else:
            what = f"gives {os.fsdecode(name)} the labels {labels[name]} and {label}"
            findings.append(Finding("error", "two labels", source, what, "remove the wrong line"))
    if copies:
        what = f"lists {copies:,} image{'s' * (copies > 1)} more than once"
        findings.append(Finding("note", "listed twice", source, what, "each is used once"))
    return Entries([entries.names[i] for i in kept], entries.labels_N[kept], entries.problems), findings


def labels_by_folder(known: Entries, own: Entries) -> np.ndarray | None:
    """Return the labels that the training list gives the folders of another list, where the two lists contradict.

    Nothing is returned unless each label has one folder in both lists, and the training list has all labels and folders
    of the other.
    """
    trained, listed = folder_labels(known.names, known.labels_N), folder_labels(own.names, own.labels_N)
    if not listed.keys() <= trained.keys() or not {*listed.values()} <= {*trained.values()}:
        return None
    label = {old: trained[folder] for folder, old in listed.items()}
    if all(old == new for old, new in label.items()):
        return None
    return np.array([label[old] for old in own.labels_N.tolist()], dtype=np.int64)


def read_lines(path: Path) -> Entries:
    """Read a list with a path and a label in each line, separated by a tab or by spaces; paths may contain spaces."""
    names, labels, problems = list[bytes](), list[int](), list[Finding]()
    content = read_bytes(path, LIST_BYTES).removeprefix(b"\xef\xbb\xbf")
    for number, line in enumerate(content.splitlines(), 1):
        fields = line.rsplit(b"\t" if b"\t" in line else None, 1)
        if not fields or not line.strip():
            continue
        name = fields[0].strip().removeprefix(b"./")
        if len(fields) < 2 or not LABEL.fullmatch(fields[1].strip()) or not is_path(name):
            if len(problems) < SHOWN:
                what = f"reads {os.fsdecode(line[:80])!r}"
                do = "it must be a path and a label, such as n01440764/n01440764_18.JPEG 0"
                problems.append(Finding("error", "broken line", f"{path}, line {number}:", what, do))
            continue
        names.append(name)
        labels.append(int(fields[1]))
    return Entries(names, np.array(labels, dtype=np.int64), problems)


def read_pairs(path: Path) -> Entries:
    """Read a 22K list: JSON with a pair of path and label for each image."""
    try:
        pairs = parse_json(read_bytes(path, LIST_BYTES), path, most_bytes=LIST_BYTES, most_values=PAIRS)
        names = [os.fsencode(as_name(name)) for name, _ in pairs]
        labels = [as_label(label) for _, label in pairs]
    except (ValueError, TypeError) as error:
        do = 'it must be JSON such as [["n01440764/n01440764_18.JPEG", 0], ...]; download it again'
        return Entries([], np.empty(0, np.int64), [Finding("error", "broken list", str(path), f"({error})", do)])
    return Entries(names, np.array(labels, dtype=np.int64))


def _files_of(
    root: Path, folders: Sequence[Path], names: Sequence[bytes], source: Path
) -> tuple[FileStore, tuple[int, ...]]:
    """Return the store of files below the first of `folders` that has the first name, and the missing positions.

    Raises:
        ValueError: a file is not in `root`; see `check_inside`.
    """
    first = os.fsdecode(names[0]) if names else ""
    folder = next((folder for folder in folders if (folder / first).is_file()), folders[0])
    check_inside(root, (folder / name for name in map(os.fsdecode, names) if leads_away(name)), source)
    return FileStore(folder, names, source), missing_files(folder, names)


# -------------------------------------------------------------------------------------------------- meta/*.txt


def is_meta_lists(root: Path) -> bool:
    return any((root / "meta" / f"{split}.txt").is_file() for split in ("train", "val"))


def survey_meta_lists(root: Path, split: Split) -> Listing:
    folders: dict[Split, Path] = {"train": root / "train", "val": root / "val"}

    def store(split: Split, names: Sequence[bytes]) -> tuple[Store, tuple[int, ...]]:
        return _files_of(root, (folders[split], root), names, lists[split])

    lists: dict[Split, Path] = {s: root / "meta" / f"{s}.txt" for s in folders}
    return survey(root, Layout(lists, read_lines, store, images=folders), split)


# ------------------------------------------------------------------------------------------ *.zip and *_map.txt


def is_zip_maps(root: Path) -> bool:
    """Whether there is an archive of a split; one without a list whose folder is unpacked does not count."""
    return any(
        (root / f"{s}.zip").is_file() and ((root / f"{s}_map.txt").is_file() or not (root / s).is_dir())
        for s in ("train", "val")
    )


def survey_zip_maps(root: Path, split: Split) -> Listing:
    archives: dict[Split, Path] = {"train": root / "train.zip", "val": root / "val.zip"}

    def store(split: Split, names: Sequence[bytes]) -> tuple[Store, tuple[int, ...]]:
        return ZipStore.open(archives[split], names, inside=f"{split}/".encode())

    lists: dict[Split, Path] = {s: root / f"{s}_map.txt" for s in archives}
    return survey(root, Layout(lists, read_lines, store, images=archives), split)


# --------------------------------------------------------------------------------------------------------- 22K


def is_fall(root: Path) -> bool:
    return any((root / FALL.format(split)).is_file() for split in ("train", "val"))


def survey_fall(root: Path, split: Split) -> Listing:
    lists: dict[Split, Path] = {"train": root / FALL.format("train"), "val": root / FALL.format("val")}

    def store(split: Split, names: Sequence[bytes]) -> tuple[Store, tuple[int, ...]]:
        return _files_of(root, (root,), names, lists[split])

    return survey(root, Layout(lists, read_pairs, store), split)


# ------------------------------------------------------------------------------------------------------ Kaggle


def is_kaggle(root: Path) -> bool:
    return (root / KAGGLE).is_dir()


def survey_kaggle(root: Path, split: Split) -> Listing:
    """Return the listing of one split: training images in class folders, validation images labelled by the csv.

    Raises:
        NoSplitError: no images of this split.
        ValueError: no names of classes, or no labels.
    """
    folder = root / KAGGLE
    classes = tuple(subfolders(folder / "train")) if (folder / "train").is_dir() else ()
    mapping = root / "LOC_synset_mapping.txt"
    if not classes and mapping.is_file():
        classes = tuple(line.split()[0] for line in text_lines(read_bytes(mapping, TEXT_BYTES), mapping))
        check_classes(len(classes), mapping)
    label, images = {name: i for i, name in enumerate(classes)}, folder / split
    if not images.is_dir():
        raise NoSplitError(f"{folder} holds no {split}/; unpack it there, or use this data without that split")
    if not classes:
        raise ValueError(f"{folder} has no class folders in train/, and there is no {mapping}; unpack one of them")
    source = root / "LOC_val_solution.csv" if split == "val" else images
    if not source.exists():
        raise ValueError(f"{images} comes without {source}, which has its labels: unpack it there")
    own = _solutions(source, label) if split == "val" else _class_folders(images, label)
    store, missing = _files_of(root, (images,), own.names, source)
    problems = [*own.problems, *label_problems(str(source), own.labels_N, classes)]
    if split == "train":
        problems += empty_classes(str(source), own.labels_N, classes)
    return Listing(str(source), classes, own.labels_N, store, np.arange(len(own.names)), problems, missing)


def _class_folders(folder: Path, label: dict[str, int]) -> Entries:
    files = {name: [f"{name}/{path}" for path in image_files(folder / name)] for name in label}
    names = [os.fsencode(path) for paths in files.values() for path in paths]
    labels_N = np.repeat([label[name] for name in files], [len(paths) for paths in files.values()])
    return Entries(names, labels_N.astype(np.int64))


def _solutions(path: Path, label: dict[str, int]) -> Entries:
    """Read lines such as `ILSVRC2012_val_00048981,n03995372 85 1 499 272`, below a header."""
    names, labels, problems = list[bytes](), list[int](), list[Finding]()
    for number, line in enumerate(text_lines(read_bytes(path, LIST_BYTES), path)[1:], 2):
        name, _, rest = line.partition(",")
        if not (words := rest.split()) or words[0] not in label or not is_path(os.fsencode(name)):
            what = f"reads {line[:80]!r}"
            problems.append(
                Finding("error", "broken line", f"{path}, line {number}:", what, "it names no class; correct it")
            )
            continue
        names.append(os.fsencode(f"{name}.JPEG"))
        labels.append(label[words[0]])
    return Entries(names, np.array(labels, dtype=np.int64), problems)
