"""Compare our Mask R-CNN with torchvision's on the same backbone of timm, in one run.

    python benchmarks/detection.py [--backbone resnet18] [--seconds 60] [--size 640] [--threads 2] [--mode infer]

Both have a pyramid 256 wide, 80 classes, 2,000 and 1,000 proposals in training and 1,000 in inference, 512 regions an
image in training, and adaptive sampling in RoIAlign. Both get the same weights, so that they return about the same
detections: our initial weights, with a class layer that detects many objects in noise. Batches are two images of noise,
with eight objects each in training. Results go to benchmarks/results/detection.jsonl. Needs:
.venv/bin/pip install -e ".[train]".
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from fourstage.api import create_backbone, create_detector
from fourstage.bench import side_by_side
from fourstage.bench.task_workloads import noise, scene
from fourstage.tasks.detection.detector import Detector
from fourstage.tasks.detection.mask_rcnn import MaskRCNN as OurMaskRCNN
from fourstage.tasks.parts.levels import levels_of

RESULTS = Path(__file__).parent / "results" / "detection.jsonl"
CLASSES, CHANNELS, IMAGES = 80, 256, 2


class Pyramid(nn.Module):
    """A backbone with torchvision's pyramid, as torchvision's detectors take it."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.body = backbone
        self.out_channels = CHANNELS
        channels = [level.channels for level in levels_of(backbone)]
        self.fpn = FeaturePyramidNetwork(channels, CHANNELS, LastLevelMaxPool())

    def forward(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        return self.fpn({str(i): x_BCHW for i, x_BCHW in enumerate(self.body(images_BCHW))})


def theirs(backbone: nn.Module, size: int) -> MaskRCNN:
    """Return torchvision's network with the settings of ours; its resizing leaves images of this size as they are."""
    maps = ["0", "1", "2", "3"]
    return MaskRCNN(
        Pyramid(backbone),
        CLASSES + 1,  # the background is one of its classes
        min_size=size,
        max_size=size,
        image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
        rpn_anchor_generator=AnchorGenerator(((32,), (64,), (128,), (256,), (512,)), ((0.5, 1.0, 2.0),) * 5),
        rpn_pre_nms_top_n_train=2000,
        rpn_post_nms_top_n_train=1000,
        rpn_pre_nms_top_n_test=1000,
        rpn_post_nms_top_n_test=1000,
        rpn_batch_size_per_image=256,
        box_batch_size_per_image=512,
        box_positive_fraction=0.25,
        box_detections_per_img=100,
        box_roi_pool=MultiScaleRoIAlign(maps, 7, 0),
        mask_roi_pool=MultiScaleRoIAlign(maps, 14, 0),
    )


def same_weights(ours: OurMaskRCNN, peer: Any) -> None:
    """Copy the weights of ours to the peer; the background is our last class and torchvision's first."""
    neck, fpn = ours.neck, peer.backbone.fpn
    peer.backbone.body.load_state_dict(ours.backbone.state_dict())
    pairs: list[tuple[Any, Any]] = []
    pairs += [(a, b[0]) for a, b in zip(neck.laterals, fpn.inner_blocks, strict=True)]
    pairs += [(a, b[0]) for a, b in zip(neck.outputs, fpn.layer_blocks, strict=True)]
    rpn, head = ours.rpn, peer.rpn.head
    first: Any = rpn.convs[0]
    pairs += [(first.conv, head.conv[0][0]), (rpn.objectness, head.cls_logits), (rpn.deltas, head.bbox_pred)]
    box, predictor = ours.box_head, peer.roi_heads.mask_predictor
    mask: Any = ours.mask_head
    pairs += [(box.fcs[0], peer.roi_heads.box_head.fc6), (box.fcs[1], peer.roi_heads.box_head.fc7)]
    pairs += [(a.conv, b[0]) for a, b in zip(mask.convs, peer.roi_heads.mask_head, strict=True)]
    pairs += [(mask.upsample, predictor.conv5_mask)]
    with torch.no_grad():
        for a, b in pairs:
            b.load_state_dict(a.state_dict())
        last = peer.roi_heads.box_predictor
        for name in ("weight", "bias"):
            classes, boxes = getattr(box.classify, name), getattr(box.regress, name)
            getattr(last.cls_score, name).copy_(classes.roll(1, dims=0))
            getattr(last.bbox_pred, name)[4:].copy_(boxes)
            getattr(predictor.mask_fcn_logits, name)[1:].copy_(getattr(mask.logits, name))


def ready(side: str, backbone: str, size: int) -> tuple[Any, Tensor]:
    """Return one of the two networks and two images."""
    torch.manual_seed(0)
    images_BCHW = torch.randn(IMAGES, 3, size, size)
    ours = create_detector("mask_rcnn", f"timm/{backbone}", CLASSES)
    assert isinstance(ours, Detector)
    assert isinstance(ours, OurMaskRCNN)
    ours.eval().spread_scores(noise(images_BCHW[:1]))
    if side == side_by_side.OURS:
        return ours, images_BCHW
    peer = theirs(create_backbone(f"timm/{backbone}"), size)
    same_weights(ours, peer)
    return peer, images_BCHW


def make(backbone: str, size: int) -> side_by_side.Make:
    """Return a function that builds the step of a side and a mode."""

    def step_of(side: str, mode: str) -> side_by_side.Step:
        model, images_BCHW = ready(side, backbone, size)
        model.train(mode == "train")
        batch = scene(images_BCHW)
        truths = [
            {"boxes": one.boxes_N4, "labels": one.labels_N + 1, "masks": one.masks_NHW.to(torch.uint8)}
            for one in batch.objects or ()
            if one.masks_NHW is not None
        ]

        def infer() -> int:
            with torch.inference_mode():
                if side == side_by_side.PEER:
                    return sum(len(one["boxes"]) for one in model(list(images_BCHW)))
                return sum(len(one.masks.full_size()) for one in model.detect(noise(images_BCHW)))

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
    pair = side_by_side.Pair(
        f"mask_rcnn:timm/{args.backbone}", "torchvision MaskRCNN", steps, ["--backbone", args.backbone]
    )
    side_by_side.show(side_by_side.measure(__file__, pair, args, {"images": IMAGES}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
