"""Transforms for classification, equal to timm's, with which the published recipes trained. C channels, H x W pixels.

Random transforms draw from the global generators of `random`, `numpy.random` and `torch` only.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from math import floor, gcd
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fourstage.data.images import as_picture, as_pixels
from fourstage.data.loader import BatchTransform
from fourstage.data.sample import Sample
from fourstage.extras import install

if TYPE_CHECKING:
    from PIL.Image import Image

Transform = Callable[[Sample], Sample]
Pair = tuple[int, int]

INTERPOLATIONS = ("bicubic", "bilinear", "nearest", "lanczos", "random")
FILTERS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}  # PIL's numbers
NEAREST = FILTERS["nearest"]  # the one that weighs no neighbours
REACH = 3  # pixels to each side that PIL's widest filter, lanczos, looks at when it enlarges
ERASING = ("pixel", "rand", "const")


def train_transform(
    image_size: int,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    hflip: float = 0.5,
    color_jitter: float = 0.4,
    auto_augment: str | None = "rand-m9-mstd0.5-inc1",
    reprob: float = 0.25,
    remode: Literal["pixel", "rand", "const"] = "pixel",
    recount: int = 1,
    interpolation: str = "bicubic",
) -> Transform:
    """Return timm's training transform: random resized crop, flip, policy or colour jitter, normalisation, erasing.

    Images of 32 pixels and fewer get the random resized crop too; the DeiT and Swin code crops those with a margin of 4
    pixels instead.

    Args:
        image_size: height and width of the result, pixels.
        mean, std: per channel, in units of 1 (white).
        scale: share of the image's area that a crop covers.
        ratio: width over height of a crop.
        hflip: probability of a mirror image.
        color_jitter: strength of brightness, contrast and saturation; not used together with a policy.
        auto_augment: a policy in timm's notation (RandAugment, AutoAugment, AugMix), or None.
        reprob: probability of erasing.
        remode: what erased pixels become: noise, noise of one colour, or the mean colour.
        recount: most areas that are erased.
        interpolation: of crop and policy; "random" draws bilinear or bicubic.

    Returns:
        A transform from (H, W, 3) uint8 to (3, image_size, image_size) float32, normalised. It can be pickled.

    Raises:
        ValueError: an unknown interpolation, policy or mode; a library is missing.

    Source: https://github.com/huggingface/pytorch-image-models, timm/data/transforms_factory.py
    """
    _check(interpolation, mean, std)
    if remode not in ERASING:
        raise ValueError(f"remode {remode!r} is unknown; it is one of {', '.join(ERASING)}")
    try:
        crop, change, _ = _timm().create_transform(
            image_size, is_training=True, scale=scale, ratio=ratio, hflip=hflip, color_jitter=color_jitter,
            auto_augment=auto_augment, interpolation=interpolation, mean=tuple(mean), std=tuple(std), normalize=False,
            separate=True,
        )  # fmt: skip
    except (AssertionError, KeyError, ValueError) as error:
        raise ValueError(
            f"auto_augment {auto_augment!r:.80} is no policy that timm reads; the recipes use rand-m9-mstd0.5-inc1, "
            "and null switches policies off"
        ) from error
    _replace_posterize(change.transforms)
    erase = _erasing(reprob, remode, recount) if reprob > 0 else None
    return _Train(crop.transforms[0], [*crop.transforms[1:], *change.transforms], _Normalise(mean, std), erase)


def eval_transform(
    image_size: int,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    crop_pct: float = 0.875,
    crop_mode: Literal["center", "squash"] = "center",
    interpolation: str = "bicubic",
) -> Transform:
    """Return a transform that resizes and crops without randomness.

    Args:
        image_size: height and width of the result, pixels.
        mean, std: per channel, in units of 1 (white).
        crop_pct: with "center", the short side becomes floor(image_size / crop_pct) and the middle is cut out.
        crop_mode: "squash" resizes straight to the square, which distorts the image, and crops nothing: what the
            sources do at 384 pixels.

    Returns:
        A transform from (H, W, 3) uint8 to (3, image_size, image_size) float32, normalised. It can be pickled.

    Raises:
        ValueError: an unknown crop mode or interpolation, a crop share outside (0, 1]; a library is missing.
    """
    _check(interpolation, mean, std)
    if crop_mode not in ("center", "squash"):
        raise ValueError(f"crop_mode {crop_mode!r} is unknown; it is center or squash")
    if not 0 < crop_pct <= 1:
        raise ValueError(f"crop_pct {crop_pct} must be above 0 and at most 1, such as 0.875")
    if interpolation == "random":
        raise ValueError("interpolation 'random' is for training; evaluation needs one, such as bicubic")
    resized = [image_size, image_size] if crop_mode == "squash" else [floor(image_size / crop_pct)]
    return _Eval(resized, FILTERS[interpolation], image_size, _Normalise(mean, std))


class _Train(BatchTransform):
    def __init__(self, crop: Any, change: list[Any], normalise: "_Normalise", erase: Any) -> None:
        from torchvision.transforms.functional import pil_modes_mapping

        modes = crop.interpolation if isinstance(crop.interpolation, tuple) else (crop.interpolation,)
        self._filters = [pil_modes_mapping[mode] for mode in modes]
        self._crop, self._change, self._normalise, self._erase = crop, change, normalise, erase

    def into(self, sample: Sample, slot_CHW: Tensor | None) -> Sample:
        image = as_picture(_pixels(sample))
        top, left, height, width = self._crop.get_params(image, self._crop.scale, self._crop.ratio)
        image = image.crop((left, top, left + width, top + height))
        filter = random.choice(self._filters) if len(self._filters) > 1 else self._filters[0]
        image = image.resize(self._crop.size[::-1], filter)
        for change in self._change:
            image = change(image)
        image_CHW = self._normalise(image, slot_CHW)
        return replace(sample, image=image_CHW if self._erase is None else self._erase(image_CHW))


class _Eval(BatchTransform):
    """Resize, then cut out the middle; little is computed of what would be cut off.

    timm and torchvision resize so; neither is imported here, which would cost a prediction two seconds.

    Args:
        size: of the resized image: its short side alone, or height and width.
        filter: of PIL.
        side: height and width of the result, no larger than `size`.
    """

    def __init__(self, size: Sequence[int], filter: int, side: int, normalise: "_Normalise") -> None:
        self._size, self._filter, self._side, self._normalise = list(size), filter, side, normalise

    def into(self, sample: Sample, slot_CHW: Tensor | None) -> Sample:
        image = as_picture(_pixels(sample))
        full = self._resized(*image.size)
        # In these two cases PIL does not resize the rows first and then the columns.
        lost = image.height - full[1]
        if self._filter == NEAREST or lost > max(0, 2 * (image.width - full[0])):
            left, top = (_middle(length, self._side) for length in full)
            image = image.resize(full, self._filter).crop((left, top, left + self._side, top + self._side))
        else:
            image = _middle_of_resized(image, full, self._side, self._filter)
        return replace(sample, image=self._normalise(image, slot_CHW))

    def _resized(self, width: int, height: int) -> Pair:
        """(W, H) of the image before anything is cut off, by torchvision's rule."""
        if len(self._size) == 2:
            return self._size[1], self._size[0]
        [short] = self._size
        return (short, int(short * height / width)) if width <= height else (int(short * width / height), short)


def _middle_of_resized(image: "Image", full: Pair, side: int, filter: int) -> "Image":
    """Return the middle of an image that is resized to `full` (W, H), with the same bits as resizing all of it.

    First along the rows that the middle needs, then along the columns of the middle.
    """
    (width, height), (wide, high) = image.size, full
    across, down = _axis_plan(width, wide, side), _axis_plan(height, high, side)
    reach = REACH * max(1, height / high) + 1
    top, bottom = max(0, int(down.start - reach)), min(height, int(down.end + reach) + 1)
    rows = image.crop((0, top, width, bottom))
    rows = rows.resize((across.computed, bottom - top), filter, box=(across.start, 0, across.end, bottom - top))
    rows = rows.crop((across.first, 0, across.first + side, bottom - top))
    middle = rows.resize((side, down.computed), filter, box=(0, down.start - top, side, down.end - top))
    return middle.crop((0, down.first, side, down.first + side))


class _AxisPlan(NamedTuple):
    computed: int  # pixels that PIL computes
    start: float  # of what they show of the image, in its pixels
    end: float
    first: int  # of the computed pixels that are kept


@lru_cache(maxsize=4096)
def _axis_plan(length: int, full: int, side: int) -> _AxisPlan:
    """One axis of an image that is resized to `full` pixels, of which the middle is kept.

    PIL gives the middle alone with the same bits where the distance between pixels and the first position, which it
    holds in single precision, are exact: as for a short side of 256 pixels, the usual one.
    """
    first = _middle(full, side)
    start, end = length * first / full, length * (first + side) / full
    fraction = full // gcd(length, full)  # of a pixel; all positions are multiples of it
    if fraction & (fraction - 1) == 0 and np.float32(start) == start and np.float32(end) == end:
        return _AxisPlan(side, start, end, 0)
    return _AxisPlan(full, 0, length, first)


def _middle(full: int, side: int) -> int:
    return round((full - side) / 2)


class _Normalise:
    """A PIL image as a normalised tensor: the arithmetic of ToTensor and Normalize to the last bit, without copies."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self._mean_C11, self._std_C11 = (torch.tensor(list(v), dtype=torch.float32)[:, None, None] for v in (mean, std))

    def __call__(self, image: Any, slot_CHW: Tensor | None) -> Tensor:
        bytes_CHW = as_pixels(image).transpose(2, 0, 1)
        image_CHW = torch.empty(bytes_CHW.shape) if slot_CHW is None else slot_CHW
        np.copyto(image_CHW.numpy(), bytes_CHW)
        return image_CHW.div_(255).sub_(self._mean_C11).div_(self._std_C11)


def _pixels(sample: Sample) -> np.ndarray:
    if sample.objects is not None or sample.label_map_HW is not None:
        raise ValueError(
            f"the sample {sample.id} has boxes or a label map, which these transforms would not update: "
            "classification needs data with one label an image, such as digits or train/<class>/*.jpg"
        )
    assert isinstance(sample.image, np.ndarray), "data sets give arrays"
    return sample.image


def _erasing(probability: float, mode: str, count: int) -> Any:
    from timm.data.random_erasing import RandomErasing

    return RandomErasing(probability, mode=mode, max_count=count, device="cpu")


def posterize(image: Any, bits_to_keep: int, **_: Any) -> Any:
    """Keep the highest bits of each channel, as timm does; no bits give black, as in Pillow before version 13."""
    from PIL import ImageOps

    if bits_to_keep >= 8:
        return image
    return ImageOps.posterize(image, bits_to_keep) if bits_to_keep else image.point([0] * 256 * len(image.getbands()))


def _replace_posterize(policies: list[Any]) -> None:
    """Replace the operation of timm's policies that keeps no bits at all, which Pillow 13 refuses."""
    for policy in policies:
        chains = getattr(policy, "policy", None) or [getattr(policy, "ops", ())]  # AutoAugment; RandAugment, AugMix
        for operation in (operation for chain in chains for operation in chain):
            if operation.name.startswith("Posterize"):
                operation.aug_fn = posterize


def _check(interpolation: str, mean: Sequence[float], std: Sequence[float]) -> None:
    if interpolation not in INTERPOLATIONS:
        raise ValueError(f"interpolation {interpolation!r} is unknown; it is one of {', '.join(INTERPOLATIONS)}")
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ValueError(f"mean {mean} and std {std} must be three numbers each, and no std zero or less")


def _timm() -> Any:
    try:
        import timm.data
    except ImportError as error:
        raise ValueError(f"the transforms are those of timm, which is missing: {install('train')}") from error
    return timm.data
