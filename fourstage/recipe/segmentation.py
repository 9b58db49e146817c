"""The values that a semantic segmentation recipe has beside those of every task."""

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from fourstage.recipe.common import Fraction, Recipe, Section
from fourstage.recipe.network_arguments import MethodName, Sides, check_network


class SegmentationAugmentation(Section):
    """Augmentation of a training image and its label map, in this order; see data/transforms/segmentation.py."""

    scale: Sides | None = (2048, 512)
    """Largest longer and shorter side at ratio 1, in pixels; null: the image's own sides."""
    ratio: tuple[float, float] = (0.5, 2.0)
    """Smallest and largest factor of the random resize."""
    crop: Sides = (512, 512)
    """Height and width of the crop that the network receives, in pixels."""
    most_of_one: float = Field(default=0.75, gt=0, le=1)
    """Largest share of a crop that one class may have."""
    hflip: Fraction = 0.5
    """Probability of a horizontal flip."""
    photometric: bool = True
    """Whether brightness, contrast, saturation and hue change at random."""

    @model_validator(mode="after")
    def _consistent(self) -> "SegmentationAugmentation":
        low, high = self.ratio
        if not 0 < low <= high <= 100:
            raise ValueError(
                f"augmentation.ratio is [smallest, largest], above 0 and up to 100; got [{low:g}, {high:g}]"
            )
        for name, sides in (("crop", self.crop), ("scale", self.scale or self.crop)):
            if min(sides) < 32:
                raise ValueError(f"augmentation.{name} must have sides of 32 pixels or more; got {list(sides)}")
        return self


class SegmentationEvaluation(Section):
    """Preparation of a validation image; see tasks/segmentation/protocol.py."""

    scale: Sides | None = (2048, 512)
    """Largest longer and shorter side, in pixels; null: the image's own sides."""
    window: Sides | None = None
    """Height and width of sliding windows, in pixels; null: the complete image at once."""
    stride: Sides | None = None
    """Distance between sliding windows, in pixels."""
    ratios: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    """Scales of the multi-scale protocol, which also flips."""
    ratios_of: Literal["scale", "image"] = "scale"
    """Size that the ratios multiply: scale as in MMSegmentation 0.x, or image as in 1.x."""
    divisor: int = Field(default=1, ge=1, le=1024)
    """Number that both sides are padded to a multiple of, in pixels."""
    boundary: bool = False
    """Whether the boundary F1 is computed beside the overlaps."""

    @model_validator(mode="after")
    def _consistent(self) -> "SegmentationEvaluation":
        if (self.window is None) != (self.stride is None):
            raise ValueError("evaluation.window and evaluation.stride belong together; give both or neither")
        if not self.ratios or not 0 < min(self.ratios) <= max(self.ratios) <= 100:
            raise ValueError(
                f"evaluation.ratios needs at least one number, all above 0 and up to 100; got {list(self.ratios)}"
            )
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
    """Task, which decides the other keys."""
    method: MethodName
    """Segmentation method; a file in imports may register further ones."""
    method_args: dict[str, Any] = Field(default={})
    """Arguments of the method; see docs/method-args.md."""
    backbone: str
    """Name of the backbone; see `fourstage models`."""
    backbone_args: dict[str, Any] = Field(default={})
    """Arguments of the backbone, such as drop_path_rate."""
    num_classes: int | None = Field(default=None, gt=1, le=1_000_000)
    """Number of classes; null: that of the data."""
    over_valid: bool = False
    """Whether the loss is the mean over pixels with a label; otherwise over all pixels."""
    augmentation: SegmentationAugmentation = SegmentationAugmentation()
    evaluation: SegmentationEvaluation = SegmentationEvaluation()

    @property
    def network_name(self) -> str:
        return f"{self.method} over {self.backbone}"

    @model_validator(mode="after")
    def _consistent(self) -> "Segmentation":
        check_network(self, self.method_args, self.backbone_args)
        return self
