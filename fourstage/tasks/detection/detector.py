"""What every detector is: a backbone, a neck, and heads that give losses or detections.

B images, C classes, G true boxes, N detections, H x W pixels.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fourstage.data.sample import Batch
from fourstage.tasks.detection.masks import SmallMasks
from fourstage.tasks.detection.padding import padded
from fourstage.tasks.parts.levels import feature_maps
from fourstage.tasks.parts.memory_format import quick_on_cpu
from fourstage.tasks.parts.settings import check_counts

Mean = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class GroundTruth:
    """What a detector should find in one image: no crowds, no box without extent."""

    boxes_G4: Tensor  # float32, pixels
    labels_G: Tensor  # int64
    masks_GHW: Tensor | None  # bool


@dataclass(frozen=True)
class Detections:
    """What was found in one image, best score first."""

    boxes_N4: Tensor  # float32, pixels
    labels_N: Tensor  # int64
    scores_N: Tensor  # float32
    masks: SmallMasks | None = None

    def __len__(self) -> int:
        return len(self.boxes_N4)


class Detector(nn.Module, ABC):
    """A task's network. `backbone` and `neck` can be compiled in place: `detector.backbone.compile(dynamic=True)`.

    Args:
        backbone: (B, 3, H, W) to one map per entry of its `levels`.
        neck: these maps to one map per entry of its own `levels`.
        num_classes: C, from 1 on; labels run from 0.

    Attributes:
        method: the name by which it is built and by which the names in foreign checkpoints are known.
        mean_over_ranks: the mean of a scalar over the processes that train together. Losses are divided by it where a
            process alone would divide by a count of its own. The identity is how the published detectors were trained.
        find_unused_parameters: whether some parameters may get no gradient from any loss; see `freeze_unused`.
    """

    method: str

    def __init__(self, backbone: nn.Module, neck: nn.Module, num_classes: int) -> None:
        super().__init__()
        check_counts(num_classes=num_classes)
        self.backbone, self.neck, self.num_classes = backbone, neck, num_classes
        self.mean_over_ranks: Mean = unchanged
        self.find_unused_parameters = False

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Named losses, scalars, the same names for every batch."""
        return self.losses(batch)

    @abstractmethod
    def losses(self, batch: Batch, seed: int | None = None) -> dict[str, Tensor]:
        """What `forward` gives. `seed` keys the random choice of boxes; None: by torch's generator, see `Draws`."""

    @abstractmethod
    def detect(self, batch: Batch, *, rescale: bool = True) -> list[Detections]:
        """The objects in each image, in pixels of the original image, or of the network's with `rescale=False`."""

    @abstractmethod
    def forward_for_counting(self, images_BCHW: Tensor) -> None:
        """All layers once, for what published costs are counted with: nothing is chosen, so shapes are enough.

        Args:
            images_BCHW: on any device, sides in multiples of 32; one image, as the numbers of regions are those of one.
        """

    def maps(self, batch: Batch) -> list[Tensor]:
        """The neck's maps of images that are padded with zeros to whole cells of the coarsest common stride."""
        dtype = next(self.parameters()).dtype
        return self.neck(feature_maps(self.backbone, quick_on_cpu(padded(batch.images_BCHW.to(dtype)))))


def unchanged(value: Tensor) -> Tensor:
    return value


def ground_truths(batch: Batch, *, masks: bool) -> list[GroundTruth]:
    """What is to be found in each image.

    Args:
        masks: whether they are needed.

    Raises:
        ValueError: an image of the batch has objects without masks, or masks of another size.
    """
    if batch.objects is None:
        raise ValueError("these images come without objects; training a detector needs data with boxes")
    truths = []
    for id, objects in zip(batch.ids, batch.objects, strict=True):
        sides_N2 = objects.boxes_N4[:, 2:] - objects.boxes_N4[:, :2]
        keep = (~objects.crowd_N & (sides_N2 > 0).all(dim=1)).nonzero().squeeze(1)
        masks_GHW = objects.masks_NHW if masks else None
        if masks and len(keep):
            _check_masks(id, masks_GHW, batch.images_BCHW)
        if masks_GHW is not None and len(keep) < len(masks_GHW):  # else no copy: hundreds of masks are large
            masks_GHW = masks_GHW[keep]
        truths.append(GroundTruth(objects.boxes_N4[keep].float(), objects.labels_N[keep], masks_GHW))
    return truths


def _check_masks(id: str, masks_NHW: Tensor | None, images_BCHW: Tensor) -> None:
    if masks_NHW is None:
        raise ValueError(f"{id} has boxes and no masks; build the detector with masks=False, or give data with masks")
    if masks_NHW.shape[1:] != images_BCHW.shape[2:]:
        sizes = [" x ".join(map(str, x.shape[-2:])) for x in (masks_NHW, images_BCHW)]
        raise ValueError(f"the masks of {id} are {sizes[0]} pixels and the images {sizes[1]}; see fourstage data check")


def scale_of(batch: Batch, i: int) -> tuple[float, float]:
    """By how much image i was resized, across and down."""
    (height, width), (old_height, old_width) = batch.sizes[i], batch.original_sizes[i]
    return width / old_width, height / old_height


def to_original(boxes_N4: Tensor, batch: Batch, i: int) -> Tensor:
    """Boxes in image i as it came, from boxes in the image that the network saw."""
    across, down = scale_of(batch, i)
    return boxes_N4 * boxes_N4.new_tensor([1 / across, 1 / down] * 2)


def count_tensor(count: float, like: Tensor) -> Tensor:
    """A scalar on the device of `like`, float32."""
    return torch.tensor(float(count), device=like.device)
