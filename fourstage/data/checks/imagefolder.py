"""The check of a folder of images for classification."""

from collections.abc import Sequence
from pathlib import Path

from fourstage.data.checks.inspect import (
    Inspected,
    contradictory_labels,
    image_findings,
    inspect_images,
    leaks,
    uneven_classes,
)
from fourstage.data.findings import Checked, Finding, SplitSummary, Summary
from fourstage.data.images import is_image_name
from fourstage.data.labels import imagefolder as layouts
from fourstage.data.labels.imagefolder import Layout
from fourstage.data.sample import Progress, Split
from fourstage.data.walk import all_files, image_files, subfolders


def check_imagefolder(root: Path, progress: Progress) -> Checked:
    """Check every file: folders without images, unreadable and odd files, images in both splits, uneven classes."""
    layout, summary = layouts.find_layout(root), Summary("ImageFolder")
    findings: list[Finding] = []
    splits: dict[Split, dict[str, list[str]]] = {}
    for split in ("train", "val"):
        if split == "train" and layout.train is None:
            findings.append(Finding("note", "no training split", str(root), "holds no train/", "evaluation works"))
            continue
        splits[split], found = _folders(layout, split)
        findings += found if split == "train" or layout.val is not None else []
    inspected = _inspect_splits(layout, splits, progress)
    for split, files in splits.items():
        summary.splits[split] = _summary(files, inspected[split])
        findings += image_findings(inspected[split])
        findings += contradictory_labels(inspected[split], [name for name, paths in files.items() for _ in paths])
        findings += uneven_classes(str(layout.folder(split)), summary.splits[split])
    findings += leaks(inspected.get("train", []), inspected.get("val", []))
    return Checked(findings, summary)


def _folders(layout: Layout, split: Split) -> tuple[dict[str, list[str]], list[Finding]]:
    """Return the images of each class that belong to `split`, and findings from the names of folders and files."""
    folder = layout.folder(split)
    files = {name: list(image_files(folder / name)) for name in subfolders(folder)}
    classes = subfolders(layout.train or folder)
    findings = layouts.layout_problems(layout, split, classes, files)
    findings += [
        Finding(
            "warning", "other file", str(folder / path), "is not an image by its name", "it is not read; move it away"
        )
        for path in all_files(folder)
        if not is_image_name(path.rsplit("/", 1)[-1])
    ]
    findings += [
        Finding("warning", "image outside", str(path), "is in no class folder", "it is not read; move it into one")
        for path in sorted(folder.iterdir())
        if path.is_file() and is_image_name(path.name)
    ]
    if odd := layouts.layout_note(layout, split, classes, files):
        findings.append(odd)
    return layouts.images_of(layout, split, files), findings


def _inspect_splits(
    layout: Layout, splits: dict[Split, dict[str, list[str]]], progress: Progress
) -> dict[Split, list[Inspected]]:
    paths: dict[Split, list[Path]] = {
        split: [layout.folder(split) / name / path for name, of_class in files.items() for path in of_class]
        for split, files in splits.items()
    }
    inspected = inspect_images([path for of_split in paths.values() for path in of_split], progress)
    results = iter(inspected)
    return {split: [next(results) for _ in of_split] for split, of_split in paths.items()}


def _summary(files: dict[str, list[str]], inspected: Sequence[Inspected]) -> SplitSummary:
    summary = SplitSummary(images=len(inspected), sizes=[one.size for one in inspected if one.size is not None])
    summary.per_class.update({name: len(paths) for name, paths in files.items()})
    return summary
