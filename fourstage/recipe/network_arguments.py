"""What recipes of detection and of segmentation have in common."""

from typing import Annotated, Any

from pydantic import AfterValidator, ValidationInfo

from fourstage.methods import find_method
from fourstage.recipe.common import Recipe

Sides = tuple[int, int]


def _check_method(name: str, info: ValidationInfo) -> str:
    if not info.data.get("imports"):  # which may register it, and run later: a wrong name is found when it is built
        find_method(name, info.data["task"])
    return name


MethodName = Annotated[str, AfterValidator(_check_method)]


def check_dense(recipe: Recipe, method_args: dict[str, Any], backbone_args: dict[str, Any]) -> None:
    """Raise ValueError where values of a dense network's recipe contradict each other."""
    if recipe.parallel == "fsdp":  # its parts run more or less often in one process than in another
        raise ValueError(
            "parallel=fsdp is for classification; detectors and segmentors fit one device, so leave it out"
        )
    named = {"method_args": (method_args, ("num_classes", "backbone")), "backbone_args": (backbone_args, ("in_chans",))}
    for section, (arguments, theirs) in named.items():
        for name in theirs:
            if name in arguments:
                raise ValueError(f"{section} may not name {name}, which follows from the recipe; leave it out")
