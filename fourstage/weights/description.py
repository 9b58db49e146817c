"""What a checkpoint says about its own network, as plain values: nothing is built here, and nothing is imported."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class NetworkDescription:
    """A network, and how images reach it.

    Attributes:
        task: "classification", "detection", "segmentation", or "backbone" for a dense backbone alone.
        method: of a detector or segmentor, such as "mask_rcnn"; None elsewhere.
        backbone: the name of a network; of a classifier the network itself.
        classes: names in the order of the labels; None where the file has none.
        mean, std: of pixels from 0 to 1; None where the file does not say.
        evaluation: sizes of test images in pixels, as a recipe's section `evaluation` has them.
        over_valid: of a segmentor: its loss is the mean over pixels that have a label.
        palette: red, green, blue of each class; None where the file does not say.
        imports: Python files that the recipe of a run names. They are never run for a checkpoint.
    """

    task: str
    backbone: str
    num_classes: int
    backbone_args: Mapping[str, Any] = field(default_factory=dict)
    method: str | None = None
    method_args: Mapping[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    over_valid: bool = False
    palette: tuple[Colour, ...] | None = None
    imports: tuple[str, ...] = ()
