"""What `fourstage data check` finds. One checker a format, in a table: a new format adds its line."""

from collections.abc import Callable
from pathlib import Path
from time import perf_counter

from fourstage.data.checks.coco import check_coco
from fourstage.data.checks.imagefolder import check_imagefolder
from fourstage.data.checks.label_maps import check_labelmaps
from fourstage.data.checks.listed import check_cifar, check_listed, check_shards
from fourstage.data.checks.voc import check_voc
from fourstage.data.checks.yolo import check_yolo
from fourstage.data.embedded.digit_scenes import cached_digit_scenes
from fourstage.data.embedded.digits import Digits
from fourstage.data.findings import Checked, Finding, Progress, SplitSummary, Summary, render
from fourstage.data.formats import FORMATS, Format, Truth, find_format
from fourstage.data.labels import huggingface, imagenet, inaturalist
from fourstage.data.shards.dataset import is_pattern

__all__ = ["Checked", "Finding", "Summary", "check", "render"]

CHECKERS: dict[str, Callable[[Path, Progress], Checked]] = {  # by the name of the format
    "COCO": check_coco,
    "label maps": check_labelmaps,
    "YOLO": check_yolo,
    "Pascal VOC": check_voc,
    "ImageNet lists": check_listed("ImageNet lists", imagenet.survey_meta_lists),
    "ImageNet zip": check_listed("ImageNet zip", imagenet.survey_zip_maps),
    "ImageNet-22K": check_listed("ImageNet-22K", imagenet.survey_fall),
    "ImageNet of Kaggle": check_listed("ImageNet of Kaggle", imagenet.survey_kaggle),
    "iNaturalist": check_listed("iNaturalist", inaturalist.survey_inaturalist),
    "CIFAR": check_cifar,
    "Hugging Face": check_listed("Hugging Face", huggingface.survey_huggingface),
    "WebDataset": check_shards,
    "ImageFolder": check_imagefolder,
}


def check(data: str | Path, progress: Progress | None = None, truth: Truth | None = None) -> Checked:
    """Read a data set whole and say what is wrong with it.

    Args:
        data: what `open_dataset` takes.
        progress: called with (images done, images in all).
        truth: as which of several kinds of data a folder is read that could be more than one; see `open_dataset`.
            None: as boxes and as label maps, where it has both.

    Returns:
        Findings, in the order in which they were met, and a summary. Nothing with severity "error": it will train.

    Raises:
        ValueError: there is no such folder, or no known layout fits.
    """
    started, progress = perf_counter(), progress or (lambda done, total: None)
    if str(data) == "digits":
        checked = _check_digits(progress)
    else:
        data = cached_digit_scenes() if str(data) == "digit_scenes" else data
        format = find_format(data, truth)  # of an address, which no Path can be
        checked = check_shards(data, progress) if is_pattern(data) else CHECKERS[format.name](Path(data), progress)
        for other in _others(Path(data), format) if truth is None else ():
            checked = _together(checked, CHECKERS[other.name](Path(data), progress))
    checked.summary.seconds = perf_counter() - started
    return checked


def _others(root: Path, first: Format) -> list[Format]:
    """What else a folder of boxes or label maps is: the other of the two."""
    if first.truth == "label":
        return []
    fitting = [one for one in FORMATS if one.truth not in ("label", first.truth) and one.fits(root)]
    return fitting[:1]


def _together(one: Checked, other: Checked) -> Checked:
    """Both; what is wrong with an image is said once."""
    one.summary.also.append(other.summary)
    return Checked(list(dict.fromkeys([*one.findings, *other.findings])), one.summary)


def _check_digits(progress: Progress) -> Checked:
    """The embedded data has nothing to find; its summary is worth seeing."""
    summary = Summary("digits")
    for split in ("train", "val"):
        dataset = Digits(split)
        sizes = [dataset.sample(index).original_size for index in range(len(dataset))]
        counts = SplitSummary(images=len(dataset), sizes=sizes)
        counts.per_class.update(dataset.classes[label] for label in dataset.labels_N)
        summary.splits[split] = counts
    total = sum(split.images for split in summary.splits.values())
    progress(total, total)
    return Checked([], summary)
