"""The verdict of `data check` and that of a training on one data set, in this process and without a network."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fourstage.data.bad_images import find_bad_images
from fourstage.data.checks.check import check
from fourstage.data.objects.dataset import has_objects, trainable
from fourstage.data.opening import in_classes_of_training, open_usable, refuse_empty
from fourstage.data.sample import Truth

TRUTHS: dict[str, Truth] = {"classification": "label", "detection": "objects", "segmentation": "label_map_HW"}


def refusal_of_training(root: Path, truth: Truth) -> str:
    """Return the sentence with which a training ends before its first step; empty where it does not."""
    try:
        train = open_usable(root, "train", truth=truth)
        val = open_usable(root, "val", truth=truth, mapped=in_classes_of_training(train))
        for split, dataset in (("train", train), ("val", val)):
            if truth not in dataset.truths:
                return f"has no {truth}"
            refuse_empty(dataset, root, split)  # pyright: ignore[reportArgumentType]
            if bad := find_bad_images(dataset):
                return str(next(iter(bad.values())))
        if has_objects(train):
            trainable(train)
    except (ValueError, OSError) as error:
        return str(error)
    return ""


def refusals_of_check(root: Path, truth: Truth) -> list[str]:
    """Return the errors of `data check`; empty where it ends with the exit code 0."""
    try:
        findings, _ = check(root, truth=truth)
    except (ValueError, OSError) as error:
        return [str(error)]
    return [str(finding) for finding in findings if finding.severity == "error"]


def disagreement(build: Callable[[Path], object], root: Path, task: str) -> str:
    """Return how the two verdicts on a data set differ; empty where they agree."""
    with suppress(FileExistsError):
        build(root)
    return compare(root, TRUTHS[task])


def compare(root: Path, truth: Truth) -> str:
    """Return how the two verdicts on a folder differ; empty where they agree."""
    trained, checked = refusal_of_training(root, truth), refusals_of_check(root, truth)
    if bool(trained) == bool(checked):
        return ""
    return f"only {'training' if trained else 'data check'} refuses: {trained or checked[0]}"
