"""What a detection recipe holds beside the values of every task."""

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from fourstage.recipe.common import Fraction, Recipe, Section
from fourstage.recipe.network_arguments import MethodName, Sides, check_dense


class DetectionAugmentation(Section):
    """What happens to a training image and the objects in it; see data/transforms/detection.py."""

    policy: Literal["resize", "multi_scale", "large_scale_jitter"] = "resize"
    scale: Sides = (1333, 800)  # limits on the longer and the shorter side, pixels
    short_sides: tuple[int, ...] = tuple(range(480, 801, 32))  # of multi_scale, pixels
    first_sides: tuple[int, ...] = (400, 500, 600)  # before its crop
    crop: Sides = (384, 600)  # smallest and largest side of that crop
    jitter: tuple[float, float] = (0.1, 2.0)  # smallest and largest multiple of scale, of large_scale_jitter
    hflip: Fraction = 0.5
    copy_paste: bool = False  # objects of another image on top; needs masks


class DetectionEvaluation(Section):
    """How a validation image is seen and scored."""

    scale: Sides = (1333, 800)
    limits: tuple[int, ...] = (1, 10, 100)  # detections that count; MMDetection's own are [100, 300, 1000]


class Detection(Recipe):
    """Object detection, with masks where data and method have them."""

    METRICS: ClassVar[tuple[str, ...]] = tuple(
        f"{kind}_{name}" for kind in ("box", "mask") for name in ("map", "map50", "map75", "map_s", "map_m", "map_l")
    )  # per cent

    task: str = "detection"
    method: MethodName  # a detector of `fourstage.methods`, or one that `imports` register
    method_args: dict[str, Any] = Field(default={})
    backbone: str
    backbone_args: dict[str, Any] = Field(default={})
    num_classes: int | None = Field(default=None, gt=0)  # None: as many as the data has
    filter_empty: bool = True  # training images without an object, or with a side below 32 pixels, are left out
    group_by_aspect: bool = True  # a batch is of images that are all wide or all tall
    augmentation: DetectionAugmentation = DetectionAugmentation()
    evaluation: DetectionEvaluation = DetectionEvaluation()

    @property
    def subject(self) -> str:
        return f"{self.method} over {self.backbone}"

    @model_validator(mode="after")
    def _consistent(self) -> "Detection":
        check_dense(self, self.method_args, self.backbone_args)
        return self
