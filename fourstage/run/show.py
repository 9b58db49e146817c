"""`fourstage data show`: a sheet of images as a training sees them. C classes, H x W pixels."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fourstage.data.formats import open_dataset
from fourstage.data.loader import MIX, SAMPLE, seed_everything
from fourstage.data.order import by_hash
from fourstage.data.sample import Batch, Dataset, Sample, collate
from fourstage.engine.log import Bar
from fourstage.engine.state import write_whole
from fourstage.recipe import Classification, Recipe, resolve
from fourstage.run.kinds import kind_of
from fourstage.run.splits import data_path

ROWS, VERSIONS, MIXED = 6, 4, 2  # images; augmented versions of each; and versions that are mixed, where a recipe mixes
SEEN = 0.2  # share of the second image; most draws of a usual recipe are of nearly one image, and would show nothing
TRIES = 50

Picture = tuple[np.ndarray, str]  # (H, W, 3) uint8, and what is written below it


def show(
    data: str | Path,
    *,
    recipe: str | Path | None = None,
    out: str | Path = "samples.png",
    changes: Iterable[str] = (),
    progress: bool = True,
) -> Path:
    """Draw some training images, each as it is, augmented, and mixed with others where the recipe mixes.

    Args:
        data: what `--data` takes.
        recipe: a name or file; default: `digits_visformer` for the digits, `smt_tiny_in1k` for anything else.
        out: the PNG to write; an older one is replaced.
        changes: `key=value` strings, such as "augmentation.mixup=0".

    Returns:
        The path of the sheet.

    Raises:
        ValueError: no such data or recipe, data without one label an image, a file that is no .png.
    """
    out = Path(out)
    if out.suffix.lower() != ".png":
        raise ValueError(f"--out {out} must end in .png; pictures are written in that format only")
    name = recipe or ("digits_visformer" if str(data) == "digits" else "smt_tiny_in1k")
    resolved = resolve(name, changes, {"data": data_path(data)}).recipe
    if not isinstance(resolved, Classification):
        raise ValueError(f"{name} is no classification recipe; name one with --recipe, see `fourstage recipes`")
    with Bar("indexing", 1, show=progress, every=5) as bar:
        dataset = open_dataset(resolved.data or "", "train", progress=bar.of)
    if "label" not in dataset.truths:
        raise ValueError(f"{data} has no class for each image; give data such as train/<class>/*.jpg, or digits")
    if not len(dataset):
        raise ValueError(f"{data} has no training images; add some, at least two for each class")
    from fourstage.report.pictures import contact_sheet

    rows = _rows(dataset, resolved)
    pictures = [picture for row in rows for picture in row]
    sheet = contact_sheet([image for image, _ in pictures], [text for _, text in pictures], columns=len(rows[0]))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, lambda file: sheet.save(file, "PNG"))
    return out


def _rows(dataset: Dataset, recipe: Classification) -> list[list[Picture]]:
    """For each chosen image: itself, its augmented versions, its mixed ones."""
    transform, _ = kind_of(recipe).transforms(recipe)
    samples = [dataset.sample(index) for index in _chosen(dataset)]
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
        for row, image_CHW, share_C in zip(rows, images_BCHW, shares_BC, strict=False):
            row.append((_pixels(image_CHW, recipe), _told(share_C, dataset.classes)))
    return rows


def _chosen(dataset: Dataset) -> Sequence[int]:
    """A few samples from all over the data set, always the same; of different classes where that is easy."""
    places = np.linspace(0, len(dataset) - 1, min(len(dataset), 8 * ROWS)).round().astype(int)
    order = by_hash([dataset.id(int(place)) for place in places])
    candidates = [int(places[i]) for i in order]
    labels = getattr(dataset, "labels_N", None)
    if labels is None:
        return candidates[:ROWS]
    first = {int(labels[index]): index for index in reversed(candidates)}  # of each class, the earliest
    unlike = [index for index in candidates if first[int(labels[index])] == index]
    return [*unlike, *(index for index in candidates if index not in unlike)][:ROWS]


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


def _pixels(image_CHW: np.ndarray | Tensor, recipe: Classification) -> np.ndarray:
    """A normalised image as (H, W, 3) uint8."""
    assert isinstance(image_CHW, Tensor), "transforms end with a tensor"
    std_C11, mean_C11 = (torch.tensor(values)[:, None, None] for values in (recipe.std, recipe.mean))
    image_HWC = (image_CHW * std_C11 + mean_C11).movedim(0, -1)
    return image_HWC.mul(255).round().clamp(0, 255).to(torch.uint8).numpy()


def _told(share_C: Tensor, classes: Sequence[str]) -> str:
    """`60% cat + 40% dog`."""
    best = [i for i in share_C.argsort(descending=True).tolist()[:2] if float(share_C[i]) > 0.005]
    return " + ".join(f"{float(share_C[i]):.0%} {classes[i]}" for i in best)
