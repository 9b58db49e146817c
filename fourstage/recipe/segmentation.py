"""What a semantic segmentation recipe holds beside the values of every task."""

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from fourstage.recipe.common import Fraction, Recipe, Section
from fourstage.recipe.network_arguments import MethodName, Sides, check_dense


class SegmentationAugmentation(Section):
    """What happens to a training image and its label map, in this order; see data/transforms/segmentation.py."""

    scale: Sides | None = (2048, 512)  # limits on the longer and the shorter side at ratio 1, pixels; None: its own
    ratio: tuple[float, float] = (0.5, 2.0)  # of the random resize
    crop: Sides = (512, 512)  # (height, width) of what the network sees, pixels
    most_of_one: float = Field(default=0.75, gt=0, le=1)  # share of a crop that one class may have
    hflip: Fraction = 0.5
    photometric: bool = True  # brightness, contrast, saturation and hue by chance

    @model_validator(mode="after")
    def _consistent(self) -> "SegmentationAugmentation":
        low, high = self.ratio
        if not 0 < low <= high:
            raise ValueError(f"augmentation.ratio is [smallest, largest], above 0; got [{low:g}, {high:g}]")
        for name, sides in (("crop", self.crop), ("scale", self.scale or self.crop)):
            if min(sides) < 32:
                raise ValueError(f"augmentation.{name} has sides of 32 pixels or more; got {list(sides)}")
        return self


class SegmentationEvaluation(Section):
    """How a validation image is seen; see tasks/segmentation/protocol.py."""

    scale: Sides | None = (2048, 512)  # as in augmentation
    window: Sides | None = None  # (height, width) of sliding windows, pixels; None: whole images
    stride: Sides | None = None  # from one window to the next
    ratios: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)  # of the multi-scale protocol, which also mirrors
    ratios_of: Literal["scale", "image"] = "scale"  # as in MMSegmentation 0.x, or 1.x
    divisor: int = Field(default=1, ge=1, le=1024)  # views are filled up to multiples of so many pixels
    boundary: bool = False  # boundary F1 beside the overlaps

    @model_validator(mode="after")
    def _consistent(self) -> "SegmentationEvaluation":
        if (self.window is None) != (self.stride is None):
            raise ValueError("evaluation.window and evaluation.stride belong together; give both or neither")
        if not self.ratios or min(self.ratios) <= 0:
            raise ValueError(f"evaluation.ratios are above 0, at least one; got {list(self.ratios)}")
        return self


class Segmentation(Recipe):
    """Semantic segmentation."""

    METRICS: ClassVar[tuple[str, ...]] = (
        "miou_ss",
        "macc_ss",
        "aacc_ss",
        "miou_ms_flip",
        "macc_ms_flip",
        "aacc_ms_flip",
        "boundary_f1_ss",
    )  # per cent

    task: str = "segmentation"
    method: MethodName  # a segmentor of `fourstage.methods`, or one that `imports` register
    method_args: dict[str, Any] = Field(default={})
    backbone: str
    backbone_args: dict[str, Any] = Field(default={})
    num_classes: int | None = Field(default=None, gt=1)  # None: as many as the data has
    over_valid: bool = False  # the loss is the mean over pixels with a label; False: over all pixels
    augmentation: SegmentationAugmentation = SegmentationAugmentation()
    evaluation: SegmentationEvaluation = SegmentationEvaluation()

    @property
    def subject(self) -> str:
        return f"{self.method} over {self.backbone}"

    @model_validator(mode="after")
    def _consistent(self) -> "Segmentation":
        check_dense(self, self.method_args, self.backbone_args)
        return self
