"""What can be wrong with images that lists, archives and tables name."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from fourstage.data.findings import (
    Checked,
    Finding,
    Inspected,
    Progress,
    SplitSummary,
    Summary,
    image_findings,
    inspect_samples,
    leaks,
    two_classes,
    uneven,
)
from fourstage.data.labels.cifar import Cifar
from fourstage.data.labels.listing import Listed, Listing, Split
from fourstage.data.sample import NoSplitError
from fourstage.data.shards.dataset import survey_shards

NAMES: dict[Split, str] = {"train": "training", "val": "validation"}

Survey = Callable[[Path, Split], Listing]


def check_listed(name: str, survey: Survey) -> Callable[[Path, Progress], Checked]:
    """A checker for a format that a survey tells about."""

    def check(root: Path, progress: Progress) -> Checked:
        return _check(name, lambda split: survey(root, split), str(root), progress)

    return check


def check_shards(data: str | Path, progress: Progress) -> Checked:
    """Every shard, and every image in the whole ones."""

    def survey(split: Split) -> Listing:
        return survey_shards(data, split, lambda done, total: progress(done, total + 1))  # images follow

    return _check("WebDataset", survey, str(data), progress)


def check_cifar(root: Path, progress: Progress) -> Checked:
    """Files that are missing or damaged; images that occur twice."""
    findings, summary, inspected = list[Finding](), Summary("CIFAR"), dict[Split, list[Inspected]]()
    for split in ("train", "val"):
        try:
            dataset = Cifar(root, split)
        except ValueError as error:
            findings.append(_unopened(root, split, error))
            continue
        inspected[split] = inspect_samples(dataset, range(len(dataset)), progress)
        labels = [dataset.classes[label] for label in dataset.labels_N]
        summary.splits[split] = _summary(dataset.classes, dataset.labels_N, inspected[split])
        findings += two_classes(inspected[split], labels)
    return Checked(findings + leaks(inspected.get("train", []), inspected.get("val", [])), summary)


def _check(name: str, survey: Callable[[Split], Listing], root: str, progress: Progress) -> Checked:
    findings, summary = list[Finding](), Summary(name)
    listings: dict[Split, Listing] = {}
    for split in ("train", "val"):
        try:
            listings[split] = survey(split)
        except NoSplitError as error:
            findings.append(Finding("note", f"no {NAMES[split]} split", root, f"({split})", str(error)))
        except ValueError as error:
            if str(error) not in {finding.do for finding in findings}:
                findings.append(_unopened(root, split, error))
    total, done = sum(len(listing.labels_N) - len(listing.missing) for listing in listings.values()), 0
    inspected: dict[Split, list[Inspected]] = {}
    for split, listing in listings.items():
        there = np.setdiff1d(np.arange(len(listing.labels_N)), listing.missing)
        dataset = Listed(replace(listing, problems=[], missing=()))
        images = inspect_samples(dataset, there.tolist(), lambda i, _, before=done: progress(before + i, total))
        done, inspected[split] = done + len(there), images
        labels_N = listing.labels_N[there]
        summary.splits[split] = _summary(listing.classes, labels_N, images)
        known = set(findings)  # both splits may come from one list
        findings += [one for one in (*listing.problems, *_missing(listing), *_held_out(listing)) if one not in known]
        findings += image_findings(images)
        findings += two_classes(images, [str(label) for label in labels_N])
        findings += uneven(listing.source, summary.splits[split])
    return Checked(findings + leaks(inspected.get("train", []), inspected.get("val", [])), summary)


def _held_out(listing: Listing) -> list[Finding]:
    """What a listing notes about its split, as a finding."""
    if not listing.held_out:
        return []
    what, _, do = listing.note.removeprefix(f"{listing.source} ").partition(": ")
    return [Finding("note", "held-out split", listing.source, what, do)]


def _unopened(root: str | Path, split: Split, error: ValueError) -> Finding:
    return Finding("error", "cannot be opened", str(root), f"({split})", str(error))


def _missing(listing: Listing) -> list[Finding]:
    do = "fetch it, or take the line out of the list"
    return [
        Finding(
            "error",
            "missing image",
            listing.store.where(int(listing.rows_N[i])),
            f"is not there, but in {listing.source}",
            do,
        )
        for i in listing.missing
    ]


def _summary(classes: Sequence[str], labels_N: np.ndarray, inspected: Sequence[Inspected]) -> SplitSummary:
    summary = SplitSummary(images=len(inspected), sizes=[one.size for one in inspected if one.size is not None])
    counts = np.bincount(labels_N[(labels_N >= 0) & (labels_N < len(classes))], minlength=len(classes))
    summary.per_class.update(dict(zip(classes, counts.tolist(), strict=True)))
    return summary
