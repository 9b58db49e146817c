"""The check of boxes in Pascal VOC's layout."""

from collections.abc import Iterator
from pathlib import Path

from fourstage.data.checks.coco import box_findings
from fourstage.data.checks.inspect import Inspected, image_findings, inspect_images, leaks
from fourstage.data.findings import Checked, Finding, SplitSummary, Summary
from fourstage.data.objects.voc import class_file, from_corners, image_of, read_annotation
from fourstage.data.objects.voc_places import find_files
from fourstage.data.sample import Progress


def check_voc(root: Path, progress: Progress) -> Checked:
    """Check every image and every XML file: missing or broken ones, boxes outside, unknown classes."""
    findings: list[Finding] = []
    summary = Summary("Pascal VOC", counted="objects")
    files: dict[str, list[Path]] = {}
    for split in ("train", "val"):
        try:
            files[split], note = find_files(root, split)
            if note:
                findings.append(Finding("note", "layout", str(root), "is usable", note))
        except ValueError as error:
            findings.append(Finding("error", "annotations", str(root), f"({split}) cannot be used", str(error)))
    images = [image_of(path) for of_split in files.values() for path in of_split]
    results = iter(inspect_images(images, progress, orient=True))
    inspected = {split: [next(results) for _ in of_split] for split, of_split in files.items()}
    named = class_file(root)
    for split, of_split in files.items():
        sizes = [one.size for one in inspected[split] if one.size is not None]
        counts = SplitSummary(images=len(of_split), sizes=sizes)
        findings += image_findings(inspected[split])
        for path, one in zip(of_split, inspected[split], strict=True):
            findings += _file(path, one, named, counts)
        summary.splits[split] = counts
    findings += _untrained(root, named, summary)
    findings += leaks(inspected.get("train", []), inspected.get("val", []))
    return Checked(findings, summary)


def _untrained(root: Path, named: tuple[str, ...] | None, summary: Summary) -> Iterator[Finding]:
    """Report classes of the validation split that the training split lacks, or spells differently."""
    if {"train", "val"} <= summary.splits.keys():
        train, val = (summary.splits[split].per_class for split in ("train", "val"))
        if unseen := sorted(name for name in val if name not in train and name in (named or val)):
            what = f"has objects of {', '.join(map(repr, unseen))} for val and none of them for train"
            do = "that cannot be learnt; correct the names, or give train such objects"
            yield Finding("warning", "categories differ", str(root), what, do)


def _file(path: Path, one: Inspected, named: tuple[str, ...] | None, counts: SplitSummary) -> Iterator[Finding]:
    try:
        annotation = read_annotation(path)
    except ValueError as error:
        what, _, do = str(error).removeprefix(f"{path} ").partition(": ")
        yield Finding("error", "broken annotation", str(path), what, do)
        return
    if not annotation.boxes:
        what, do = "has no objects", "that is fine where it shows none; it counts as background"
        yield Finding("note", "image without objects", str(path), what, do)
    size = one.size or annotation.size
    if one.size is not None and annotation.size not in (None, one.size):
        what = f"is {one.size[1]} x {one.size[0]}, but {path.name} says {annotation.size[1]} x {annotation.size[0]}"
        do = "correct the XML file, or undo the resizing or turning of the image"
        yield Finding("error", "image of another size", str(one.path), what, do)
    for number, box in enumerate(annotation.boxes, 1):
        where = f"{path}, object {number} ({box.name})"
        counts.per_class[box.name] += 1
        if named is not None and box.name not in named:
            do = "correct the name or add it to the file of classes"
            yield Finding("error", "unknown category", where, f"is none of the {len(named)} classes", do)
        if size is not None:
            yield from box_findings(where, list(from_corners(box.corners)), size)
