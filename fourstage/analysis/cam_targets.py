"""What a class activation map explains: a class, a class within a region, or a detected object.

B images, K classes, H x W pixels, N detections.
"""

import inspect
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fourstage.analysis.cam import Target
from fourstage.data.sample import Batch
from fourstage.tasks.detection.boxes import box_iou
from fourstage.tasks.detection.detector import Detections, Detector

Box = tuple[float, float, float, float]
OVERLAP = 0.5  # intersection over union from which a detection is that of a given box


class NotDetected(ValueError):
    """A detector does not find the object that is to be explained."""


def class_target(label: int | None = None, *, softmax: bool = False) -> Target:
    """Return the logit of a class, or its probability; None: the best class of each image."""

    def target(logits_BK: Tensor) -> Tensor:
        if not isinstance(logits_BK, Tensor) or logits_BK.ndim != 2:
            raise ValueError("the network returns no logits (B, classes); give a classifier, a segmentor or a detector")
        _check_label(label, logits_BK.shape[1])
        scores_BK = logits_BK.softmax(dim=1) if softmax else logits_BK
        labels_B = logits_BK.argmax(dim=1) if label is None else logits_BK.new_full((len(logits_BK),), label).long()
        return scores_BK.gather(1, labels_B[:, None])[:, 0]

    return target


def region_target(label: int, mask_HW: Tensor | None = None) -> Target:
    """Return the sum of a class's logits over a region; None: over the pixels that are given this class."""

    def target(logits_BKHW: Tensor) -> Tensor:
        if not isinstance(logits_BKHW, Tensor) or logits_BKHW.ndim != 4:
            raise ValueError("the network returns no logits (B, classes, H, W); a region needs a segmentor")
        _check_label(label, logits_BKHW.shape[1])
        inside_BHW = logits_BKHW.argmax(dim=1) == label if mask_HW is None else mask_HW.expand_as(logits_BKHW[:, 0])
        if not bool(inside_BHW.any()):
            raise ValueError(f"no pixel has class {label}; choose another class, or give a region")
        return (logits_BKHW[:, label] * inside_BHW).sum(dim=(1, 2))

    return target


def detect_with_gradient(detector: Detector, image_BCHW: Tensor) -> list[Detections]:
    """Return the detections of images whose sides are multiples of the detector's padding, with gradients of scores.

    `detect` of every detector is wrapped in `torch.no_grad`; here its body runs.
    """
    size = (image_BCHW.shape[-2], image_BCHW.shape[-1])
    sizes = (size,) * len(image_BCHW)
    batch = Batch(tuple(str(i) for i in range(len(image_BCHW))), image_BCHW, sizes, sizes)
    return inspect.unwrap(type(detector).detect)(detector, batch, rescale=False)


def run_of(network: nn.Module) -> Callable[[Tensor], object]:
    """Return what runs a network on images such that its scores have gradients."""
    if isinstance(network, Detector):
        return lambda image_BCHW: detect_with_gradient(network, image_BCHW)
    return network


def box_target(box: Box | None = None, label: int | None = None) -> Target:
    """Return the score of the detection that overlaps a box most; None: of the best detection of an image.

    Args:
        box: x1, y1, x2, y2 in pixels of the network's image.
        label: of the detection; None: any.
    """

    def target(detections: Sequence[Detections]) -> Tensor:
        return torch.stack([_score(one, box, label) for one in detections])

    return target


def chosen_detection(detections: Detections, box: Box | None, label: int | None) -> int:
    """Return the position of the detection of a box and a label.

    Raises:
        NotDetected: no detection has this label, or overlaps the box by half.
    """
    fits_N = torch.ones(len(detections), dtype=torch.bool, device=detections.scores_N.device)
    if label is not None:
        fits_N &= detections.labels_N == label
    if not bool(fits_N.any()):
        what = "anything" if label is None else f"an object of class {label}"
        raise NotDetected(f"the detector does not detect {what} in this image; choose another class or image")
    if box is None:
        return int(torch.where(fits_N, detections.scores_N.detach(), -1.0).argmax())
    given_14 = torch.tensor([box], dtype=detections.boxes_N4.dtype, device=detections.boxes_N4.device)
    overlap_N = torch.where(fits_N, box_iou(given_14, detections.boxes_N4.detach())[0], -1.0)
    best = int(overlap_N.argmax())
    if overlap_N[best] < OVERLAP:
        nearest = ", ".join(f"{value:.0f}" for value in detections.boxes_N4[best].tolist())
        given = ", ".join(f"{value:g}" for value in box)
        raise NotDetected(f"no detection overlaps the box {given} by half; the closest one is {nearest}")
    return best


def _score(detections: Detections, box: Box | None, label: int | None) -> Tensor:
    return detections.scores_N[chosen_detection(detections, box, label)]


def _check_label(label: int | None, classes: int) -> None:
    if label is not None and not 0 <= label < classes:
        raise ValueError(f"there is no class {label}; the network has classes 0 to {classes - 1}")
