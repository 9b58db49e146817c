"""Logits of classifiers, checked. B images, K classes, C channels, H x W pixels."""

import torch
from torch import Tensor, nn

from fourstage.analysis.unsuitable import UnsuitableNetwork
from fourstage.tasks.detection.detector import Detector
from fourstage.tasks.segmentation.segmentor import Segmentor


def logits_of(network: nn.Module, images_BCHW: Tensor, analysis: str) -> Tensor:
    """Return (B, K) logits in float32 or better, computed on the device and in the type of the network's parameters.

    Raises:
        ValueError: the network is no classifier; the sentence names the analysis.
    """
    if isinstance(network, Detector):
        raise UnsuitableNetwork(network, "is a detector", f"{analysis} is for classifiers")
    if isinstance(network, Segmentor):
        raise UnsuitableNetwork(network, "is a segmentor", f"{analysis} is for classifiers")
    like = next(iter(network.parameters()), torch.empty(0))
    logits_BK = network(images_BCHW.to(like.device, like.dtype))
    if not isinstance(logits_BK, Tensor) or logits_BK.ndim != 2:
        raise UnsuitableNetwork(network, "gives no logits (B, classes)", f"{analysis} is for classifiers")
    return logits_BK.float() if logits_BK.dtype in (torch.float16, torch.bfloat16) else logits_BK
