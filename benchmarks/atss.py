"""Compare our ATSS with torchvision's FCOS on the same backbone of timm, in one run.

    python benchmarks/atss.py [--backbone resnet18] [--seconds 60] [--size 640] [--threads 2] [--mode infer]

Both have a pyramid 256 wide at strides 8 to 128, two towers of four convolutions with group norm, 80 classes, a
centreness beside the box, and the same weights: our initial ones, with a class layer that detects many objects in
noise. They differ in what they train: ATSS matches anchors by the statistics of their overlaps, FCOS the centres of
cells. The score of FCOS is the root of the product of class and centreness, and 0.15 as its threshold keeps about the
boxes that ATSS keeps by its class of more than 0.05. Batches are two images of noise, with eight objects each in
training. Results go to benchmarks/results/atss.jsonl.
Needs: .venv/bin/pip install -e ".[train]".
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelP6P7

from fourstage.api import create_backbone, create_detector
from fourstage.bench import side_by_side
from fourstage.bench.task_workloads import noise, scene
from fourstage.tasks.detection.atss import ATSS
from fourstage.tasks.parts.levels import levels_of

RESULTS = Path(__file__).parent / "results" / "atss.jsonl"
CLASSES, CHANNELS, IMAGES = 80, 256, 2


class Pyramid(nn.Module):
    """A backbone of timm with torchvision's pyramid from stride 8 on, as FCOS takes it."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.body, self.out_channels = backbone, CHANNELS
        channels = [level.channels for level in levels_of(backbone)][1:]
        self.fpn = FeaturePyramidNetwork(channels, CHANNELS, LastLevelP6P7(CHANNELS, CHANNELS))

    def forward(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        return self.fpn({str(i): x_BCHW for i, x_BCHW in enumerate(self.body(images_BCHW)[1:])})


def theirs(backbone: str, size: int) -> FCOS:
    """Return torchvision's network; its resizing leaves images of this size as they are."""
    same: dict[str, Any] = {"min_size": size, "max_size": size, "image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    return FCOS(Pyramid(create_backbone(f"timm/{backbone}")), CLASSES, score_thresh=0.15, **same)


def same_weights(ours: Any, peer: Any) -> None:
    """Copy the weights of ours to the peer, whose towers have biases in addition, which are 0."""
    fpn, head, their_head = peer.backbone.fpn, ours.dense_head, peer.head
    peer.backbone.body.load_state_dict(ours.backbone.state_dict())
    pairs = [(a, b[0]) for a, b in zip(ours.neck.laterals, fpn.inner_blocks, strict=True)]
    pairs += [(a, b[0]) for a, b in zip(ours.neck.outputs[:3], fpn.layer_blocks, strict=True)]
    pairs += [(ours.neck.outputs[3], fpn.extra_blocks.p6), (ours.neck.outputs[4], fpn.extra_blocks.p7)]
    boxes, classes = their_head.regression_head, their_head.classification_head
    for tower, layers in ((head.class_tower, classes.conv), (head.box_tower, boxes.conv)):
        for i, one in enumerate(tower):
            pairs += [(one.conv, layers[3 * i]), (one.norm, layers[3 * i + 1])]
    pairs += [(head.classify, classes.cls_logits), (head.regress, boxes.bbox_reg)]
    pairs += [(head.centerness, boxes.bbox_ctrness)]
    for a, b in pairs:
        b.load_state_dict(a.state_dict(), strict=False)


def ready(side: str, backbone: str, size: int) -> tuple[Any, Tensor]:
    """Return one of the two networks and two images."""
    torch.manual_seed(0)
    images_BCHW = torch.randn(IMAGES, 3, size, size)
    ours = create_detector("atss", f"timm/{backbone}", CLASSES)
    assert isinstance(ours, ATSS)
    ours.eval().spread_scores(noise(images_BCHW[:1]))
    if side == side_by_side.OURS:
        return ours, images_BCHW
    peer = theirs(backbone, size)
    same_weights(ours, peer)
    return peer, images_BCHW


def make(backbone: str, size: int) -> side_by_side.Make:
    """Return a function that builds the step of a side and a mode."""

    def step_of(side: str, mode: str) -> side_by_side.Step:
        model, images_BCHW = ready(side, backbone, size)
        model.train(mode == "train")
        batch = scene(images_BCHW)
        truths = [{"boxes": one.boxes_N4, "labels": one.labels_N} for one in batch.objects or ()]

        def infer() -> int:
            with torch.inference_mode():
                if side == side_by_side.PEER:
                    return sum(len(one["boxes"]) for one in model(list(images_BCHW)))
                return sum(len(one) for one in model.detect(noise(images_BCHW)))

        def loss() -> Tensor:
            losses: Mapping[str, Tensor] = (
                model(list(images_BCHW), truths) if side == side_by_side.PEER else model.losses(batch)
            )
            return torch.stack([*losses.values()]).sum()

        return side_by_side.training_step(model, loss) if mode == "train" else infer

    return step_of


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    top.add_argument("--backbone", default="resnet18", metavar="NAME", help="of timm; default: resnet18")
    side_by_side.add_options(top, RESULTS, size=640, seconds=60, each="mode")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    torch.set_num_threads(args.threads or torch.get_num_threads())
    steps = make(args.backbone, args.size)
    if args.peak:
        side_by_side.print_peak(steps, *args.peak)
        return 0
    pair = side_by_side.Pair(f"atss:timm/{args.backbone}", "torchvision FCOS", steps, ["--backbone", args.backbone])
    side_by_side.show(side_by_side.measure(__file__, pair, args, {"images": IMAGES}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
