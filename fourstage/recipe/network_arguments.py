"""Types and checks that recipes of detection and of segmentation share."""

from typing import Annotated, Any

from pydantic import AfterValidator, ValidationInfo

from fourstage.methods import find_method
from fourstage.recipe.common import PLACES, Recipe, Side

Sides = tuple[Side, Side]


def _check_method(name: str, info: ValidationInfo) -> str:
    if not info.data.get("imports"):  # a file of imports may register the method, but is only executed later
        find_method(name, info.data["task"])
    return name


MethodName = Annotated[str, AfterValidator(_check_method)]


def check_network(recipe: Recipe, method_args: dict[str, Any], backbone_args: dict[str, Any]) -> None:
    """Raise ValueError where values of a detector's or segmentor's recipe contradict each other."""
    if recipe.parallel == "fsdp":  # some modules run a different number of times in each process
        raise ValueError(
            "parallel=fsdp works only for classification; detectors and segmentors fit one device, so leave it out"
        )
    named = {
        "method_args": (method_args, ("num_classes", "backbone")),
        "backbone_args": (backbone_args, ("in_chans", *dict(PLACES))),
    }
    for section, (arguments, theirs) in named.items():
        for name in theirs:
            if name in arguments:
                raise ValueError(f"{section} must not contain {name}, which follows from the recipe; leave it out")
