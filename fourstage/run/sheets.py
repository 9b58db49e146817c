"""Sheets of training images as a network is given them: classes, objects or label maps.

B images, C classes, H x W pixels, N objects.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fourstage.data.loader import MIX, SAMPLE, seed_everything
from fourstage.data.objects.rle import encode_mask
from fourstage.data.order import hash_order
from fourstage.data.sample import Batch, Dataset, Objects, Sample, collate
from fourstage.recipe import Classification, Detection, Recipe, Segmentation
from fourstage.run.task_protocol import kind_of

if TYPE_CHECKING:
    from PIL.Image import Image

ROWS, VERSIONS, MIXED = 6, 4, 2  # images; augmented versions of each; and versions that are mixed, where a recipe mixes
SEEN = 0.2  # share of the second image; most draws of a usual recipe are of nearly one image, and would show nothing
TRIES = 50
DENSE_ROWS, DENSE_VERSIONS = 4, 3  # of images with objects or label maps, which are larger
DENSE_SIDE = {"detection": 400, "segmentation": 320}  # pixels of the longer side; the latter has a column more

Picture = tuple[np.ndarray, str]  # (H, W, 3) uint8, and what is written below it


def draw_sheet(dataset: Dataset, recipe: Recipe) -> "Image":
    """A few images, a row each: as it is, then augmented versions, then mixed ones where the recipe mixes.

    Args:
        dataset: training images, at least one, with what the recipe learns from.

    Raises:
        ValueError: an image cannot be read, none is left to train on, or a value of the recipe does not fit the data.
    """
    if isinstance(recipe, Detection):
        return _sheet_of_objects(dataset, recipe)
    if isinstance(recipe, Segmentation):
        return _sheet_of_label_maps(dataset, recipe)
    assert isinstance(recipe, Classification), "there are three tasks"
    return _contact_sheet(_rows(dataset, recipe))


def _contact_sheet(rows: Sequence[Sequence[Picture]], side: int | None = None) -> "Image":
    from fourstage.report.pictures import CELL, contact_sheet

    pictures = [picture for row in rows for picture in row]
    images, captions = [image for image, _ in pictures], [text for _, text in pictures]
    return contact_sheet(images, captions, columns=len(rows[0]), side=side or CELL)


def _sheet_of_objects(dataset: Dataset, recipe: Detection) -> "Image":
    """Boxes, masks and names over the images that are trained on."""
    from fourstage.report.objects import draw_objects

    side = DENSE_SIDE[recipe.task]
    dataset = kind_of(recipe).for_training(recipe, dataset)
    samples, versions = _dense(dataset, recipe)

    def drawn(image_HW3: np.ndarray, objects: Objects | None, said: str) -> Picture:
        assert objects is not None, "detection data has them"
        picture = draw_objects(image_HW3, _listed(objects), dataset.classes, side=side)
        count = len(objects.labels_N)
        return np.asarray(picture), f"{said}, {count or 'no'} object{'' if count == 1 else 's'}"

    rows = [[drawn(_original(sample), sample.objects, _titled(sample))] for sample in samples]
    for version in versions:
        for row, batch in zip(rows, version, strict=True):
            row.append(drawn(_pixels(batch.images_BCHW[0], recipe), (batch.objects or (None,))[0], _sized(batch)))
    return _contact_sheet(rows, side)


def _sheet_of_label_maps(dataset: Dataset, recipe: Segmentation) -> "Image":
    """Images as they are, and label maps over them, with the names of the colours below."""
    from fourstage.report.label_maps import add_legend, colours_of, fitted, labelled

    side = DENSE_SIDE[recipe.task]
    samples, versions = _dense(dataset, recipe)
    classes = len(dataset.classes)
    colours, seen = colours_of(classes, getattr(dataset, "palette", None)), set[int]()

    def drawn(image_HW3: np.ndarray, labels: Tensor | None, said: str) -> Picture:
        assert labels is not None, "segmentation data has them"
        seen.update(np.unique(labels.numpy()).tolist())
        return np.asarray(labelled(image_HW3, labels.numpy(), colours, side)), said

    rows = [
        [
            (np.asarray(fitted(_original(sample), side)), _titled(sample)),
            drawn(_original(sample), sample.label_map_HW, "its label map"),
        ]
        for sample in samples
    ]
    for version in versions:
        for row, batch in zip(rows, version, strict=True):
            maps_BHW = batch.label_maps_BHW
            labels_HW = None if maps_BHW is None else maps_BHW[0]
            row.append(drawn(_pixels(batch.images_BCHW[0], recipe), labels_HW, _sized(batch)))
    names = [(dataset.classes[c], colours[c]) for c in sorted(seen) if c < classes]
    return add_legend(_contact_sheet(rows, side), names, ignored=any(c >= classes for c in seen))


def _dense(dataset: Dataset, recipe: Recipe) -> tuple[list[Sample], list[list[Batch]]]:
    """The chosen samples, and of each augmented version a batch for each, padded as an image alone would be."""
    kind = kind_of(recipe)
    transform, divisor = kind.transforms(recipe)[0], kind.divisor(recipe)
    samples = [dataset.sample(index) for index in _chosen(dataset, DENSE_ROWS)]
    versions = [
        [collate([sample], divisor) for sample in _augmented(samples, transform, recipe, version)]
        for version in range(DENSE_VERSIONS)
    ]
    return samples, versions


def _listed(objects: Objects) -> dict[str, Any]:
    """Objects as they are drawn."""
    found: dict[str, Any] = {
        "boxes": objects.boxes_N4.tolist(),
        "labels": objects.labels_N.tolist(),
        "crowd": objects.crowd_N.tolist(),
    }
    if objects.masks_NHW is not None:
        found["masks"] = [encode_mask(mask_HW)["counts"] for mask_HW in objects.masks_NHW.numpy()]
    return found


def _titled(sample: Sample) -> str:
    return f"{PurePosixPath(sample.id).name}: {_size(sample)}"


def _sized(batch: Batch) -> str:
    """The size after augmentation; padding is told where there is some."""
    (height, width), (high, wide) = batch.sizes[0], batch.images_BCHW.shape[-2:]
    padding = "" if (height, width) == (high, wide) else f" padded to {wide} x {high}"
    return f"augmented: {width} x {height}{padding}"


def _rows(dataset: Dataset, recipe: Classification) -> list[list[Picture]]:
    """For each chosen image: itself, its augmented versions, its mixed ones."""
    transform, _ = kind_of(recipe).transforms(recipe)
    samples = [dataset.sample(index) for index in _chosen(dataset, ROWS)]
    rows = [[(_original(sample), f"{_name(dataset, sample.label)}: {_size(sample)}")] for sample in samples]
    for version in range(VERSIONS):
        for row, sample in zip(rows, _augmented(samples, transform, recipe, version), strict=True):
            row.append((_pixels(sample.image, recipe), "augmented"))
    batch_size = len(samples) + len(samples) % 2  # mixing pairs images
    mix = kind_of(recipe).mixing(recipe, len(dataset.classes), batch_size)
    for version in range(MIXED if mix is not None else 0):
        assert mix is not None
        filled = [*samples, *samples[: batch_size - len(samples)]]
        batch = collate(_augmented(filled, transform, recipe, VERSIONS + version))
        images_BCHW, shares_BC = _mixed(mix, batch, recipe.seed, version)
        for i, row in enumerate(rows):  # one image may be there twice, to make pairs
            row.append((_pixels(images_BCHW[i], recipe), _told(shares_BC[i], dataset.classes)))
    return rows


def _chosen(dataset: Dataset, count: int) -> Sequence[int]:
    """A few samples from all over the data set, always the same; of different classes where that is easy."""
    places = np.linspace(0, len(dataset) - 1, min(len(dataset), 8 * count)).round().astype(int)
    order = hash_order([dataset.id(int(place)) for place in places])
    candidates = [int(places[i]) for i in order]
    labels = getattr(dataset, "labels_N", None)
    if labels is None:
        return candidates[:count]
    first = {int(labels[index]): index for index in reversed(candidates)}  # of each class, the earliest
    unlike = [index for index in candidates if first[int(labels[index])] == index]
    return [*unlike, *(index for index in candidates if index not in unlike)][:count]


def _augmented(
    samples: Sequence[Sample], transform: Callable[[Sample], Sample], recipe: Recipe, version: int
) -> list[Sample]:
    found: list[Sample] = []
    for number, sample in enumerate(samples):
        seed_everything(SAMPLE, recipe.seed, version, number)
        found.append(transform(sample))
    return found


def _mixed(mix: Callable[[Batch], Batch], batch: Batch, seed: int, version: int) -> tuple[Tensor, Tensor]:
    """The images of a batch, mixed so that it can be seen, and each one's share of the classes."""
    images_BCHW = shares_BC = torch.empty(0)
    for draw in range(TRIES):
        seed_everything(MIX, seed, version, draw)
        mixed = mix(replace(batch, images_BCHW=batch.images_BCHW.clone()))  # timm mixes in place
        assert mixed.targets_BC is not None
        above_BC = mixed.targets_BC - mixed.targets_BC.amin(dim=1, keepdim=True)  # what smoothing gives to all
        images_BCHW, shares_BC = mixed.images_BCHW, above_BC / above_BC.sum(dim=1, keepdim=True).clamp(min=1e-12)
        if float(shares_BC.topk(2, dim=1).values[:, 1].mean()) >= SEEN:
            break
    return images_BCHW, shares_BC


def _original(sample: Sample) -> np.ndarray:
    assert isinstance(sample.image, np.ndarray), "data sets give arrays"
    return sample.image


def _size(sample: Sample) -> str:
    height, width = sample.original_size
    return f"{width} x {height}"


def _name(dataset: Dataset, label: int | None) -> str:
    return dataset.classes[label] if label is not None else "no class"


def _pixels(image_CHW: np.ndarray | Tensor, recipe: Recipe) -> np.ndarray:
    """A normalised image as (H, W, 3) uint8."""
    assert isinstance(image_CHW, Tensor), "transforms end with a tensor"
    std_C11, mean_C11 = (torch.tensor(values)[:, None, None] for values in (recipe.std, recipe.mean))
    image_HWC = (image_CHW * std_C11 + mean_C11).movedim(0, -1)
    return image_HWC.mul(255).round().clamp(0, 255).to(torch.uint8).numpy()


def _told(share_C: Tensor, classes: Sequence[str]) -> str:
    """`60% cat + 40% dog`."""
    best = [i for i in share_C.argsort(descending=True).tolist()[:2] if float(share_C[i]) > 0.005]
    return " + ".join(f"{float(share_C[i]):.0%} {classes[i]}" for i in best)
