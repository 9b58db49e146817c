"""Sheets of training images as a network receives them, with classes, objects or label maps.

B images, C classes, H x W pixels, N objects.
"""

from collections.abc import Sequence
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
from fourstage.recipe import Recipe
from fourstage.run.task_protocol import AnyProtocol, Mix, Transform

if TYPE_CHECKING:
    from PIL.Image import Image

ROWS, VERSIONS, MIXED = 6, 4, 2  # images; augmented versions of each; mixed versions of each, where a recipe mixes
VISIBLE = 0.2  # share of the second image in a mixed one; in most draws of a usual recipe it is too small to be visible
TRIES = 50  # draws in search of a visible one
LARGE_ROWS, LARGE_VERSIONS = 4, 3  # for images with objects or label maps, which are drawn larger
LARGE_SIDE = {"detection": 400, "segmentation": 320}  # pixels of the longer side; segmentation has one more column

Picture = tuple[np.ndarray, str]  # (H, W, 3) uint8, and its caption


def draw_sheet(dataset: Dataset, protocol: AnyProtocol) -> "Image":
    """Draw a few images, one row each: the original, augmented versions, and mixed ones where the recipe mixes.

    Args:
        dataset: training images, at least one, with the truth that the recipe learns from.

    Raises:
        ValueError: an image cannot be read, none is left to train on, or a value of the recipe does not fit the data.
    """
    draw = {"label": _sheet_of_classes, "objects": _sheet_of_objects, "label_map_HW": _sheet_of_label_maps}
    return draw[protocol.truth](dataset, protocol)


def _contact_sheet(rows: Sequence[Sequence[Picture]], side: int | None = None) -> "Image":
    from fourstage.report.pictures import CELL, contact_sheet

    pictures = [picture for row in rows for picture in row]
    images, captions = [image for image, _ in pictures], [text for _, text in pictures]
    return contact_sheet(images, captions, columns=len(rows[0]), side=side or CELL)


def _sheet_of_objects(dataset: Dataset, protocol: AnyProtocol) -> "Image":
    """Draw boxes, masks and names over the training images."""
    from fourstage.report.objects import MOST_DRAWN, draw_objects

    side, recipe = LARGE_SIDE["detection"], protocol.recipe
    dataset = protocol.training_data(dataset)
    samples, versions = _large_samples(dataset, protocol)

    def drawn(image_HW3: np.ndarray, objects: Objects | None, caption: str) -> Picture:
        assert objects is not None, "detection data has objects"
        picture = draw_objects(image_HW3, _plain_objects(objects), dataset.classes, side=side)
        count = len(objects.labels_N)
        text = f"{caption}, {count or 'no'} object{'' if count == 1 else 's'}"
        return np.asarray(picture), f"{text}, {MOST_DRAWN} of them drawn" if count > MOST_DRAWN else text

    rows = [[drawn(_original(sample), sample.objects, _original_caption(sample))] for sample in samples]
    for version in versions:
        for row, batch in zip(rows, version, strict=True):
            row.append(
                drawn(_pixels(batch.images_BCHW[0], recipe), (batch.objects or (None,))[0], _augmented_caption(batch))
            )
    return _contact_sheet(rows, side)


def _sheet_of_label_maps(dataset: Dataset, protocol: AnyProtocol) -> "Image":
    """Draw original images, and label maps over images, with the names of the colours below."""
    from fourstage.report.label_maps import add_legend, colours_of, fitted, labelled

    side, recipe = LARGE_SIDE["segmentation"], protocol.recipe
    samples, versions = _large_samples(dataset, protocol)
    classes = len(dataset.classes)
    colours, drawn_labels = colours_of(classes, getattr(dataset, "palette", None)), set[int]()

    def drawn(image_HW3: np.ndarray, labels: Tensor | None, caption: str) -> Picture:
        assert labels is not None, "segmentation data has label maps"
        drawn_labels.update(np.unique(labels.numpy()).tolist())
        return np.asarray(labelled(image_HW3, labels.numpy(), colours, side)), caption

    rows = [
        [
            (np.asarray(fitted(_original(sample), side)), _original_caption(sample)),
            drawn(_original(sample), sample.label_map_HW, "its label map"),
        ]
        for sample in samples
    ]
    for version in versions:
        for row, batch in zip(rows, version, strict=True):
            maps_BHW = batch.label_maps_BHW
            labels_HW = None if maps_BHW is None else maps_BHW[0]
            row.append(drawn(_pixels(batch.images_BCHW[0], recipe), labels_HW, _augmented_caption(batch)))
    names = [(dataset.classes[c], colours[c]) for c in sorted(drawn_labels) if c < classes]
    return add_legend(_contact_sheet(rows, side), names, ignored=any(c >= classes for c in drawn_labels))


def _large_samples(dataset: Dataset, protocol: AnyProtocol) -> tuple[list[Sample], list[list[Batch]]]:
    """Return a few samples, and for each augmented version a list of batches of one image, padded as it would be."""
    transform, divisor = protocol.train_transform(), protocol.size_divisor
    samples = [dataset.sample(index) for index in _choose(dataset, LARGE_ROWS)]
    versions = [
        [collate([sample], divisor) for sample in _augment(samples, transform, protocol.recipe, version)]
        for version in range(LARGE_VERSIONS)
    ]
    return samples, versions


def _plain_objects(objects: Objects) -> dict[str, Any]:
    """Return objects as plain lists, which the drawing function takes."""
    plain: dict[str, Any] = {
        "boxes": objects.boxes_N4.tolist(),
        "labels": objects.labels_N.tolist(),
        "crowd": objects.crowd_N.tolist(),
    }
    if objects.masks_NHW is not None:
        plain["masks"] = [encode_mask(mask_HW)["counts"] for mask_HW in objects.masks_NHW.numpy()]
    return plain


def _original_caption(sample: Sample) -> str:
    return f"{PurePosixPath(sample.id).name}: {_size(sample)}"


def _augmented_caption(batch: Batch) -> str:
    """Return the size after augmentation, and after padding where there is any."""
    (height, width), (high, wide) = batch.sizes[0], batch.images_BCHW.shape[-2:]
    padding = "" if (height, width) == (high, wide) else f" padded to {wide} x {high}"
    return f"augmented: {width} x {height}{padding}"


def _sheet_of_classes(dataset: Dataset, protocol: AnyProtocol) -> "Image":
    """Draw images with their class names below."""
    recipe, transform = protocol.recipe, protocol.train_transform()
    samples = [dataset.sample(index) for index in _choose(dataset, ROWS)]
    rows = [[(_original(sample), f"{_name(dataset, sample.label)}: {_size(sample)}")] for sample in samples]
    for version in range(VERSIONS):
        for row, sample in zip(rows, _augment(samples, transform, recipe, version), strict=True):
            row.append((_pixels(sample.image, recipe), "augmented"))
    batch_size = len(samples) + len(samples) % 2  # mixing pairs images
    mix = protocol.mixing(len(dataset.classes), batch_size)
    for version in range(MIXED if mix is not None else 0):
        assert mix is not None
        filled = [*samples, *samples[: batch_size - len(samples)]]
        batch = collate(_augment(filled, transform, recipe, VERSIONS + version))
        images_BCHW, shares_BC = _mix_visibly(mix, batch, recipe.seed, version)
        for i, row in enumerate(rows):  # the batch may hold one image twice, to complete the pairs
            row.append((_pixels(images_BCHW[i], recipe), _shares_caption(shares_BC[i], dataset.classes)))
    return _contact_sheet(rows)


def _choose(dataset: Dataset, count: int) -> Sequence[int]:
    """Return a few indices from all over the data set, always the same, of different classes where labels are known."""
    places = np.linspace(0, len(dataset) - 1, min(len(dataset), 8 * count)).round().astype(int)
    order = hash_order([dataset.id(int(place)) for place in places])
    candidates = [int(places[i]) for i in order]
    labels = getattr(dataset, "labels_N", None)
    if labels is None:
        return candidates[:count]
    first = {int(labels[index]): index for index in reversed(candidates)}  # the first candidate of each class
    different = [index for index in candidates if first[int(labels[index])] == index]
    return [*different, *(index for index in candidates if index not in different)][:count]


def _augment(samples: Sequence[Sample], transform: Transform, recipe: Recipe, version: int) -> list[Sample]:
    augmented: list[Sample] = []
    for number, sample in enumerate(samples):
        seed_everything(SAMPLE, recipe.seed, version, number)
        augmented.append(transform(sample))
    return augmented


def _mix_visibly(mix: Mix, batch: Batch, seed: int, version: int) -> tuple[Tensor, Tensor]:
    """Return the images of a batch, mixed so that it is visible, and the shares of the classes in each image."""
    images_BCHW = shares_BC = torch.empty(0)
    for draw in range(TRIES):
        seed_everything(MIX, seed, version, draw)
        mixed = mix(replace(batch, images_BCHW=batch.images_BCHW.clone()))  # timm mixes in place
        assert mixed.targets_BC is not None
        above_BC = mixed.targets_BC - mixed.targets_BC.amin(dim=1, keepdim=True)  # label smoothing adds the same to all
        images_BCHW, shares_BC = mixed.images_BCHW, above_BC / above_BC.sum(dim=1, keepdim=True).clamp(min=1e-12)
        if float(shares_BC.topk(2, dim=1).values[:, 1].mean()) >= VISIBLE:
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
    """Return a normalised image as (H, W, 3) uint8."""
    assert isinstance(image_CHW, Tensor), "transforms end with a tensor"
    std_C11, mean_C11 = (torch.tensor(values)[:, None, None] for values in (recipe.std, recipe.mean))
    image_HWC = (image_CHW * std_C11 + mean_C11).movedim(0, -1)
    return image_HWC.mul(255).round().clamp(0, 255).to(torch.uint8).numpy()


def _shares_caption(share_C: Tensor, classes: Sequence[str]) -> str:
    """Return a caption such as `60% cat + 40% dog`."""
    best = [i for i in share_C.argsort(descending=True).tolist()[:2] if float(share_C[i]) > 0.005]
    return " + ".join(f"{float(share_C[i]):.0%} {classes[i]}" for i in best)
