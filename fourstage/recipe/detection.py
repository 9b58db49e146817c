"""The values that a detection recipe has beside those of every task."""

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from fourstage.recipe.common import Fraction, Images, Recipe, Section, Side
from fourstage.recipe.network_arguments import MethodName, Sides, check_network


class DetectionAugmentation(Section):
    """Augmentation of a training image and its objects; see data/transforms/detection.py."""

    policy: Literal["resize", "multi_scale", "large_scale_jitter"] = "resize"
    """Resize to scale; resize to one of short_sides, with crop_prob after a crop; or resize by jitter and crop."""
    scale: Sides = (1333, 800)
    """Largest longer and shorter side, in pixels."""
    short_sides: tuple[Side, ...] = Field(default=tuple(range(480, 801, 32)), min_length=1)
    """Shorter sides that policy=multi_scale draws from, in pixels."""
    first_sides: tuple[Side, ...] = Field(default=(400, 500, 600), min_length=1)
    """Shorter sides before the crop of policy=multi_scale, in pixels."""
    crop_prob: Fraction = 0.5
    """Probability of the crop of policy=multi_scale."""
    crop: Sides = (384, 600)
    """Smallest and largest side of the crop of policy=multi_scale, in pixels."""
    jitter: tuple[float, float] = (0.1, 2.0)
    """Smallest and largest multiple of scale for policy=large_scale_jitter."""
    hflip: Fraction = 0.5
    """Probability of a horizontal flip."""
    copy_paste: bool = False
    """Whether objects of another image are pasted on top; needs masks."""

    @model_validator(mode="after")
    def _consistent(self) -> "DetectionAugmentation":
        low, high = self.jitter
        if not 0 < low <= high <= 100:
            raise ValueError(
                f"augmentation.jitter is [smallest, largest], above 0 and up to 100; got [{low:g}, {high:g}]"
            )
        if self.crop[0] > self.crop[1]:
            raise ValueError(f"augmentation.crop is [smallest, largest], in pixels; got {list(self.crop)}")
        return self


class DetectionEvaluation(Section):
    """Preparation and scoring of a validation image."""

    scale: Sides = (1333, 800)
    """Largest longer and shorter side, in pixels."""
    limits: tuple[Images, ...] = Field(default=(1, 10, 100), min_length=1)
    """Numbers of detections per class and image that COCO's metrics count; MMDetection uses [100, 300, 1000]."""


class Detection(Recipe):
    """Object detection, with masks where data and method have them."""

    METRICS: ClassVar[tuple[str, ...]] = tuple(
        f"{form}_{name}" for form in ("box", "mask") for name in ("map", "map50", "map75", "map_s", "map_m", "map_l")
    )  # per cent

    task: str = "detection"
    """Task, which decides the other keys."""
    method: MethodName
    """Detection method; a file in imports may register further ones."""
    method_args: dict[str, Any] = Field(default={})
    """Arguments of the method; see docs/method-args.md."""
    backbone: str
    """Name of the backbone; see `fourstage models`."""
    backbone_args: dict[str, Any] = Field(default={})
    """Arguments of the backbone, such as drop_path_rate."""
    num_classes: int | None = Field(default=None, gt=0, le=1_000_000)
    """Number of classes; null: that of the data."""
    filter_empty: bool = True
    """Whether training images without objects are left out; those with a side below 32 pixels always are."""
    group_by_aspect: bool = True
    """Whether the images of a batch are all wide or all tall, for less padding."""
    augmentation: DetectionAugmentation = DetectionAugmentation()
    evaluation: DetectionEvaluation = DetectionEvaluation()

    @property
    def network_name(self) -> str:
        return f"{self.method} over {self.backbone}"

    @model_validator(mode="after")
    def _consistent(self) -> "Detection":
        check_network(self, self.method_args, self.backbone_args)
        return self
