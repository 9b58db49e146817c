"""The check of a folder in COCO layout."""

import reprlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fourstage.data.checks.inspect import Inspected, image_findings, inspect_images, leaks
from fourstage.data.file_names import found_note
from fourstage.data.findings import Checked, Finding, SplitSummary, Summary
from fourstage.data.objects.coco import area_from, name_of, read_json
from fourstage.data.objects.coco_places import Annotated, find_images, find_split
from fourstage.data.objects.rle import mask_area
from fourstage.data.objects.table import box_of, check_masks
from fourstage.data.sample import Progress, Split
from fourstage.data.splits import held_out_note, split_positions

Content = dict[str, Any]


def check_coco(root: str | Path, progress: Progress) -> Checked:
    """Check every image, box and mask: missing or broken ones, boxes outside, ids that are not listed."""
    root, findings = Path(root), list[Finding]()  # a json is given as text
    splits: dict[Split, tuple[Annotated, Content]] = {}
    for split in ("train", "val"):
        try:
            splits[split] = _read(root, split, findings)
        except ValueError as error:
            findings.append(Finding("error", "annotations", str(root), f"({split}) cannot be used", str(error)))
    inspected = _inspect_splits(splits, progress)
    summary = Summary("COCO", counted="objects")
    for split, (place, content) in splits.items():
        findings += _ids(place, content)
        findings += _images(place, content, inspected[split])
        findings += _annotations(place, content)
        findings += _without_objects(place, content)
        summary.splits[split] = _summary(content, inspected[split])
    findings += _categories(splits)
    findings += leaks(inspected.get("train", []), inspected.get("val", []))
    return Checked(findings, summary)


def _read(root: Path, split: Split, findings: list[Finding]) -> tuple[Annotated, Content]:
    """Return the place of a split and its content, with file names that have files; notes go to `findings`."""
    place = find_split(root, split)
    content = read_json(place.annotations)
    names = [image["file_name"] for image in content["images"]]
    place, found = find_images(place, names)
    for i, name in found.items():
        content["images"][i]["file_name"] = name
    notes = [found_note(place.annotations, names, found)]
    if place.held_out:
        notes.append(held_out_note(place.annotations, names))
        other: Split = "val" if split == "train" else "train"
        others = {content["images"][i]["id"] for i in split_positions(names, other)}
        content["images"] = [content["images"][i] for i in split_positions(names, split)]
        content["annotations"] = [one for one in content["annotations"] if one["image_id"] not in others]
    findings += [Finding("note", "layout", str(root), "is usable", note) for note in notes if note]
    return place, content


def _inspect_splits(splits: dict[Split, tuple[Annotated, Content]], progress: Progress) -> dict[Split, list[Inspected]]:
    paths: dict[Split, list[Path]] = {
        split: [place.images / image["file_name"] for image in content["images"]]
        for split, (place, content) in splits.items()
    }
    results = iter(inspect_images([path for of_split in paths.values() for path in of_split], progress, orient=True))
    return {split: [next(results) for _ in of_split] for split, of_split in paths.items()}


def _ids(place: Annotated, content: Content) -> Iterator[Finding]:
    """Report ids and file names that occur twice."""
    for name, key in (("images", "id"), ("images", "file_name"), ("annotations", "id"), ("categories", "id")):
        ids = (entry[key] for entry in content[name] if key in entry)
        counts = Counter(str(id) for id in ids if isinstance(id, int | str | float))  # 1 and "1" are one id
        for value, count in counts.items():
            if count > 1:
                what, do = f"has {count} {name} with the {key} {value}", "give each its own"
                yield Finding("error", f"{name} with one {key}", str(place.annotations), what, do)


def _images(place: Annotated, content: Content, inspected: list[Inspected]) -> Iterator[Finding]:
    yield from image_findings(inspected)
    for image, one in zip(content["images"], inspected, strict=True):
        stated = (image["height"], image["width"])
        if one.size is not None and one.size != stated:
            what = f"is {one.size[1]} x {one.size[0]}, but {place.annotations.name} says {stated[1]} x {stated[0]}"
            do = "correct the json, or undo the resizing or turning of the image"
            yield Finding("error", "image of another size", str(one.path), what, do)


def _annotations(place: Annotated, content: Content) -> Iterator[Finding]:
    images = {image["id"]: image for image in content["images"]}
    categories = {category["id"] for category in content["categories"]}
    crowded = _crowded(content, images)
    for id, reason in crowded.items():
        where = str(place.images / images[id]["file_name"])
        yield Finding("error", "too many masks", where, "cannot be used", reason)
    for position, annotation in enumerate(content["annotations"]):
        where = f"{place.annotations}: annotation {name_of(annotation, position)}"
        image = images.get(annotation["image_id"])
        if image is None:
            what = f"belongs to image {annotation['image_id']!r}, which is not in the list of images"
            yield Finding("error", "unknown image", where, what, "it is left out; add the image or delete it")
            continue
        if annotation["category_id"] not in categories:
            what = f"is of category {annotation['category_id']!r}, which is not in the list of categories"
            yield Finding(
                "error", "unknown category", where, what, "it is left out; correct the id or add the category"
            )
            continue
        size, where = (image["height"], image["width"]), f"{where} ({image['file_name']})"
        try:
            area_from(annotation.get("area"))
        except ValueError as error:
            yield Finding("error", "broken area", where, "cannot be used", f"{error}; correct it or leave it out")
        yield from box_findings(where, annotation["bbox"], size)
        if annotation["image_id"] not in crowded:  # there they would take too much memory here too
            yield from mask_findings(where, annotation.get("segmentation"), size)


def _crowded(content: Content, images: dict[Any, dict[str, Any]]) -> dict[Any, str]:
    """Return the ids of images whose masks take too much memory, each with the reason."""
    counts = Counter(one["image_id"] for one in content["annotations"] if one.get("segmentation"))
    crowded: dict[Any, str] = {}
    for id in counts.keys() & images.keys():
        try:
            check_masks(counts[id], (images[id]["height"], images[id]["width"]))
        except ValueError as error:
            crowded[id] = str(error)
    return crowded


def box_findings(where: str, box: Any, size: tuple[int, int]) -> Iterator[Finding]:
    """Report what is wrong with one box of x, y, width, height in an image of (H, W) pixels."""
    try:
        x, y, width, height = box_of(box)
    except ValueError as error:
        yield Finding("error", "broken box", where, f"has the box {reprlib.repr(box)}", str(error))
        return
    right, bottom = x + width, y + height
    text = f"has the box x {x:g}, y {y:g}, width {width:g}, height {height:g}"
    if width < 0 or height < 0:
        do = "width and height are negative; it is left out of training; delete or redraw it"
        yield Finding("warning", "inverted box", where, text, do)
    elif width < 1 or height < 1:
        yield Finding(
            "warning", "empty box", where, text, "it is thinner than a pixel and left out; delete or redraw it"
        )
    elif x >= size[1] or y >= size[0] or right <= 0 or bottom <= 0:
        do = f"it misses its image of {size[1]} x {size[0]} and is left out of training; boxes are x, y, width, height"
        yield Finding("warning", "box outside", where, text, do)
    elif x < -1 or y < -1 or right > size[1] + 1 or bottom > size[0] + 1:
        do = f"it leaves its image of {size[1]} x {size[0]} and is clipped in training; are these x1, y1, x2, y2?"
        yield Finding("warning", "box beyond the border", where, text, do)


def mask_findings(where: str, segmentation: Any, size: tuple[int, int]) -> Iterator[Finding]:
    """Report what is wrong with one mask in a form of COCO, in an image of (H, W) pixels."""
    if not segmentation:
        return
    try:
        area = mask_area(segmentation, size)
    except ValueError as error:
        what = f"has a mask that cannot be decoded ({error})"
        yield Finding(
            "error", "broken mask", where, what, "write it again as polygons or run lengths of the complete image"
        )
        return
    if not area:
        yield Finding(
            "warning", "empty mask", where, "has a mask without a pixel", "it does not train masks; redraw it"
        )


def _without_objects(place: Annotated, content: Content) -> Iterator[Finding]:
    """Report images and categories without annotations, and masks of only some objects."""
    named = {annotation["image_id"] for annotation in content["annotations"]}
    for image in content["images"]:
        if image["id"] not in named:
            what, do = "has no objects", "that is fine where it shows none; it counts as background"
            yield Finding("note", "image without objects", str(place.images / image["file_name"]), what, do)
    used = {annotation["category_id"] for annotation in content["annotations"]}
    for category in content["categories"]:
        if category["id"] not in used:
            what, do = f"has no object of the category {category['name']!r}", "it still counts as a class"
            yield Finding("note", "category without objects", str(place.annotations), what, do)
    objects = [annotation for annotation in content["annotations"] if not annotation.get("iscrowd")]
    masks = sum(bool(annotation.get("segmentation")) for annotation in objects)
    if 0 < masks < len(objects):
        what = f"has masks for {masks:,} of {len(objects):,} objects"
        yield Finding(
            "warning", "masks for some", str(place.annotations), what, "the others train and score boxes alone"
        )


def _categories(splits: dict[Split, tuple[Annotated, Content]]) -> Iterator[Finding]:
    """Report categories of validation objects that the training split does not list: labels are matched by name."""
    if len(splits) < 2:
        return
    train, val = (splits[split][1] for split in ("train", "val"))
    listed, used = {str(c["name"]) for c in train["categories"]}, {a["category_id"] for a in val["annotations"]}
    names = [str(c["name"]) for c in val["categories"] if c["id"] in used]
    if lacking := sorted(set(names) - listed):
        what = f"has objects of {', '.join(map(repr, lacking))}, which {splits['train'][0].annotations} does not list"
        others = ", ".join(map(repr, sorted(listed - set(names))[:5]))
        do = f"correct the names{f' (it lists {others} too)' * bool(others)}, or add such objects for training"
        yield Finding("error", "categories differ", str(splits["val"][0].annotations), what, do)


def _summary(content: Content, inspected: list[Inspected]) -> SplitSummary:
    names = {category["id"]: str(category["name"]) for category in content["categories"]}
    summary = SplitSummary(images=len(inspected), sizes=[one.size for one in inspected if one.size is not None])
    summary.per_class.update(dict.fromkeys(names.values(), 0))
    summary.per_class.update(names[a["category_id"]] for a in content["annotations"] if a["category_id"] in names)
    return summary
