"""What a classification recipe holds beside the values of every task."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from fourstage.recipe.common import Fraction, Recipe, Section


class Augmentation(Section):
    """What happens to a training image; names and meaning are timm's."""

    scale: tuple[float, float] = (0.08, 1.0)  # area of the random crop, as a share of the image
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    hflip: Fraction = 0.5
    color_jitter: float = Field(default=0.4, ge=0)  # without effect beside auto_augment
    auto_augment: str | None = "rand-m9-mstd0.5-inc1"
    reprob: Fraction = 0.25
    remode: Literal["pixel", "rand", "const"] = "pixel"
    recount: int = Field(default=1, gt=0)
    repeats: int = Field(default=1, gt=0)  # so often an image comes in a row, differently augmented; see data/loader.py
    mixup: float = Field(default=0.8, ge=0)
    cutmix: float = Field(default=1.0, ge=0)
    cutmix_minmax: tuple[float, float] | None = None  # share of the image's sides; in place of a draw by cutmix
    mixup_prob: Fraction = 1.0
    mixup_switch_prob: Fraction = 0.5
    mixup_mode: Literal["batch", "pair", "elem"] = "batch"
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1

    @model_validator(mode="after")
    def _consistent(self) -> "Augmentation":
        for name, (low, high) in (("scale", self.scale), ("ratio", self.ratio)):
            if not 0 < low <= high:
                raise ValueError(f"augmentation.{name} is [smallest, largest], above 0; got [{low:g}, {high:g}]")
        low, high = self.cutmix_minmax or (0.0, 1.0)
        if not 0 <= low <= high <= 1:
            raise ValueError(f"augmentation.cutmix_minmax is [smallest, largest] from 0 to 1; got [{low:g}, {high:g}]")
        return self

    @property
    def mixes(self) -> bool:
        return (self.mixup > 0 or self.cutmix > 0 or self.cutmix_minmax is not None) and self.mixup_prob > 0


class Evaluation(Section):
    """How a validation image reaches the network."""

    crop_pct: float = Field(default=0.875, gt=0, le=1)
    crop_mode: Literal["center", "squash"] = "center"


class Classification(Recipe):
    """Image classification."""

    METRICS: ClassVar[tuple[str, ...]] = ("top1", "top5")  # per cent

    task: str = "classification"
    model: str
    model_args: dict[str, Any] = Field(default={})
    num_classes: int | None = Field(default=None, gt=1)  # None: as many as the data has
    image_size: int = Field(default=224, ge=32)  # pixels, square
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    augmentation: Augmentation = Augmentation()
    evaluation: Evaluation = Evaluation()

    @property
    def subject(self) -> str:
        return self.model

    @model_validator(mode="after")
    def _consistent(self) -> "Classification":
        part = self.optimisation.batch_size // self.optimisation.accumulation
        if self.augmentation.mixes and part % 2:
            raise ValueError(
                f"mixing pairs images, and a part of the batch has {part}; choose an even batch_size, or turn mixing "
                f"off with augmentation.mixup=0 augmentation.cutmix=0"
            )
        for theirs, ours in (("num_classes", "num_classes"), ("img_size", "image_size"), ("in_chans", None)):
            if theirs in self.model_args:
                hint = f"write {ours}=..." if ours else "images have three"
                raise ValueError(f"model_args may not name {theirs}, which follows from the recipe; {hint}")
        return self
