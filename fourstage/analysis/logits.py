"""Logits of classifiers, checked. B images, K classes, C channels, H x W pixels."""

from torch import Tensor, nn

from fourstage.analysis.taps import as_float32, taken_by
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
    logits_BK = network(taken_by(network, images_BCHW))
    if not isinstance(logits_BK, Tensor) or logits_BK.ndim != 2:
        raise UnsuitableNetwork(network, "gives no logits (B, classes)", f"{analysis} is for classifiers")
    return as_float32(logits_BK)
