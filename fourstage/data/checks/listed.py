"""The check of images that lists, archives and tables name."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from fourstage.data.checks.inspect import (
    Inspected,
    contradictory_labels,
    image_findings,
    inspect_samples,
    leaks,
    uneven_classes,
)
from fourstage.data.findings import Checked, Finding, SplitSummary, Summary
from fourstage.data.labels.cifar import Cifar
from fourstage.data.labels.listing import Listed, Listing
from fourstage.data.sample import NoSplitError, Progress, Split
from fourstage.data.shards.dataset import survey_shards

NAMES: dict[Split, str] = {"train": "training", "val": "validation"}


def check_listing(name: str, survey: Callable[[Split], Listing], source: str, progress: Progress) -> Checked:
    """Check the images of a list, an archive or a table: missing and unreadable ones, labels, what occurs twice.

    Args:
        name: of the format.
        survey: what lists the images of a split.
        source: the data set, for messages.
    """
    findings, summary = list[Finding](), Summary(name)
    listings: dict[Split, Listing] = {}
    for split in ("train", "val"):
        try:
            listings[split] = survey(split)
        except NoSplitError as error:
            findings.append(Finding("note", f"no {NAMES[split]} split", source, f"({split})", str(error)))
        except ValueError as error:
            if str(error) not in {finding.do for finding in findings}:
                findings.append(_unopened(source, split, error))
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
        findings += contradictory_labels(images, [str(label) for label in labels_N])
        findings += uneven_classes(listing.source, summary.splits[split])
    return Checked(findings + leaks(inspected.get("train", []), inspected.get("val", [])), summary)


def check_shards(data: str | Path, progress: Progress) -> Checked:
    """Check every shard, and every image of the complete ones."""

    def survey(split: Split) -> Listing:
        return survey_shards(data, split, lambda done, total: progress(done, total + 1))  # images follow

    return check_listing("WebDataset", survey, str(data), progress)


def check_cifar(root: Path, progress: Progress) -> Checked:
    """Check CIFAR's files: missing or damaged ones, and images that occur twice."""
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
        findings += contradictory_labels(inspected[split], labels)
    return Checked(findings + leaks(inspected.get("train", []), inspected.get("val", [])), summary)


def _held_out(listing: Listing) -> list[Finding]:
    """Return a listing's note about its split as a finding."""
    if not listing.held_out or not listing.note:
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
