"""Graphs of classifiers, dense backbones and segmentors. B images, C classes, H x W pixels."""

import torch
from torch import Tensor, nn

from fourstage.export.graphs.base import Graph
from fourstage.tasks.detection.boxes import as_float32
from fourstage.tasks.parts.levels import feature_maps, levels_of
from fourstage.tasks.segmentation.segmentor import Segmentor


class LogitsGraph(Graph):
    """The logits of a classifier, (B, C), or of every pixel of a segmentor's input, (B, C, H, W)."""

    kind, outputs = "logits", ("logits",)

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        return (as_float32(self.network(images_BCHW)),)


class BackboneGraph(Graph):
    """The maps of a dense backbone."""

    kind = "maps"

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.outputs = tuple(f"map_{i}" for i in range(len(levels_of(network))))

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        return tuple(as_float32(x_BCHW) for x_BCHW in feature_maps(self.network, images_BCHW))


class LabelMapGraph(Graph):
    """The most likely class of every pixel of the input, (B, H, W) uint8."""

    kind, outputs = "label_map", ("label_map",)

    def __init__(self, network: Segmentor) -> None:
        super().__init__()
        self.network = network

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        return (self.network(images_BCHW).argmax(dim=1).to(torch.uint8),)
