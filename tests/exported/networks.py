"""Untrained networks as runtimes of exported files, without an export: their graphs run in torch, at any size."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from predict.networks import CLASSES, MEAN, STD, predictor
from torch import Tensor, nn

from fourstage.exported.description import Description, Input, KeepRatio, MiddleCrop, Suppression, Views
from fourstage.exported.runtime import Runtime
from fourstage.predict.predictor import Predictor
from fourstage.tasks.detection.padding import padded
from fourstage.tasks.detection.single_stage import best_pairs, by_anchor

INPUT = Input("images", mean=MEAN, std=STD)
DESCRIPTIONS = {
    "classification": Description(
        task="classification",
        kind="logits",
        outputs=("logits",),
        classes=CLASSES,
        input=replace(INPUT, height=32, width=32),
        network="visformer_digits",
        resize=MiddleCrop(32),
    ),
    "detection": Description(
        task="detection",
        kind="detections",
        outputs=("boxes", "scores", "labels"),
        classes=CLASSES,
        input=INPUT,
        network="retinanet over visformer_digits",
        resize=KeepRatio((96, 64)),
        suppression=Suppression(threshold=0.0, iou=0.5, most=100, drop_empty=True),
        method="retinanet",
    ),
    "segmentation": Description(
        task="segmentation",
        kind="logits",
        outputs=("logits",),
        classes=CLASSES,
        input=replace(INPUT, smallest=32),
        network="upernet over visformer_digits",
        resize=Views((96, 64)),
        method="upernet",
    ),
}


class InTorch(Runtime):
    """A graph that torch runs; it keeps the shapes of all batches, and the sizes that came with the last one."""

    name = "torch"

    def __init__(self, description: Description, graph: Callable[[Tensor], Sequence[Tensor]]) -> None:
        super().__init__(Path("x.onnx"), description)
        self.graph, self.shapes = graph, list[tuple[int, ...]]()
        self.sizes: list[np.ndarray] = []

    @torch.no_grad()
    def compute(self, inputs: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        images_B3HW, *self.sizes = inputs
        self.shapes.append(images_B3HW.shape)
        return [x.numpy() for x in self.graph(torch.from_numpy(images_B3HW).float())]


class DetectorGraph(nn.Module):
    """RetinaNet up to the candidates of each image, as an exported file has them."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        detector, head = self.detector, self.detector.dense_head
        logits, deltas = head(detector.neck(detector.backbone(padded(images_BCHW))))[:2]
        anchors = head.anchors.boxes([(x.shape[-2], x.shape[-1]) for x in logits], logits[0].device)
        found = []
        for i in range(len(images_BCHW)):
            columns = []
            for a_N4, x, d in zip(anchors, logits, deltas, strict=True):
                scores_NC = by_anchor(x[i : i + 1], head.num_classes)[0].sigmoid()
                pairs = best_pairs(scores_NC, -1.0, detector.limits.per_level)
                deltas_N4 = by_anchor(d[i : i + 1], 4)[0]
                boxes_P4 = head.coder.decode(a_N4[pairs.anchor_P], deltas_N4[pairs.anchor_P])
                columns.append((boxes_P4, pairs.scores_P, pairs.labels_P))
            found.append([torch.cat(one) for one in zip(*columns, strict=True)])
        return tuple(torch.stack(one) for one in zip(*found, strict=True))


def graph_of(task: str, network: Any) -> nn.Module:
    """The graph of a network, from images to the outputs in `DESCRIPTIONS`."""
    if task == "detection":
        return DetectorGraph(network).eval()
    return OneOutput(network if task == "classification" else Coarse(network)).eval()


class Coarse(nn.Module):
    def __init__(self, segmentor: Any) -> None:
        super().__init__()
        self.segmentor = segmentor

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return self.segmentor.coarse(images_BCHW)


class OneOutput(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        return (self.network(images_BCHW),)


def in_torch(task: str, **changes: Any) -> tuple[Predictor, InTorch]:
    """Return the predictor of a network, and the same network as an exported file.

    Args:
        changes: of the description; those of its input are under `input`.
    """
    network = predictor(task, **({"threshold": 0.0} if task == "detection" else {}))
    description = DESCRIPTIONS[task]
    changes["input"] = replace(description.input, **changes.get("input", {}))
    return network, InTorch(replace(description, **changes), graph_of(task, network.network))
