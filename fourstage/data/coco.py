"""Data sets with COCO json: boxes, crowd regions, and masks as polygons or in either run-length form.

Which annotations count is said by MMDetection's CocoDataset, as published results were measured with it. H x W pixels,
N objects.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from fourstage.data.images import read_image
from fourstage.data.sample import BadImage, Objects, Sample

Split = Literal["train", "val"]

BESIDE = "_annotations.coco.json"
FOLDERS: dict[Split, tuple[str, ...]] = {"train": ("train",), "val": ("val", "valid", "validation", "test")}


@dataclass(frozen=True)
class Annotated:
    """Where one split lies."""

    annotations: Path  # the json
    images: Path  # the folder that its file names start from


class Coco:
    """One split of a folder in COCO layout, images in the order of the json.

    Annotations are left out when they are marked `ignore`, do not meet their image, or have no area or a side below one
    pixel. The other boxes are as written, not clipped to the image. Crowd regions, and objects whose polygons are all
    too short to enclose anything, are flagged in `crowd_N`. Masks are decoded when a sample is read. Labels are
    positions in the `categories` list.

    Attributes:
        image_ids: the json's id of each image, for results in COCO's format.
        category_ids: the json's id of each class.
        has_masks: whether every object that is no crowd region has a mask; if not, samples carry boxes only.
        note: one sentence about what is unusual; empty otherwise.

    Raises:
        ValueError: no annotations for this split, json that cannot be read or is not COCO's.
    """

    def __init__(self, root: str | Path, split: Split) -> None:
        self.place = find_split(Path(root), split)
        content = read_json(self.place.annotations)
        self.classes = tuple(str(category["name"]) for category in content["categories"])
        self.truths = ("objects",)
        self.category_ids = tuple(category["id"] for category in content["categories"])
        self.image_ids = tuple(image["id"] for image in content["images"])
        self._images: list[dict[str, Any]] = content["images"]
        self._kept = _kept(content, self.place.annotations)
        objects = [a for of_image in self._kept.values() for a in of_image if not a.get("iscrowd")]
        self.has_masks = bool(objects) and all(a.get("segmentation") for a in objects)
        self.note = ""
        if not self.has_masks and any(a.get("segmentation") for a in objects):
            self.note = f"only some objects in {self.place.annotations} have masks: boxes alone are used."

    def __len__(self) -> int:
        return len(self._images)

    def id(self, index: int) -> str:
        return self._images[index]["file_name"]

    def path(self, index: int) -> Path:
        return self.place.images / self.id(index)

    def sample(self, index: int) -> Sample:
        """Read one image and its objects. Raises BadImage, also when the image's size is not the one in the json."""
        image_HW3 = read_image(self.path(index), orient=True)
        height, width = image_HW3.shape[:2]
        said = (self._images[index]["height"], self._images[index]["width"])
        if said != (height, width):
            reason = f"it is {width} x {height}, but {self.place.annotations} says {said[1]} x {said[0]}"
            raise BadImage(str(self.path(index)), reason)
        return Sample(self.id(index), image_HW3, (height, width), objects=self.objects(index))

    def objects(self, index: int) -> Objects:
        """What is in one image, without reading the image. Raises ValueError for a mask that cannot be decoded."""
        image = self._images[index]
        kept = self._kept.get(image["id"], [])
        boxes_N4 = np.array([a["bbox"] for a in kept], dtype=np.float64).reshape(-1, 4)
        boxes_N4[:, 2:] += boxes_N4[:, :2]  # in double precision, as MMDetection does, then rounded once
        label = {category: position for position, category in enumerate(self.category_ids)}
        crowd = [bool(a.get("iscrowd")) for a in kept]
        masks_NHW = None
        if self.has_masks:
            size = (image["height"], image["width"])
            masks = [_mask(a, size, self.place.annotations) for a in kept]
            crowd = [flag or mask is None for flag, mask in zip(crowd, masks, strict=True)]
            empty = np.zeros(size, dtype=bool)
            stacked = np.array([empty if mask is None else mask for mask in masks], dtype=bool)
            masks_NHW = torch.from_numpy(stacked.reshape(-1, *size))
        labels_N = torch.tensor([label[a["category_id"]] for a in kept], dtype=torch.int64)
        return Objects(torch.from_numpy(boxes_N4).float(), labels_N, torch.tensor(crowd, dtype=torch.bool), masks_NHW)


def find_split(root: Path, split: Split) -> Annotated:
    """The json and the image folder of one split. Raises ValueError when there is none."""
    for name in FOLDERS[split]:
        if (root / name / BESIDE).is_file():
            return Annotated(root / name / BESIDE, root / name)
    for name in FOLDERS[split]:
        found = sorted(root.glob(f"annotations/instances_{name}*.json"), reverse=True)  # 2017 before 2014
        places = [Annotated(path, _image_folder(root, path.stem.removeprefix("instances_"))) for path in found]
        if places:
            return next((place for place in places if place.images.is_dir()), places[0])
    raise ValueError(
        f"{root} holds no annotations for the {split} split: annotations/instances_{split}*.json "
        f"or {'train' if split == 'train' else 'valid'}/{BESIDE} is needed"
    )


def is_coco(root: Path) -> bool:
    """Whether `root` looks like a folder in COCO layout."""
    return any(root.glob("annotations/instances_*.json")) or any(root.glob(f"*/{BESIDE}"))


def read_json(path: Path) -> dict[str, Any]:
    """A COCO json as written. Raises ValueError when images, annotations, categories or their keys are missing."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not json: {error}") from error
    needed = {
        "images": ("id", "file_name", "height", "width"),
        "annotations": ("image_id", "category_id", "bbox"),
        "categories": ("id", "name"),
    }
    for part, keys in needed.items():
        entries = content.get(part) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise ValueError(f"{path} is json, but not COCO's: it has no list called {part!r}")
        for position, entry in enumerate(entries):
            if not isinstance(entry, dict) or not all(key in entry for key in keys):
                raise ValueError(f"{path} is not COCO json: {part}[{position}] needs the keys {', '.join(keys)}")
    return content


def encode_mask(mask_HW: np.ndarray) -> dict[str, Any]:
    """A boolean mask in COCO's compressed run-length form, ready for json."""
    rle = _library().encode(np.asfortranarray(mask_HW, dtype=np.uint8))
    return {"size": list(mask_HW.shape), "counts": _text(rle["counts"])}


def decode_mask(segmentation: Any, size: tuple[int, int]) -> np.ndarray | None:
    """The mask of one object.

    Args:
        segmentation: polygons (lists of x, y, x, y ... in pixels), or a mapping with `size` and `counts`, where counts
            are numbers or COCO's compressed string.
        size: (H, W) of the image.

    Returns:
        (H, W) bool. None when no polygon has three points or all have a coordinate too many.

    Raises:
        ValueError: neither form, or a mask of another size.
    """
    if isinstance(segmentation, dict) and tuple(segmentation.get("size", ())) != size:
        raise ValueError(f"its mask is of size {segmentation.get('size')}, the image of {list(size)}")
    library = _library()
    try:
        if isinstance(segmentation, dict):
            in_numbers = isinstance(segmentation["counts"], list)
            rle = library.frPyObjects(segmentation, *size) if in_numbers else segmentation
        else:
            polygons = [polygon for polygon in segmentation if len(polygon) % 2 == 0 and len(polygon) >= 6]
            if not polygons:
                return None
            rle = library.merge(library.frPyObjects(polygons, *size))
        return library.decode(rle).astype(bool)
    except (KeyError, TypeError, RuntimeError, ValueError) as error:  # whatever the library meets in a broken mask
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ValueError(f"its mask is neither polygons nor run lengths of the image ({reason})") from error


def _kept(content: dict[str, Any], path: Path) -> dict[Any, list[dict[str, Any]]]:
    """The annotations that count, by image id, in the order of the json."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    categories = {category["id"] for category in content["categories"]}
    kept: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for position, annotation in enumerate(content["annotations"]):
        if annotation["image_id"] not in sizes or annotation["category_id"] not in categories:
            continue
        try:
            counts = not annotation.get("ignore") and _has_extent(annotation, sizes[annotation["image_id"]])
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{path}: annotations[{position}] has the box {annotation['bbox']!r}; "
                "it must be four numbers x, y, width, height"
            ) from error
        if counts:
            kept[annotation["image_id"]].append(annotation)
    return dict(kept)


def _has_extent(annotation: dict[str, Any], size: tuple[int, int]) -> bool:
    x, y, width, height = annotation["bbox"]
    inside_x = max(0, min(x + width, size[1]) - max(x, 0))
    inside_y = max(0, min(y + height, size[0]) - max(y, 0))
    area = annotation.get("area", width * height)
    return inside_x * inside_y > 0 and area > 0 and width >= 1 and height >= 1


def _mask(annotation: dict[str, Any], size: tuple[int, int], path: Path) -> np.ndarray | None:
    try:
        return decode_mask(annotation["segmentation"], size) if annotation.get("segmentation") else None
    except ValueError as error:
        name = annotation.get("id", annotation["bbox"])
        raise ValueError(f"{path}: annotation {name} of image {annotation['image_id']}: {error}") from error


def _image_folder(root: Path, name: str) -> Path:
    candidates: Sequence[Path] = (root / name, root / "images" / name, root / "images")
    return next((folder for folder in candidates if folder.is_dir()), root / name)


def _text(counts: bytes | str) -> str:
    return counts.decode("ascii") if isinstance(counts, bytes) else counts


def _library() -> Any:
    try:
        from faster_coco_eval.core import mask
    except ImportError as error:
        raise ValueError('masks need faster-coco-eval, which is missing: pip install "fourstage[train]"') from error
    return mask
