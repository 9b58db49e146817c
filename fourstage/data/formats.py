"""Which data set lies behind a name or a folder. A format more is a line more in the table."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fourstage.data.embedded.digit_scenes import cached_digit_scenes
from fourstage.data.embedded.digits import Digits
from fourstage.data.label_maps.folders import LabelMaps, is_labelmaps
from fourstage.data.labels import huggingface, imagenet, inaturalist
from fourstage.data.labels.cifar import Cifar, is_cifar
from fourstage.data.labels.imagefolder import ImageFolder, is_imagefolder
from fourstage.data.labels.listing import Listed, opener
from fourstage.data.objects.coco import Coco, is_coco
from fourstage.data.objects.voc import Voc, is_voc
from fourstage.data.objects.yolo import Yolo, is_yolo
from fourstage.data.sample import Dataset
from fourstage.data.shards.dataset import is_pattern, is_shards, survey_shards

Split = Literal["train", "val"]
Truth = Literal["label", "objects", "label_map_HW"]
Progress = Callable[[int, int], None]  # done, total


@dataclass(frozen=True)
class Format:
    """A layout of folders that is recognised by looking at it."""

    name: str
    layout: str  # how it looks, for the sentence that lists what is known
    fits: Callable[[Path], bool]
    open: Callable[[Path, Split], Dataset]
    truth: Truth = "label"  # what its samples have; one folder may be read in two ways


FORMATS = (  # the first that fits is taken; the more particular come first
    Format("COCO", "annotations/instances_train*.json, or train/_annotations.coco.json", is_coco, Coco, "objects"),
    Format("YOLO", "data.yaml with names, train and val", is_yolo, Yolo, "objects"),
    Format("Pascal VOC", "Annotations/*.xml with JPEGImages/, or train/*.xml", is_voc, Voc, "objects"),
    Format(
        "label maps",
        "images/train with masks/train, ADE20K, Cityscapes, or Pascal VOC with SegmentationClass",
        is_labelmaps,
        LabelMaps,
        "label_map_HW",
    ),
    Format(
        "ImageNet lists",
        "meta/train.txt, with lines PATH LABEL",
        imagenet.is_meta_lists,
        opener(imagenet.survey_meta_lists),
    ),
    Format("ImageNet zip", "train.zip with train_map.txt", imagenet.is_zip_maps, opener(imagenet.survey_zip_maps)),
    Format("ImageNet-22K", imagenet.FALL.format("train"), imagenet.is_fall, opener(imagenet.survey_fall)),
    Format(
        "ImageNet of Kaggle",
        f"{imagenet.KAGGLE}/train with LOC_val_solution.csv",
        imagenet.is_kaggle,
        opener(imagenet.survey_kaggle),
    ),
    Format(
        "iNaturalist",
        "train2018.json with train_val2018/",
        inaturalist.is_inaturalist,
        opener(inaturalist.survey_inaturalist),
    ),
    Format("CIFAR", "cifar-10-batches-py, cifar-100-python or the binary ones", is_cifar, Cifar),
    Format(
        "Hugging Face",
        "dataset_dict.json, or data/train-*.parquet",
        huggingface.is_huggingface,
        opener(huggingface.survey_huggingface),
    ),
    Format("WebDataset", "train-*.tar and val-*.tar", is_shards, opener(survey_shards)),
    Format("ImageFolder", "train/<class>/*.jpg, or <class>/*.jpg", is_imagefolder, ImageFolder),
)


def open_dataset(
    data: str | Path, split: Split, *, truth: Truth | None = None, progress: Progress | None = None
) -> Dataset:
    """Open one split.

    Args:
        data: `digits`, `digit_scenes`, a folder, or shards by a pattern or an address (`s3://bucket/train-{000..063}.tar`).
            The names win over folders of that name, which are `./digits`.
        truth: what the samples should have, for folders that can be read in more than one way; a folder that cannot be
            read in this way is read in another.
        progress: called with (done, total) while `digit_scenes` are made or shards are indexed, which happens once.

    Raises:
        ValueError: there is no such folder, no known layout fits, or the data is broken; one sentence.
    """
    if str(data) == "digits":
        return Digits(split)
    if str(data) == "digit_scenes":
        data = cached_digit_scenes(progress)
    format = find_format(data, truth)
    if format.name == "WebDataset":
        return Listed(survey_shards(data, split, progress))
    return format.open(Path(data), split)


def find_format(data: str | Path, truth: Truth | None = None) -> Format:
    """The layout of a folder; see `open_dataset`. Raises ValueError when there is no folder, or none fits."""
    if is_pattern(data):
        return next(format for format in FORMATS if format.name == "WebDataset")
    root = Path(data)
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise ValueError(f"{root} {what}: give the folder of a data set, or one of the names digits and digit_scenes")
    fitting = (format for format in FORMATS if format.fits(root))
    if truth in (None, "label"):  # folders with boxes or label maps look like class folders too
        if (first := next(fitting, None)) is not None:
            return first
    elif found := list(fitting):
        return next((format for format in found if format.truth == truth), found[0])
    known = "; ".join(f"{format.name} ({format.layout})" for format in FORMATS)
    raise ValueError(f"{root} {_content(root)}, which is no layout that is known{_nearby(root)}: {known}")


def _content(root: Path) -> str:
    entries = [path for path in sorted(root.iterdir()) if not path.name.startswith(".")]
    folders = [path.name for path in entries if path.is_dir()]
    kinds = Counter(path.suffix.lower() or "no ending" for path in entries if path.is_file())
    shown = ", ".join(folders[:5]) + (", ..." if len(folders) > 5 else "")
    parts = [f"the folders {shown}"] if folders else []
    if kinds:
        parts.append(
            f"{kinds.total():,} file{'s' * (kinds.total() > 1)} ({', '.join(kind for kind, _ in kinds.most_common(3))})"
        )
    return f"holds {' and '.join(parts)}" if parts else "is empty"


def _nearby(root: Path) -> str:
    """Archives often unpack into one folder more than expected."""
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        if any(format.fits(folder) for format in FORMATS):
            return f" (did you mean {folder}?)"
    return ""
