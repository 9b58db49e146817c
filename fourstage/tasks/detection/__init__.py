"""Object detection and instance segmentation with the arithmetic of MMDetection 3.3: one file for each detector."""

from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fourstage.tasks.detection.detector import Detector

# a detector's name and the file that it is in -> its class
METHODS = {"cascade_mask_rcnn": "CascadeMaskRCNN", "mask_rcnn": "MaskRCNN", "retinanet": "RetinaNet"}


def method(name: str) -> "type[Detector]":
    """The class of a detector; its arguments are the backbone, the number of classes and what it adds.

    Raises:
        ValueError: there is no such detector.
    """
    if name not in METHODS:
        close = get_close_matches(name, METHODS, n=1, cutoff=0.4)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(METHODS)}"
        boxes = "; for boxes alone take mask_rcnn or cascade_mask_rcnn with masks=False" if "rcnn" in name else ""
        raise ValueError(f"no detector is called {name!r}; {hint}{boxes}")
    return getattr(import_module(f"fourstage.tasks.detection.{name}"), METHODS[name])
