"""The check of labelme's json files."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from fourstage.data.checks.coco import box_findings, mask_findings
from fourstage.data.checks.inspect import Inspected, image_findings, inspect_images, leaks
from fourstage.data.findings import Checked, Finding, SplitSummary, Summary
from fourstage.data.objects.labelme import Labelled, class_file, find_files, left_out_note, read_labelled
from fourstage.data.sample import Progress, Split


def check_labelme(root: Path, progress: Progress) -> Checked:
    """Check every image and every json: missing or broken ones, shapes outside, unknown classes."""
    findings, summary = list[Finding](), Summary("labelme", counted="objects")
    read: dict[Split, list[tuple[Path, Labelled]]] = {}
    for split in ("train", "val"):
        try:
            files, note = find_files(root, split)
        except ValueError as error:
            findings.append(Finding("error", "annotations", str(root), f"({split}) cannot be used", str(error)))
            continue
        read[split] = list(_read(files, root, findings))
        notes = [note, left_out_note(root, [one for _, one in read[split]])]
        findings += [Finding("note", "layout", str(root), "is usable", note) for note in notes if note]
    images = [one.image for of_split in read.values() for _, one in of_split]
    results = iter(inspect_images(images, progress, orient=True))
    inspected = {split: [next(results) for _ in of_split] for split, of_split in read.items()}
    named = class_file(root)
    for split, of_split in read.items():
        sizes = [one.size for one in inspected[split] if one.size is not None]
        counts = SplitSummary(images=len(of_split), sizes=sizes)
        findings += image_findings(inspected[split])
        for (path, labelled), one in zip(of_split, inspected[split], strict=True):
            findings += _file(path, labelled, one, named, counts)
        summary.splits[split] = counts
    findings += leaks(inspected.get("train", []), inspected.get("val", []))
    return Checked(list(dict.fromkeys(findings)), summary)


def _read(files: Sequence[Path], root: Path, findings: list[Finding]) -> Iterator[tuple[Path, Labelled]]:
    """Yield the files that can be read; what is wrong with the others goes to `findings`."""
    for path in files:
        try:
            yield path, read_labelled(path, root)
        except ValueError as error:
            what, _, do = str(error).removeprefix(f"{path} ").partition(": ")
            findings.append(Finding("error", "broken annotation", str(path), what, do or "write it again"))


def _file(
    path: Path, labelled: Labelled, one: Inspected, named: tuple[str, ...] | None, counts: SplitSummary
) -> Iterator[Finding]:
    if not labelled.shapes:
        what, do = "has no objects", "that is fine where it shows none; it counts as background"
        yield Finding("note", "image without objects", str(path), what, do)
    if one.size is not None and labelled.size not in (None, one.size):
        what = f"is {one.size[1]} x {one.size[0]}, but {path.name} says {labelled.size[1]} x {labelled.size[0]}"
        do = "correct the json, or undo the resizing or turning of the image"
        yield Finding("error", "image of another size", str(one.path), what, do)
    size = one.size or labelled.size
    for number, shape in enumerate(labelled.shapes, 1):
        where = f"{path}, object {number} ({shape.name})"
        counts.per_class[shape.name] += 1
        if named is not None and shape.name not in named:
            do = "correct the name or add it to the file of classes"
            yield Finding("error", "unknown category", where, f"is none of the {len(named)} classes", do)
        if size is not None:
            yield from box_findings(where, list(shape.box), size)
            yield from mask_findings(where, [list(polygon) for polygon in shape.polygons], size)
