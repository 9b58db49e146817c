"""What happens to an image before a classifier sees it, as timm does it and the published recipes used it. C, H, W.

Random transforms draw from the global generators of `random`, `numpy.random` and `torch` only.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fourstage.data.sample import Sample

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
    """Random resized crop, flip, a policy or colour jitter, normalisation, random erasing: equal to timm's, faster.

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
            f"auto_augment {auto_augment!r} is no policy that timm reads; the recipes use rand-m9-mstd0.5-inc1, "
            "and null switches policies off"
        ) from error
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
    """Resize and crop without chance.

    Args:
        image_size: height and width of the result, pixels.
        mean, std: per channel, in units of 1 (white).
        crop_pct: with "center", the short side becomes floor(image_size / crop_pct) and the middle is cut out.
        crop_mode: "squash" resizes straight to the square, whatever shape that gives things, and crops nothing:
            what the sources do at 384 pixels.

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
    resize = _timm().create_transform(
        image_size, crop_pct=1.0 if crop_mode == "squash" else crop_pct, crop_mode=crop_mode,
        interpolation=interpolation, normalize=False,
    )  # fmt: skip
    return _Eval(resize.transforms[:-1], _Normalise(mean, std))


class _Train:
    def __init__(self, crop: Any, change: list[Any], normalise: "_Normalise", erase: Any) -> None:
        from torchvision.transforms import Resize

        modes = crop.interpolation if isinstance(crop.interpolation, tuple) else (crop.interpolation,)
        self._resizes = [Resize(crop.size, mode) for mode in modes]
        self._crop, self._change, self._normalise, self._erase = crop, change, normalise, erase

    def __call__(self, sample: Sample) -> Sample:
        from PIL import Image

        pixels_HW3 = _pixels(sample)
        shape_only = torch.empty(1).expand(pixels_HW3.shape[:2])  # all that get_params asks for
        top, left, height, width = self._crop.get_params(shape_only, self._crop.scale, self._crop.ratio)
        image = Image.fromarray(
            pixels_HW3[top : top + height, left : left + width]
        )  # copies what the crop covers alone
        image = (random.choice(self._resizes) if len(self._resizes) > 1 else self._resizes[0])(image)
        for change in self._change:
            image = change(image)
        image_CHW = self._normalise(image)
        return replace(sample, image=image_CHW if self._erase is None else self._erase(image_CHW))


class _Eval:
    def __init__(self, steps: list[Any], normalise: "_Normalise") -> None:
        self._steps, self._normalise = steps, normalise

    def __call__(self, sample: Sample) -> Sample:
        from PIL import Image

        image = Image.fromarray(_pixels(sample))
        for step in self._steps:
            image = step(image)
        return replace(sample, image=self._normalise(image))


class _Normalise:
    """A PIL image as a normalised tensor: the arithmetic of ToTensor and Normalize to the last bit, without copies."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self._mean_C11, self._std_C11 = (torch.tensor(list(v), dtype=torch.float32)[:, None, None] for v in (mean, std))

    def __call__(self, image: Any) -> Tensor:
        image_HWC = torch.from_numpy(np.array(image))
        image_CHW = image_HWC.movedim(-1, 0).to(torch.float32, memory_format=torch.contiguous_format)
        return image_CHW.div_(255).sub_(self._mean_C11).div_(self._std_C11)


def _pixels(sample: Sample) -> np.ndarray:
    if sample.objects is not None or sample.label_map_HW is not None:
        raise ValueError(
            f"the sample {sample.id} carries boxes or a label map, which these transforms would leave behind: "
            "classification needs data with one label an image, such as digits or train/<class>/*.jpg"
        )
    assert isinstance(sample.image, np.ndarray), "data sets give arrays"
    return sample.image


def _erasing(probability: float, mode: str, count: int) -> Any:
    from timm.data.random_erasing import RandomErasing

    return RandomErasing(probability, mode=mode, max_count=count, device="cpu")


def _check(interpolation: str, mean: Sequence[float], std: Sequence[float]) -> None:
    if interpolation not in INTERPOLATIONS:
        raise ValueError(f"interpolation {interpolation!r} is unknown; it is one of {', '.join(INTERPOLATIONS)}")
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ValueError(f"mean {mean} and std {std} must be three numbers each, and no std zero or less")


def _timm() -> Any:
    try:
        import timm.data
    except ImportError as error:
        raise ValueError(
            'the transforms are those of timm, which is missing: pip install "fourstage[train]"'
        ) from error
    return timm.data
