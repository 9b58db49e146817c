"""Small detectors and made-up images with objects."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fourstage.backbones.layers import Level
from fourstage.data.sample import Batch, Objects
from fourstage.tasks.detection.atss import ATSS
from fourstage.tasks.detection.cascade_mask_rcnn import CascadeMaskRCNN
from fourstage.tasks.detection.detector import Detector
from fourstage.tasks.detection.dino import DINO
from fourstage.tasks.detection.mask_rcnn import MaskRCNN
from fourstage.tasks.detection.retinanet import RetinaNet
from fourstage.tasks.detection.sparse_rcnn import SparseRCNN


class SmallBackbone(nn.Module):
    """One convolution a level."""

    def __init__(self, strides: Sequence[int] = (4, 8, 16, 32)) -> None:
        super().__init__()
        self.levels = tuple(Level(8 + i, stride) for i, stride in enumerate(strides))
        widths, steps = [3, *(level.channels for level in self.levels)], [strides[0], *[2] * (len(strides) - 1)]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, s, s) for a, b, s in zip(widths, widths[1:], steps, strict=False))

    def forward(self, image_BCHW: Tensor) -> list[Tensor]:
        maps = [image_BCHW]
        for conv in self.convs:
            maps.append(conv(maps[-1]).relu())
        return maps[1:]


SINGLE_STAGE = ("retinanet", "atss", "atss_dyhead")
TWO_STAGE = ("mask_rcnn", "faster_rcnn", "cascade", "cascade_4conv")
QUERIES = ("sparse_rcnn", "dino")
NAMES = (*SINGLE_STAGE, *TWO_STAGE, *QUERIES)


def small(name: str, strides: Sequence[int] = (4, 8, 16, 32), classes: int = 3) -> Detector:
    torch.manual_seed(0)
    backbone = SmallBackbone(strides)
    if name == "retinanet":
        return RetinaNet(backbone, classes, channels=16, convs=1)
    if name in ("atss", "atss_dyhead"):
        dyhead = 1 if name == "atss_dyhead" else 0
        return ATSS(backbone, classes, channels=32, tower_channels=64, convs=1 - dyhead, dyhead=dyhead)
    if name in ("mask_rcnn", "faster_rcnn"):
        return MaskRCNN(backbone, classes, masks=name == "mask_rcnn", channels=16, fc_channels=32, mask_channels=16)
    if name == "sparse_rcnn":
        sizes = {"channels": 16, "heads": 2, "hidden": 32, "filter_channels": 8}
        detector = SparseRCNN(backbone, classes, proposals=600, stages=2, per_image=100, **sizes)
        for key, parameter in detector.named_parameters():
            if "regress" in key:
                parameter.data *= 0.1  # boxes about as large as the image
        return detector
    if name == "dino":
        return DINO(
            backbone,
            classes,
            queries=600,
            channels=16,
            encoder_layers=1,
            decoder_layers=2,
            heads=2,
            points=2,
            hidden=32,
            per_image=100,
        )
    return CascadeMaskRCNN(
        backbone,
        classes,
        heads="2fc" if name == "cascade" else "4conv1fc",
        channels=16,
        conv_channels=16,
        fc_channels=32,
        mask_channels=16,
        regions=64,
    )


def with_detections(detector: Detector) -> Detector:
    """Larger weights in the last layers, so that there are detections."""
    for name, parameter in detector.named_parameters():
        if "classify" in name or "objectness" in name:
            nn.init.normal_(parameter, std=0.5)
    return detector.eval()


def objects(
    boxes: Sequence[Sequence[float]], size: tuple[int, int], *, masks: bool = True, classes: int = 3
) -> Objects:
    """Each a filled rectangle, of class after class."""
    boxes_N4 = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    masks_NHW = torch.zeros((len(boxes), *size), dtype=torch.bool)
    for mask, box in zip(masks_NHW, boxes_N4.round().long().tolist(), strict=True):
        mask[box[1] : box[3], box[0] : box[2]] = True
    labels_N = torch.arange(len(boxes)) % classes
    crowd_N = torch.zeros(len(boxes), dtype=torch.bool)
    return Objects(boxes_N4, labels_N, crowd_N, masks_NHW if masks else None)


def batch(
    boxes: Sequence[Sequence[Sequence[float]]],
    size: tuple[int, int] = (96, 128),
    *,
    masks: bool = True,
    ids: Sequence[str] | None = None,
) -> Batch:
    """An image of noise for each list of boxes; the same for the same id."""
    names = tuple(ids or [f"image {i}" for i in range(len(boxes))])
    generators = [torch.Generator().manual_seed(sum(map(ord, name))) for name in names]
    return Batch(
        ids=names,
        images_BCHW=torch.stack([torch.randn(3, *size, generator=g) for g in generators]),
        sizes=(size,) * len(boxes),
        original_sizes=((size[0] * 2, size[1] * 2),) * len(boxes),
        objects=tuple(objects(b, size, masks=masks) for b in boxes),
    )


SOME = [[10.0, 12.0, 60.0, 70.0], [70.0, 20.0, 120.0, 90.0]]
