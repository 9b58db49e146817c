"""What a checkpoint of MMDetection or MMSegmentation says about its network, as a recipe of ours.

A configuration becomes the values of a `Detection` or `Segmentation` recipe. What is written in it and cannot be had
here is refused in one sentence: a network that is almost the right one gives numbers that look right.
"""

from fourstage.run.openmmlab.detectors import apply_limits
from fourstage.run.openmmlab.network import Found, described, from_config

__all__ = ["Found", "apply_limits", "described", "from_config"]
