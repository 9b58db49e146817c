"""Timed workloads of detectors and segmentors: from an image to detections, a label map or a loss.

B images, G ground-truth boxes, H x W pixels.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from fourstage.data.sample import Batch, Objects
from fourstage.tasks.detection.detector import Detector
from fourstage.tasks.segmentation.segmentor import Segmentor

OBJECTS = 8  # in a training image; COCO's have seven on average


class TaskWorkload(nn.Module):
    """A detector or segmentor behind the interface of a classifier.

    In evaluation it returns boxes, with their masks pasted, or logits for each pixel. In training it returns a loss,
    from eight artificial objects an image or from artificial label maps. An untrained detector detects nothing, which
    would leave out much of its work, so its class layers are set at the first image such that it returns as many
    detections as it keeps of an image.

    Args:
        network: from `create_detector` or `create_segmentor`.
        size: (H, W) in pixels of its images.
    """

    batches: ClassVar[Mapping[str, int]] = {"infer": 1, "train": 2}  # images of a step, unless others are asked for

    def __init__(self, network: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        assert isinstance(network, Detector | Segmentor)
        self.network = network
        self.default_cfg = {"input_size": (3, *size)}
        self.detects = False

    def forward(self, images_BCHW: Tensor) -> Tensor | list[Tensor]:
        if isinstance(self.network, Segmentor):
            return self._segmentor(self.network, images_BCHW)
        if self.training:
            losses = self.network.losses(scene(images_BCHW))
            return torch.stack([*losses.values()]).sum()
        if not self.detects:
            self.network.spread_scores(noise(images_BCHW))
            self.detects = True
        detections = self.network.detect(noise(images_BCHW))
        for one in detections:
            if one.masks is not None:
                for _ in one.masks.paste():
                    pass
        return [one.boxes_N4 for one in detections]

    def _segmentor(self, network: Segmentor, images_BCHW: Tensor) -> Tensor:
        if not self.training:
            return network(images_BCHW)
        losses = network.losses(images_BCHW, label_maps(images_BCHW, network.num_classes))
        return torch.stack([*losses.values()]).sum()

    def compile_maps(self) -> None:
        """Compile the modules with fixed shapes: backbone and neck, and a segmentor's decoder."""
        for module in (self.network.backbone, self.network.neck, getattr(self.network, "decoder", None)):
            if module is not None:
                module.compile(dynamic=False)


def noise(images_BCHW: Tensor) -> Batch:
    """Return a batch of the images without ground truth."""
    height, width = images_BCHW.shape[2:]
    sizes = ((int(height), int(width)),) * len(images_BCHW)
    return Batch(tuple(map(str, range(len(images_BCHW)))), images_BCHW, sizes, sizes)


def scene(images_BCHW: Tensor) -> Batch:
    """Return a batch with fixed artificial objects: boxes of a tenth to a half of the image's sides, filled masks."""
    batch = noise(images_BCHW)
    height, width = batch.sizes[0]
    random = torch.Generator().manual_seed(0)
    objects = []
    for _ in range(len(batch)):
        low_G2, share_G2 = (torch.rand(OBJECTS, 2, generator=random) for _ in range(2))
        side_G2 = 0.1 + 0.4 * share_G2
        corner_G2 = low_G2 * (1 - side_G2)
        scale_4 = torch.tensor([width, height] * 2)
        boxes_G4 = torch.cat([corner_G2, corner_G2 + side_G2], dim=1) * scale_4
        x, y = torch.arange(width) + 0.5, torch.arange(height)[:, None] + 0.5
        x1, y1, x2, y2 = (edge[:, None, None] for edge in boxes_G4.unbind(1))
        masks_GHW = (x > x1) & (x < x2) & (y > y1) & (y < y2)
        labels_G = torch.arange(OBJECTS) % 2
        objects.append(Objects(boxes_G4, labels_G, torch.zeros(OBJECTS, dtype=torch.bool), masks_GHW))
    return Batch(batch.ids, images_BCHW, batch.sizes, batch.sizes, objects=tuple(objects)).to(images_BCHW.device)


def label_maps(images_BCHW: Tensor, classes: int) -> Tensor:
    """Return (B, H, W) uint8 label maps with stripes of all classes."""
    columns_W = torch.arange(images_BCHW.shape[3], device=images_BCHW.device) // 8 % classes
    return columns_W.to(torch.uint8).expand(len(images_BCHW), images_BCHW.shape[2], -1)
