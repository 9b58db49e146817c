"""Transforms for classification, equal to timm's, with which the published recipes trained. C channels, H x W pixels.

Random transforms draw from the global generators of `random`, `numpy.random` and `torch` only.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fourstage.data.images import as_picture, as_pixels
from fourstage.data.loader import BatchTransform
from fourstage.data.sample import Sample
from fourstage.data.transforms.middle_crop import MiddleCrop
from fourstage.data.transforms.values import check_colours, check_ranges, check_shares, check_side
from fourstage.extras import install

Transform = Callable[[Sample], Sample]

INTERPOLATIONS = ("bicubic", "bilinear", "nearest", "lanczos", "random")
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
        ValueError: an unknown interpolation, policy or mode, an impossible number; a library is missing.

    Source: https://github.com/huggingface/pytorch-image-models, timm/data/transforms_factory.py
    """
    _check(image_size, interpolation, mean, std)
    check_shares(hflip=hflip, reprob=reprob)
    check_ranges(scale=scale, ratio=ratio)
    if color_jitter < 0 or recount < 1:
        raise ValueError(f"color_jitter is at least 0 and recount at least 1; got {color_jitter!r} and {recount!r}")
    if remode not in ERASING:
        raise ValueError(f"remode {remode!r} is unknown; it is one of {', '.join(ERASING)}")
    timm_data = _timm()
    try:
        crop, change, _ = timm_data.create_transform(
            image_size, is_training=True, scale=scale, ratio=ratio, hflip=hflip, color_jitter=color_jitter,
            auto_augment=auto_augment, interpolation=interpolation, mean=tuple(mean), std=tuple(std), normalize=False,
            separate=True,
        )  # fmt: skip
    except (AssertionError, KeyError, ValueError) as error:
        raise ValueError(
            f"auto_augment {auto_augment!r:.80} is not a policy that timm reads; the recipes use rand-m9-mstd0.5-inc1, "
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
        ValueError: an unknown crop mode or interpolation, a crop share outside (0, 1], an impossible number; a library
            is missing.
    """
    _check(image_size, interpolation, mean, std)
    if crop_mode not in ("center", "squash"):
        raise ValueError(f"crop_mode {crop_mode!r} is unknown; it is center or squash")
    if not 0 < crop_pct <= 1:
        raise ValueError(f"crop_pct {crop_pct} must be above 0 and at most 1, such as 0.875")
    if interpolation == "random":
        raise ValueError("interpolation 'random' is for training; evaluation needs one, such as bicubic")
    return _Eval(MiddleCrop.of(image_size, crop_pct, crop_mode, interpolation), _Normalise(mean, std))


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
    def __init__(self, crop: MiddleCrop, normalise: "_Normalise") -> None:
        self._crop, self._normalise = crop, normalise

    def into(self, sample: Sample, slot_CHW: Tensor | None) -> Sample:
        return replace(sample, image=self._normalise(self._crop(_pixels(sample)), slot_CHW))


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


def _check(image_size: int, interpolation: str, mean: Sequence[float], std: Sequence[float]) -> None:
    check_side("image_size", image_size)
    if interpolation not in INTERPOLATIONS:
        raise ValueError(f"interpolation {interpolation!r} is unknown; it is one of {', '.join(INTERPOLATIONS)}")
    check_colours(mean, std)


def _timm() -> Any:
    try:
        import timm.data
    except ImportError as error:
        raise ValueError(f"the transforms are those of timm, which is missing: {install('train')}") from error
    return timm.data
