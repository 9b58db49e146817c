"""Small networks of every task, and their exported files."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from tasks.detection.scenes import SmallBackbone, small, with_detections
from tiny_networks import tiny
from torch import nn

from fourstage.export.graphs.base import Graph
from fourstage.export.graphs.build import graph_of
from fourstage.export.proof import Images, noise_images
from fourstage.export.trace import Traced
from fourstage.export.write import Written, write
from fourstage.exported.description import Description, Input, KeepRatio, MiddleCrop, Views
from fourstage.tasks.detection.dino import DINO
from fourstage.tasks.detection.retinanet import RetinaNet
from fourstage.tasks.segmentation.segmentor import Segmentor
from fourstage.tasks.segmentation.semantic_fpn import semantic_fpn
from fourstage.tasks.segmentation.upernet import upernet

TASKS = {"logits": "classification", "label_map": "segmentation", "detections": "detection", "maps": "backbone"}
RULES = {"classification": MiddleCrop(64), "segmentation": Views(None), "detection": KeepRatio((128, 96))}


def with_anchors() -> nn.Module:
    torch.manual_seed(0)
    return RetinaNet(SmallBackbone(), 3, channels=16, convs=1, candidates="anchors", per_level=200)


def with_queries() -> nn.Module:
    torch.manual_seed(0)
    return DINO(
        SmallBackbone(),
        3,
        queries=60,
        scales=2,
        channels=16,
        heads=2,
        points=2,
        hidden=32,
        encoder_layers=1,
        decoder_layers=1,
        per_image=50,
    )


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int]]] = {  # with (H, W) of their images
    "classifier": (lambda: tiny("unified_convnext"), (64, 64)),
    "upernet": (lambda: upernet(SmallBackbone(), 5, channels=8, auxiliary_channels=8), (70, 90)),
    "semantic_fpn": (lambda: semantic_fpn(SmallBackbone(), 5, neck_channels=16, channels=16), (64, 96)),
    "retinanet": (lambda: with_detections(small("retinanet")), (96, 128)),
    "retinanet_anchors": (lambda: with_detections(with_anchors()), (96, 128)),  # pyright: ignore[reportArgumentType]
    "atss": (lambda: with_detections(small("atss")), (96, 128)),
    "atss_dyhead": (lambda: with_detections(small("atss_dyhead")), (128, 160)),
    **{
        name: (lambda name=name: with_detections(small(name)), (96, 128))
        for name in ("mask_rcnn", "faster_rcnn", "cascade", "cascade_4conv")
    },
    "sparse_rcnn": (lambda: small("sparse_rcnn"), (96, 128)),
    "dino": (lambda: with_detections(with_queries()), (128, 160)),  # pyright: ignore[reportArgumentType]
}


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[name][0]().eval()


def description(graph: Graph, input: Input, classes: int) -> Description:
    """Return what a file of a small network says about itself."""
    task: Any = TASKS[graph.kind]
    segments = isinstance(getattr(graph, "network", None), Segmentor)
    task = "segmentation" if segments else task
    return Description(
        task=task,
        kind=graph.kind,
        outputs=graph.outputs,
        classes=() if task == "backbone" else tuple(f"class {i}" for i in range(classes)),
        input=input,
        network="small",
        resize=RULES.get(task),
        suppression=graph.suppression,
        licence="MIT",
        recipe="small_recipe",
        recipe_hash="0" * 64,
        versions={"torch": torch.__version__},
    )


def export(
    network: nn.Module,
    path: Path,
    format: Any = "onnx",
    *,
    size: tuple[int, int] = (64, 64),
    axes: Collection[str] = (),
    output: Any = "logits",
    images: Callable[[Traced], list[Images]] | None = None,
    **options: Any,
) -> Written:
    """Export a network, proved on noise."""
    graph = graph_of(network, output).eval()

    def describe(traced: Traced) -> Description:
        sides = [None if axis in axes else side for axis, side in zip(("height", "width"), size, strict=True)]
        batch = None if "batch" in axes else 1
        sizes = "sizes" if graph.reads_sizes else None
        input = Input("images", batch=batch, height=sides[0], width=sides[1], divisor=graph.multiple,
                      smallest=traced.smallest, sizes=sizes)  # fmt: skip
        return description(graph, input, getattr(network, "num_classes", 3))

    images = images or (lambda traced: noise_images([(1, *size)]))
    return write(graph, network, path, format, describe, images, size=size, axes=axes, **options)
