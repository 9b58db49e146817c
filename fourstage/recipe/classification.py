"""The values that a classification recipe has beside those of every task."""

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from fourstage.recipe.common import PLACES, Fraction, Recipe, Section

LEAST_ALPHA = 0.001
LONG_NUMBER = re.compile(r"-([nwd][\d_]{4,})")  # timm makes a list of so many operations


class Augmentation(Section):
    """Augmentation of a training image; names and meaning are timm's."""

    scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest area of the random crop, as a share of the image."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest aspect ratio of the random crop."""
    hflip: Fraction = 0.5
    """Probability of a horizontal flip."""
    color_jitter: float = Field(default=0.4, ge=0, le=100)
    """Strength of the colour jitter; without effect where auto_augment is set."""
    auto_augment: str | None = "rand-m9-mstd0.5-inc1"
    """Augmentation policy in timm's notation; null: none."""
    reprob: Fraction = 0.25
    """Probability of random erasing."""
    remode: Literal["pixel", "rand", "const"] = "pixel"
    """Fill of an erased region: noise per pixel, one random colour, or zero."""
    recount: int = Field(default=1, gt=0, le=1000)
    """Largest number of erased regions."""
    repeats: int = Field(default=1, gt=0, le=1000)
    """Times in a row that each image comes, differently augmented; see data/loader.py."""
    mixup: float = Field(default=0.8, ge=0, le=1e6)
    """Alpha of mixup; 0: off."""
    cutmix: float = Field(default=1.0, ge=0, le=1e6)
    """Alpha of CutMix; 0: off."""
    cutmix_minmax: tuple[float, float] | None = None
    """Smallest and largest share of the sides that CutMix replaces, instead of a draw by cutmix; null: that draw."""
    mixup_prob: Fraction = 1.0
    """Probability that a batch, pair or image is mixed."""
    mixup_switch_prob: Fraction = 0.5
    """Probability of CutMix where both are on."""
    mixup_mode: Literal["batch", "pair", "elem"] = "batch"
    """Whether one draw serves a batch, a pair or an image."""
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Label smoothing."""

    @model_validator(mode="after")
    def _consistent(self) -> "Augmentation":
        for name, (low, high) in (("scale", self.scale), ("ratio", self.ratio)):
            if not 0 < low <= high <= 100:
                raise ValueError(
                    f"augmentation.{name} is [smallest, largest], above 0 and up to 100; got [{low:g}, {high:g}]"
                )
        for name, alpha in (("mixup", self.mixup), ("cutmix", self.cutmix)):
            if 0 < alpha < LEAST_ALPHA:  # numpy's beta distribution then returns NaN
                raise ValueError(f"augmentation.{name} is 0, or at least {LEAST_ALPHA:g}; got {alpha:g}")
        if (long := LONG_NUMBER.search(self.auto_augment or "")) is not None:
            raise ValueError(
                f"augmentation.auto_augment has {long[1][:20]!r}; the numbers of operations, n, w and d, have at most "
                "three digits, as in rand-m9-n2-mstd0.5"
            )
        low, high = self.cutmix_minmax or (0.0, 1.0)
        if not 0 <= low <= high <= 1:
            raise ValueError(f"augmentation.cutmix_minmax is [smallest, largest] from 0 to 1; got [{low:g}, {high:g}]")
        return self

    @property
    def mixes(self) -> bool:
        return (self.mixup > 0 or self.cutmix > 0 or self.cutmix_minmax is not None) and self.mixup_prob > 0


class Evaluation(Section):
    """Preparation of a validation image."""

    crop_pct: float = Field(default=0.875, ge=0.01, le=1)
    """Share of the resized image's side that the crop keeps."""
    crop_mode: Literal["center", "squash"] = "center"
    """Whether the image is cropped at its centre or resized to a square."""


class Classification(Recipe):
    """Image classification."""

    METRICS: ClassVar[tuple[str, ...]] = ("top1", "top5")  # per cent

    task: str = "classification"
    """Task, which decides the other keys."""
    model: str
    """Name of the model; see `fourstage models`."""
    model_args: dict[str, Any] = Field(default={})
    """Arguments of the model, such as drop_path_rate."""
    num_classes: int | None = Field(default=None, gt=1, le=1_000_000)
    """Number of classes; null: that of the data."""
    image_size: int = Field(default=224, ge=32, le=2**14)
    """Side of the square image, in pixels."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """Interpolation of the resize."""
    augmentation: Augmentation = Augmentation()
    evaluation: Evaluation = Evaluation()

    @property
    def network_name(self) -> str:
        return self.model

    @model_validator(mode="after")
    def _consistent(self) -> "Classification":
        micro_batch = self.optimisation.batch_size // self.optimisation.accumulation
        if self.augmentation.mixes and micro_batch % 2:
            raise ValueError(
                f"mixing pairs images, but a micro-batch has {micro_batch}, an odd number; choose an even batch_size, "
                f"or turn mixing off with augmentation.mixup=0 augmentation.cutmix=0"
            )
        for theirs, ours in (("num_classes", "num_classes"), ("img_size", "image_size"), ("in_chans", None), *PLACES):
            if theirs in self.model_args:
                hint = f"write {ours}=..." if ours else "images have three"
                raise ValueError(f"model_args must not contain {theirs}, which follows from the recipe; {hint}")
        return self
