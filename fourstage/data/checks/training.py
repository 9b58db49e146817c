"""What training refuses, for `data check`: the same splits are opened by the same function."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from fourstage.data.findings import Finding
from fourstage.data.mapped_classes import Mapped
from fourstage.data.objects.dataset import ObjectDataset, as_bad_objects, has_objects, trainable
from fourstage.data.opening import in_classes_of_training, open_usable, refuse_empty
from fourstage.data.sample import BadImage, Dataset, Split, Truth
from fourstage.data.threads import map_in_threads

OF_IMAGES = (  # titles of errors for which training refuses an image when it reads it
    "unreadable image", "image of another size", "too many masks", "unreadable label map", "label map of another size",
    "label map saved as colours", "label out of range",
)  # fmt: skip


def with_refusals(data: str | Path, truth: Truth, found: Sequence[Finding]) -> list[Finding]:
    """Return findings with exactly those errors that end a training on this data before its first step.

    A sentence of training that is not among them is added. Where training accepts what the checker of the format calls
    an error, such as an annotation of an image that is not listed, which it leaves out, the finding is a warning.

    Args:
        truth: what a training would learn from.
        found: what the checker of the format has found. It has read the images, which are not read again.
    """
    errors = [finding for finding in found if finding.severity == "error"]
    added, refused = list[Finding](), False
    train: Dataset | None = None
    for split in ("train", "val"):
        try:
            dataset = _opened(data, split, truth, train)
            sentences = _broken_objects(dataset) if has_objects(dataset) else []
        except (ValueError, OSError) as error:
            sentences, dataset = [str(error)], None
        train = dataset if split == "train" else train
        refused |= bool(sentences)
        for sentence in sentences:
            if not _is_known(sentence, [*errors, *added]):
                what = f"({split}) cannot be used"
                added.append(Finding("error", "training refuses this data", str(data), what, sentence))
        if isinstance(dataset, Mapped):
            added.append(Finding("note", "other classes", str(data), f"({split}) is read by name", dataset.note))
    return [*(found if refused else map(_left_out, found)), *added]


def _left_out(finding: Finding) -> Finding:
    """Return an error about what training leaves out as a warning."""
    of_image = finding.title in OF_IMAGES or finding.severity != "error"
    return finding if of_image else replace(finding, severity="warning")


def _opened(data: str | Path, split: Split, truth: Truth, train: Dataset | None) -> Dataset:
    mapped = in_classes_of_training(train) if split == "val" and train is not None else None
    dataset = open_usable(data, split, truth=truth, mapped=mapped)
    refuse_empty(dataset, data, split)
    if split == "train" and has_objects(dataset):
        with suppress(BadImage):  # of a size that is read from an image, which the checker has reported
            trainable(dataset)
    return dataset


def _broken_objects(dataset: ObjectDataset) -> list[str]:
    """Return why objects of images cannot be used."""
    return [sentence for sentence in map_in_threads(lambda i: _error(dataset, i), range(len(dataset))) if sentence]


def _error(dataset: ObjectDataset, index: int) -> str:
    try:
        with as_bad_objects(dataset.path(index)):
            dataset.objects(index)
            if dataset.with_reference:
                dataset.reference(index)
    except BadImage as error:
        return "" if error.SENTENCE == BadImage.SENTENCE else str(error)
    return ""


def _is_known(sentence: str, errors: Sequence[Finding]) -> bool:
    """Return whether a finding has this sentence, or begins it: several errors make one sentence with a count."""
    return any(str(finding) in sentence or sentence in str(finding) for finding in errors)
