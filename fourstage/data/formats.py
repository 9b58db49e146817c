"""The formats of data sets: one row each. A new format is one file and one row.

A user's format is registered by `register_format` in a file that a recipe names in `imports:`.
"""

import inspect
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, get_args

from fourstage.data.embedded.digit_scenes import cached_digit_scenes
from fourstage.data.embedded.digits import Digits
from fourstage.data.findings import Checked
from fourstage.data.images import is_image_name
from fourstage.data.label_maps.folders import LabelMaps, is_label_maps
from fourstage.data.labels import huggingface, imagenet, inaturalist
from fourstage.data.labels.cifar import Cifar, is_cifar
from fourstage.data.labels.imagefolder import NO_CLASSES, ImageFolder, is_imagefolder
from fourstage.data.labels.listing import Listed, Survey
from fourstage.data.objects.coco import Coco
from fourstage.data.objects.coco_places import is_coco, is_coco_json
from fourstage.data.objects.labelme import Labelme, is_labelme
from fourstage.data.objects.voc import Voc
from fourstage.data.objects.voc_places import is_voc
from fourstage.data.objects.yolo import Yolo
from fourstage.data.objects.yolo_places import is_yolo
from fourstage.data.sample import Dataset, Progress, Split, Truth
from fourstage.data.shards.dataset import is_pattern, is_shards, open_shards
from fourstage.data.walk import has_images, is_own_folder, subfolders
from fourstage.files import is_address
from fourstage.plurals import plural
from fourstage.user_files import BUILT_IN, Place, check_name, place_of, where_raised

Opener = Callable[..., Dataset]  # (folder, split), as `Format.open` says
Checker = Callable[[Path, Progress], Checked]


@dataclass(frozen=True)
class Format:
    """One way to store a data set in a folder.

    Checkers and writers are named as "module:function", so that they are imported when they are needed.

    Attributes:
        name: for messages; no two formats share one.
        layout: what such a folder holds, for the sentence that lists the known formats.
        fits: whether a folder is of this format. It is asked of every folder, so it looks at a few names only.
        open: a class or function of (folder, split) that returns a `Dataset`. It raises ValueError for what is wrong
            with the data, and `NoSplitError` for a split that the data lacks. Where it has a parameter `progress`, it
            is also given what is called with (done, total).
        truth: what the samples have. Several formats with different truths may fit one folder.
        check: a function of (folder, progress) that returns what is wrong with the data; None: it has no checker.
        write: a function that writes another data set in this format; None: it has no writer.
        takes: whether data that is no folder, such as an address, is of this format; None: it takes folders only.
    """

    name: str
    layout: str
    fits: Callable[[Path], bool]
    open: Opener
    truth: Truth = "label"
    check: Checker | str | None = None
    write: str | None = None
    takes: Callable[[str | Path], bool] | None = None

    def fits_folder(self, root: Path) -> bool:
        """Return whether a folder is of this format. Raises ValueError where a user's `fits` fails."""
        try:
            return bool(self.fits(root))
        except Exception as error:
            if self in FORMATS:
                raise
            raise ValueError(
                f"the format {self.name!r} failed on {root} ({type(error).__name__}: {error}, at "
                f"{where_raised(error)}); correct its fits"
            ) from error

    def place(self, data: str | Path) -> Any:
        """Return what `open` and `check` take: a folder as a path, anything else as it is.

        It is absolute, so that samples can be read after the working directory has changed.
        """
        if self.takes is None or not self.takes(data):
            return Path(data).absolute()
        return data if is_address(data) else str(Path(data).absolute())

    def dataset(self, data: str | Path, split: Split, progress: Progress | None = None) -> Dataset:
        """Open one split; see `open_dataset`."""
        more = {"progress": progress} if "progress" in inspect.signature(self.open).parameters else {}
        dataset = self.open(self.place(data), split, **more)
        if self not in FORMATS:
            _check_names(dataset, self.name)
        return dataset

    def checker(self) -> Checker:
        """Return the function that checks such data. Raises ValueError where the format has none."""
        if self.check is None:
            raise ValueError(
                f"the format {self.name!r} has no checker: give register_format a function as check=, or try the data "
                "with `fourstage train RECIPE --dry-run`"
            )
        return resolve_name(self.check) if isinstance(self.check, str) else self.check

    def writer(self) -> Callable[..., Any]:
        """Return the function that writes such data."""
        assert self.write is not None, f"{self.name} has no writer"
        return resolve_name(self.write)


def _check_names(dataset: Dataset, name: str) -> None:
    """Raise ValueError where a user's format gives classes or samples another name than a text."""
    named = [("class", one) for one in dataset.classes] + [("id", dataset.id(0))] * bool(len(dataset))
    for what, one in named:
        if not isinstance(one, str):
            raise ValueError(
                f"the format {name!r} has the {what} {one!r:.80}; make it a text, such as {str(one)!r:.80}"
            )


def _listing(name: str, layout: str, fits: Callable[[Path], bool], survey: Survey) -> Format:
    """Return the format of images that a list, an archive or a table names."""

    def check(root: Path, progress: Progress) -> Checked:
        from fourstage.data.checks.listed import check_listing

        return check_listing(name, partial(survey, root), str(root), progress)

    def open_split(root: Path, split: Split) -> Listed:
        return Listed(survey(root, split))

    return Format(name, layout, fits, open_split, check=check)


CHECKS = "fourstage.data.checks"
FORMATS = (  # the first that fits is taken; the more particular come first
    Format(
        name="COCO",
        layout="annotations/instances_*.json, train/_annotations.coco.json, one json",
        fits=is_coco,
        open=Coco,
        takes=is_coco_json,
        truth="objects",
        check=f"{CHECKS}.coco:check_coco",
    ),
    Format(
        name="YOLO",
        layout="data.yaml; obj.data, obj.names; classes.txt with images/ and labels/",
        fits=is_yolo,
        open=Yolo,
        truth="objects",
        check=f"{CHECKS}.yolo:check_yolo",
    ),
    Format(
        name="Pascal VOC",
        layout="Annotations/*.xml with JPEGImages/, or *.xml beside the images",
        fits=is_voc,
        open=Voc,
        truth="objects",
        check=f"{CHECKS}.voc:check_voc",
    ),
    Format(
        name="labelme",
        layout="*.json beside the images, in train/, or in json/ with images/",
        fits=is_labelme,
        open=Labelme,
        truth="objects",
        check=f"{CHECKS}.labelme:check_labelme",
    ),
    Format(
        name="label maps",
        layout="images/ with masks/, ADE20K, Cityscapes, VOC, CVAT, Roboflow",
        fits=is_label_maps,
        open=LabelMaps,
        truth="label_map_HW",
        check=f"{CHECKS}.label_maps:check_label_maps",
    ),
    _listing(
        "ImageNet lists",
        "meta/train.txt, with lines PATH LABEL",
        imagenet.is_meta_lists,
        imagenet.survey_meta_lists,
    ),
    _listing("ImageNet zip", "train.zip with train_map.txt", imagenet.is_zip_maps, imagenet.survey_zip_maps),
    _listing("ImageNet-22K", imagenet.FALL.format("train"), imagenet.is_fall, imagenet.survey_fall),
    _listing(
        "ImageNet of Kaggle",
        f"{imagenet.KAGGLE}/train with LOC_val_solution.csv",
        imagenet.is_kaggle,
        imagenet.survey_kaggle,
    ),
    _listing(
        "iNaturalist",
        "train2018.json with train_val2018/",
        inaturalist.is_inaturalist,
        inaturalist.survey_inaturalist,
    ),
    Format(
        name="CIFAR",
        layout="cifar-10-batches-py, cifar-100-python or the binary ones",
        fits=is_cifar,
        open=Cifar,
        check=f"{CHECKS}.listed:check_cifar",
    ),
    _listing(
        "Hugging Face",
        "dataset_dict.json, or data/train-*.parquet",
        huggingface.is_huggingface,
        huggingface.survey_huggingface,
    ),
    Format(
        name="WebDataset",
        layout="train-*.tar and val-*.tar",
        fits=is_shards,
        open=open_shards,
        check=f"{CHECKS}.listed:check_shards",
        write="fourstage.data.shards.write:write_shards",
        takes=is_pattern,
    ),
    Format(
        name="ImageFolder",
        layout="train/<class>/*.jpg, or <class>/*.jpg",
        fits=is_imagefolder,
        open=ImageFolder,
        check=f"{CHECKS}.imagefolder:check_imagefolder",
    ),
)
_registered: dict[str, tuple[Format, Place]] = {}  # by name; with the place of what opens it


def register_format(
    name: str,
    *,
    layout: str,
    fits: Callable[[Path], bool],
    truth: Truth = "label",
    check: Checker | None = None,
) -> Callable[[type | Opener], Any]:
    """Make your own format known: a decorator for the class or function that opens it. Arguments: see `Format`.

    Such formats are asked before the built-in ones, in the order of their registration. The same file may run again.

    Raises:
        ValueError: another format has this name, or there is no such truth.
    """
    if not isinstance(name, str) or not name:
        raise ValueError(f"the name of a format is text, such as 'my table'; got {name!r}")
    if truth not in get_args(Truth):
        raise ValueError(f"truth is one of {', '.join(get_args(Truth))}; the format {name!r} has {truth!r}")
    check_name(name, "formats", ("", ""), BUILT_IN if name in {format.name for format in FORMATS} else None)

    def decorate(open_split: type | Opener) -> Any:
        place = place_of(open_split)
        check_name(name, "formats", place, _registered.get(name, (None, None))[1])
        _registered[name] = (Format(name, layout, fits, open_split, truth, check), place)
        return open_split

    return decorate


def all_formats() -> tuple[Format, ...]:
    """Return the formats in the order in which a folder is compared with them."""
    return (*(format for format, _ in _registered.values()), *FORMATS)


def get_format(name: str) -> Format:
    """Return the format of this name."""
    return next(format for format in all_formats() if format.name == name)


def find_format(data: str | Path, truth: Truth | None = None) -> Format:
    """Return the format of a folder; see `open_dataset`. Raises ValueError when there is no folder, or none fits."""
    if str(data) == "":  # Path("") is the current folder
        raise ValueError(
            "the path of the data set is empty: give a folder, or one of the names digits and digit_scenes"
        )
    root, formats = Path(data), all_formats()
    for format in formats:
        if format.takes is not None and format.takes(data):
            return format
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise ValueError(f"{root} {what}: give the folder of a data set, or one of the names digits and digit_scenes")
    fitting = (format for format in formats if format.fits_folder(root))
    if truth in (None, "label"):  # folders with boxes or label maps look like class folders too
        if (first := next(fitting, None)) is not None:
            return first
    elif candidates := list(fitting):
        return next((format for format in candidates if format.truth == truth), candidates[0])
    alone = _images_alone(root)
    if alone and truth in (None, "label"):
        raise ValueError(alone)
    if truth in (None, "label") and (one := _one_class(root)):
        raise ValueError(one)
    lacking = f"{root} has images and no {'boxes' if truth == 'objects' else 'label maps'}"
    begin = lacking if alone else f"the layout of {root} is not recognised ({_content(root)}){_nearby(root)}"
    error = ValueError(f"{begin}; supported layouts:")
    for format in formats:  # the command line prints each note as a line
        if truth not in (None, "label", format.truth):
            continue
        error.add_note(f"  {format.name}: {format.layout}")
    raise error


def open_dataset(
    data: str | Path, split: Split, *, truth: Truth | None = None, progress: Progress | None = None
) -> Dataset:
    """Open one split.

    Args:
        data: `digits`, `digit_scenes`, a folder, or shards by a pattern or an address (`s3://bucket/train-{000..063}.tar`).
            The names win over folders of that name, which are `./digits`.
        truth: what the samples should have, for folders that can be read in more than one way; a folder that cannot be
            read in this way is read in another.
        progress: called with (done, total) while `digit_scenes` are written or shards are indexed, which happens once.

    Raises:
        ValueError: there is no such folder, split or truth, no known layout fits, or the data is broken; one sentence.
    """
    if split not in get_args(Split):
        raise ValueError(f"the split of a data set is one of {', '.join(get_args(Split))}; got {split!r:.80}")
    if truth is not None and truth not in get_args(Truth):
        raise ValueError(f"truth is one of {', '.join(get_args(Truth))}; got {truth!r:.80}")
    if str(data) == "digits":
        return Digits(split)
    if str(data) == "digit_scenes":
        data = cached_digit_scenes(progress)
    return find_format(data, truth).dataset(data, split, progress)


def _images_alone(root: Path) -> str:
    """Return the message for a folder of images without labels, such as one class folder; empty for another folder."""
    images = sum(path.is_file() and is_image_name(path.name) for path in root.iterdir())
    if not images or subfolders(root):
        return ""
    above = Path(os.path.abspath(root)).parent  # noqa: PTH100 - links stay
    return (
        f"{root} holds {plural(images, 'image')} and no labels; if it is the folder of one class, give the folder "
        f"above it: {above}"
    )


def _one_class(root: Path) -> str:
    """Return the message for a folder whose images are all in one class folder; empty for another folder."""
    folders = subfolders(root)
    if len(folders) != 1 or folders[0].lower() in NO_CLASSES or subfolders(root / folders[0]):
        return ""
    if not has_images(root / folders[0]):
        return ""
    return (
        f"{root} holds one class, {folders[0]}, so there is nothing to classify: give each class a folder of its own "
        f"in {root}"
    )


def _content(root: Path) -> str:
    entries = [path for path in sorted(root.iterdir()) if not path.name.startswith(".")]
    folders = [path.name for path in entries if path.is_dir() and is_own_folder(path.name)]
    suffixes = Counter(path.suffix.lower() or "no ending" for path in entries if path.is_file())
    shown = ", ".join(folders[:5]) + (", ..." if len(folders) > 5 else "")
    words = [f"the folder{'s' * (len(folders) > 1)} {shown}"] if folders else []
    if suffixes:
        most = ", ".join(suffix for suffix, _ in suffixes.most_common(3))
        words.append(f"{suffixes.total():,} file{'s' * (suffixes.total() > 1)} ({most})")
    return f"it has {' and '.join(words)}" if words else "it is empty"


def _nearby(root: Path) -> str:
    """Archives often unpack into one folder more than expected."""
    for folder in (root / name for name in subfolders(root)):
        if any(format.fits_folder(folder) for format in all_formats()):
            return f"; did you mean {folder}?"
    return ""
