"""Detectors that are called as torchvision's are: lists of images and of target dictionaries.

B images, N objects or detections, H x W pixels of an image.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fourstage.backbones.base import MEAN, STD
from fourstage.data.sample import Batch, Objects, Sample, collate
from fourstage.tasks.detection.detector import Detections, Detector

Target = Mapping[str, Any]


class TorchvisionForm(nn.Module):
    """A detector with the arguments and results of torchvision's detectors, for loops that were written for these.

    Images keep their size: unlike torchvision's detectors, this resizes nothing.

    Args:
        detector: from `create_detector` or `from_checkpoint`.
        mean, std: of the channels of images in [0, 1].
        first_label: of the classes in targets and results; 1: 0 is the background, as in torchvision's Mask R-CNN.

    Raises:
        ValueError: `detector` is not one, or `mean` or `std` are not three numbers.
    """

    mean_311: Tensor
    std_311: Tensor

    def __init__(
        self, detector: nn.Module, mean: Sequence[float] = MEAN, std: Sequence[float] = STD, first_label: int = 1
    ) -> None:
        super().__init__()
        if not isinstance(detector, Detector):
            raise ValueError(f"torchvision's form is for detectors of create_detector; got a {type(detector).__name__}")
        self.detector, self.first_label = detector, first_label
        for name, values in (("mean_311", mean), ("std_311", std)):
            if len(values) != 3:
                raise ValueError(f"mean and std are of three channels; got {list(values)}")
            self.register_buffer(name, torch.tensor(list(values)).view(3, 1, 1), persistent=False)

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Target] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Return named losses in training mode, and the detections in each image in evaluation mode.

        Args:
            images: (3, H, W) RGB in [0, 1] each, of any sizes.
            targets: for training: of each image `boxes` (N, 4) x1 y1 x2 y2 in pixels, `labels` (N,) int64, where the
                detector needs them `masks` (N, H, W), and `iscrowd` (N,) where there are crowds; other keys are left.
                Boxes without area train nothing.

        Returns:
            A scalar by name, or for each image `boxes` (N, 4), `labels` (N,), `scores` (N,), and of detectors with
            masks `masks` (N, 1, H, W) float32, 0 or 1.

        Raises:
            ValueError: there is no image, one is of integers, targets are missing, or a tensor has another shape.
        """
        if not self.training:
            return [self._as_dict(one) for one in self.detector.detect(self._batch(images, None))]
        if targets is None or len(targets) != len(images):
            count = "none" if targets is None else len(targets)
            raise ValueError(f"training needs a target for each of {len(images)} images; got {count}")
        return self.detector.losses(self._batch(images, targets))

    def _batch(self, images: Sequence[Tensor], targets: Sequence[Target] | None) -> Batch:
        if not len(images):
            raise ValueError("got no images; give a list of at least one")
        samples = []
        for i, image_3HW in enumerate(images):
            _check_image(image_3HW, i)
            size = (int(image_3HW.shape[1]), int(image_3HW.shape[2]))
            objects = None if targets is None else self._objects(targets[i], i, size)
            pixels_3HW = (image_3HW.as_subclass(Tensor).to(self.mean_311) - self.mean_311) / self.std_311
            samples.append(Sample(f"image {i}", pixels_3HW, size, objects=objects))
        return collate(samples)

    def _objects(self, target: Target, i: int, size: tuple[int, int]) -> Objects:
        if lacking := [key for key in ("boxes", "labels") if key not in target]:
            raise ValueError(f"the target of image {i} has no {lacking[0]}; it has {', '.join(map(str, target))}")
        form = getattr(getattr(target["boxes"], "format", None), "name", "XYXY")  # of torchvision's BoundingBoxes
        if form != "XYXY":
            raise ValueError(f"the boxes of image {i} are {form}; convert them with ConvertBoundingBoxFormat('XYXY')")
        device = self.mean_311.device
        boxes_N4 = self._of_shape(target["boxes"], (-1, 4), f"boxes of image {i}").to(device, torch.float32)
        count = len(boxes_N4)
        labels_N = self._labels(target["labels"], count, i).to(device)
        crowd_N = self._of_shape(target.get("iscrowd", torch.zeros(count)), (count,), f"iscrowd of image {i}")
        masks_NHW = target.get("masks")
        if masks_NHW is not None:
            masks_NHW = self._of_shape(masks_NHW, (count, *size), f"masks of image {i}").to(device).bool()
        return Objects(boxes_N4, labels_N, crowd_N.to(device).bool(), masks_NHW)

    def _labels(self, value: Any, count: int, i: int) -> Tensor:
        """Return labels from 0."""
        labels_N = self._of_shape(value, (count,), f"labels of image {i}").to(torch.int64)
        last = self.first_label + self.detector.num_classes - 1
        if count and (int(labels_N.min()) < self.first_label or int(labels_N.max()) > last):
            raise ValueError(
                f"labels of image {i} are {self.first_label} to {last} for {self.detector.num_classes} classes; got "
                f"{int(labels_N.min())} to {int(labels_N.max())}; see first_label"
            )
        return labels_N - self.first_label

    @staticmethod
    def _of_shape(value: Any, shape: tuple[int, ...], name: str) -> Tensor:
        try:
            tensor = torch.as_tensor(value).as_subclass(Tensor)
        except (TypeError, ValueError, RuntimeError) as error:  # None, text, rows of different lengths
            raise ValueError(f"{name} must be a tensor; got a {type(value).__name__} ({error})") from error
        if tensor.ndim != len(shape) or any(w not in (-1, n) for n, w in zip(tensor.shape, shape, strict=True)):
            wanted = " x ".join("N" if side == -1 else str(side) for side in shape)
            raise ValueError(
                f"{name} must be of shape {wanted}; got {' x '.join(map(str, tensor.shape)) or 'a number'}"
            )
        return tensor

    def _as_dict(self, found: Detections) -> dict[str, Tensor]:
        out = {"boxes": found.boxes_N4, "labels": found.labels_N + self.first_label, "scores": found.scores_N}
        return out if found.masks is None else out | {"masks": found.masks.full_size()[:, None].float()}


def _check_image(image_3HW: Any, i: int) -> None:
    """Raise ValueError for what is no (3, H, W) tensor of numbers in [0, 1]."""
    if not isinstance(image_3HW, Tensor):
        raise ValueError(f"image {i} is a {type(image_3HW).__name__}; give a tensor (3, H, W)")
    if image_3HW.ndim != 3 or image_3HW.shape[0] != 3:
        raise ValueError(f"image {i} is not (3, H, W); got {tuple(image_3HW.shape)}")
    if not image_3HW.is_floating_point():
        raise ValueError(f"image {i} is {image_3HW.dtype}, and its values must be in [0, 1]; give image / 255")
