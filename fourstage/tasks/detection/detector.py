"""What all detectors share: a backbone, a neck, and heads that return losses or detections.

B images, C classes, G ground-truth boxes, N detections, H x W pixels.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fourstage.data.sample import Batch
from fourstage.ops.measure import choose_products
from fourstage.ops.memory_format import prefer_channels_last
from fourstage.tasks.detection.boxes import have_area
from fourstage.tasks.detection.masks import SmallMasks
from fourstage.tasks.detection.padding import MULTIPLE, padded, padded_size, padding_masks
from fourstage.tasks.parts.levels import feature_maps
from fourstage.tasks.parts.settings import check_counts

Mean = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class GroundTruth:
    """The objects of one image that a detector learns: no crowds, no box without area."""

    boxes_G4: Tensor  # float32, pixels
    labels_G: Tensor  # int64
    masks_GHW: Tensor | None  # bool
    masked_G: Tensor | None = None  # bool, whether the object has a mask; None: all have, or none


@dataclass(frozen=True)
class Detections:
    """The detections in one image, best score first."""

    boxes_N4: Tensor  # float32, pixels
    labels_N: Tensor  # int64
    scores_N: Tensor  # float32
    masks: SmallMasks | None = None

    def __len__(self) -> int:
        return len(self.boxes_N4)


class Detector(nn.Module, ABC):
    """A network that detects objects. A subclass defines `losses` and `detect`.

    `backbone` and `neck` can be compiled in place: `detector.backbone.compile(dynamic=True)`.

    Args:
        backbone: (B, 3, H, W) to one map per entry of its `levels`.
        neck: these maps to one map per entry of its own `levels`.
        num_classes: C, from 1 on; labels run from 0.

    Attributes:
        method: the name by which it is built and by which the names in foreign checkpoints are known.
        counts_over_ranks: whether losses are divided by the mean count of all processes that train together, as query
            detectors and ATSS were published, instead of each process' own count.
        pad_to: pixels; images are padded to multiples of it.
        mean_over_ranks: the mean of a scalar over these processes where `counts_over_ranks`, else its argument.
        find_unused_parameters: whether some parameters may get no gradient from any loss; see `freeze_unused`.
    """

    method: str | None = None
    counts_over_ranks: bool = False
    pad_to: int = MULTIPLE

    def __init__(self, backbone: nn.Module, neck: nn.Module, num_classes: int) -> None:
        super().__init__()
        choose_products()  # the backbone may be another library's
        check_counts(num_classes=num_classes)
        self.backbone, self.neck, self.num_classes = backbone, neck, num_classes
        self.mean_over_ranks: Mean = unchanged
        self.find_unused_parameters = False

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        choose_products()  # in a process that unpickles a network and builds none

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return named losses, scalars, with the same names for every batch."""
        return self.losses(batch)

    @abstractmethod
    def losses(self, batch: Batch, seed: int | None = None) -> dict[str, Tensor]:
        """Return named losses. `seed` keys the random choice of boxes; None: torch's generator keys it, see `Draws`."""

    @abstractmethod
    def detect(self, batch: Batch, *, rescale: bool = True) -> list[Detections]:
        """Return the detections in each image, in pixels of the original image.

        Args:
            rescale: False: in pixels of the image that the network reads.
        """

    def forward_for_counting(self, images_BCHW: Tensor) -> None:
        """Run all layers once on as many regions as published costs are counted with; nothing is chosen.

        Args:
            images_BCHW: on any device, "meta" too; sides in multiples of 32; one image, as the numbers of regions are
                those of one.

        Raises:
            ValueError: the detector does not define it.
        """
        raise ValueError(
            f"the cost of a {type(self).__name__} cannot be counted; define its forward_for_counting(images_BCHW), "
            f"which runs all of its layers once"
        )

    def spread_scores(self, batch: Batch) -> None:
        """Change the class layers such that an untrained network returns as many detections as a trained one may.

        Benchmarks call it, because suppression and masks cost nothing where nothing scores above the threshold. A
        detector that always returns the same number of detections need not define it.
        """

    def maps(self, batch: Batch) -> list[Tensor]:
        """Return the neck's maps of images that are padded with zeros to a multiple of `pad_to` pixels."""
        images_BCHW = padded(batch.images_BCHW.to(next(self.parameters()).dtype), self.pad_to)
        return self.neck(feature_maps(self.backbone, prefer_channels_last(images_BCHW)))

    def padding_masks(self, batch: Batch, maps: Sequence[Tensor]) -> list[Tensor] | None:
        """Return for each of the `maps` a (B, h, w) bool mask, True where a cell is padding.

        None where no image is smaller than the batch: then nothing needs to be masked.
        """
        padded_to = padded_size((batch.images_BCHW.shape[-2], batch.images_BCHW.shape[-1]), self.pad_to)
        return padding_masks(batch.sizes, padded_to, maps)


def unchanged(value: Tensor) -> Tensor:
    """Return the value as it is: the mean over one process, or boxes that stay where they are."""
    return value


def ground_truths(batch: Batch, *, masks: bool) -> list[GroundTruth]:
    """Return the objects of each image that a detector learns.

    Args:
        masks: whether masks are needed.

    Raises:
        ValueError: an image of the batch has objects without masks, or masks of another size.
    """
    if batch.objects is None:
        raise ValueError("these images come without objects; training a detector needs data with boxes")
    truths = []
    for id, objects in zip(batch.ids, batch.objects, strict=True):
        keep = (~objects.crowd_N & have_area(objects.boxes_N4)).nonzero().squeeze(1)
        masks_GHW = objects.masks_NHW if masks else None
        if masks and len(keep):
            _check_masks(id, masks_GHW, batch.images_BCHW)
        if masks_GHW is not None and len(keep) < len(masks_GHW):  # else no copy: hundreds of masks are large
            masks_GHW = masks_GHW[keep]
        masked_G = None if masks_GHW is None or objects.masked_N is None else objects.masked_N[keep]
        truths.append(GroundTruth(objects.boxes_N4[keep].float(), objects.labels_N[keep], masks_GHW, masked_G))
    return truths


def _check_masks(id: str, masks_NHW: Tensor | None, images_BCHW: Tensor) -> None:
    if masks_NHW is None:
        raise ValueError(f"{id} has boxes and no masks; build the detector with masks=False, or give data with masks")
    if masks_NHW.shape[1:] != images_BCHW.shape[2:]:
        sizes = [" x ".join(map(str, x.shape[-2:])) for x in (masks_NHW, images_BCHW)]
        raise ValueError(f"the masks of {id} are {sizes[0]} pixels and the images {sizes[1]}; see fourstage data check")


def scale_of(batch: Batch, i: int) -> tuple[float, float]:
    """Return the factors by which image i was resized, across and down."""
    (height, width), (old_height, old_width) = batch.sizes[i], batch.original_sizes[i]
    return width / old_width, height / old_height


def to_original(boxes_N4: Tensor, batch: Batch, i: int) -> Tensor:
    """Move boxes from the resized image i to the original image i."""
    across, down = scale_of(batch, i)
    return boxes_N4 * boxes_N4.new_tensor([1 / across, 1 / down] * 2)


def count_tensor(count: float, like: Tensor) -> Tensor:
    """A scalar on the device of `like`, float32."""
    return torch.tensor(float(count), device=like.device)
