"""The check of a folder in YOLO's layout."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fourstage.data.checks.coco import box_findings, mask_findings
from fourstage.data.checks.inspect import Inspected, image_findings, inspect_images, leaks
from fourstage.data.findings import Checked, Finding, SplitSummary, Summary
from fourstage.data.images import is_image_name
from fourstage.data.objects.table import check_masks
from fourstage.data.objects.yolo import label_file, label_lines, lines_of, parse_line
from fourstage.data.objects.yolo_places import CLASSES, LEFT_OUT, Description, describe
from fourstage.data.sample import NoSplitError, Progress, Split


def check_yolo(root: Path, progress: Progress) -> Checked:
    """Check every image and every line: missing or broken ones, boxes outside, classes without a name."""
    findings: list[Finding] = []
    summary = Summary("YOLO", counted="objects")
    try:
        description = describe(root)
    except ValueError as error:
        return Checked([Finding("error", "description", str(root), "cannot be used", str(error))], summary)
    if description.keypoints:
        findings.append(Finding("note", "keypoints", str(description.path), "has kpt_shape", LEFT_OUT))
    images: dict[Split, list[Path]] = {}
    for split in ("train", "val"):
        try:
            images[split], note = description.find(split)
            if note:
                findings.append(Finding("note", "layout", str(root), "is usable", note))
        except (NoSplitError, ValueError) as error:
            findings.append(Finding("error", "images", str(description.path), f"({split}) cannot be used", str(error)))
    results = iter(inspect_images([path for of_split in images.values() for path in of_split], progress, orient=True))
    inspected = {split: [next(results) for _ in of_split] for split, of_split in images.items()}
    for split, of_split in inspected.items():
        findings += image_findings(of_split)
        counts = SplitSummary(images=len(of_split), sizes=[one.size for one in of_split if one.size is not None])
        counts.per_class.update(dict.fromkeys(description.classes, 0))
        findings += _lines(description, of_split, counts)
        findings += _classes(description, split, counts)
        summary.splits[split] = counts
    findings += _unused(description, [path for of_split in images.values() for path in of_split])
    findings += leaks(inspected.get("train", []), inspected.get("val", []))
    return Checked(findings, summary)


def _lines(description: Description, inspected: list[Inspected], counts: SplitSummary) -> Iterator[Finding]:
    polygons = 0
    for one in inspected:
        path = label_file(one.path)
        try:
            lines = label_lines(one.path)
        except ValueError as error:
            do = str(error).removeprefix(f"{path} cannot be read: ")
            yield Finding("error", "broken line", str(path), "cannot be read", do)
            continue
        if not lines:
            what, do = "has no objects", "that is fine where it shows none; it counts as background"
            yield Finding("note", "image without objects", str(one.path), what, do)
        try:
            check_masks(
                0 if description.keypoints else sum(len(text.split()) > 5 for _, text in lines), one.size or (0, 0)
            )
        except ValueError as error:
            yield Finding("error", "too many masks", str(one.path), "cannot be used", str(error))
            continue
        for number, text in lines:
            where = f"{path}, line {number}"
            try:
                label, box, polygon = parse_line(text, len(description.classes), description.keypoints)
            except ValueError as error:
                kind = "unknown category" if "is not one of" in str(error) else "broken line"
                yield Finding("error", kind, where, "cannot be used", f"{error}; correct or delete it")
                continue
            counts.per_class[description.classes[label]] += 1
            polygons += polygon is not None
            if one.size is not None:
                yield from _object(where, box, polygon, one.size)
    total = sum(counts.per_class.values())
    if 0 < polygons < total:
        what = f"has polygons for {polygons:,} of {total:,} objects"
        yield Finding(
            "warning", "masks for some", str(description.path), what, "the others train and score boxes alone"
        )


def _unused(description: Description, images: list[Path]) -> Iterator[Finding]:
    """Report label files without an image; the folder may hold other texts too."""
    for folder in sorted({path.parent for path in images if path.is_file()}):
        there = {path.stem for path in folder.iterdir() if is_image_name(path.name)}
        for path in sorted(label_file(folder / "any").parent.glob("*.txt")):
            if path.stem not in there and path.name != CLASSES and _holds_objects(path, description):
                do = "add the image, or delete the label file"
                yield Finding("warning", "label file without image", str(path), "has no image", do)


def _holds_objects(path: Path, description: Description) -> bool:
    try:
        return any(parse_line(text, len(description.classes), description.keypoints) for _, text in lines_of(path))
    except ValueError:
        return False


def _object(
    where: str, box: tuple[float, ...], polygon: list[float] | None, size: tuple[int, int]
) -> Iterator[Finding]:
    height, width = size
    yield from box_findings(where, [v * side for v, side in zip(box, (width, height) * 2, strict=True)], size)
    if polygon is not None:
        pixels = (np.array(polygon).reshape(-1, 2) * (width, height)).reshape(-1).tolist()
        yield from mask_findings(where, [pixels], size)


def _classes(description: Description, split: str, counts: SplitSummary) -> Iterator[Finding]:
    for name, count in counts.per_class.items():
        if not count:
            what, do = f"has no object of the class {name!r} for {split}", "it still counts as a class"
            yield Finding("note", "category without objects", str(description.path), what, do)
