"""Compare our DINO with Deformable DETR of transformers on the same backbone of timm, in one run.

    python benchmarks/dino.py [--backbone resnet18] [--seconds 60] [--size 640] [--threads 2] [--mode infer]

Both have two stages, boxes that every layer refines, six encoder and six decoder layers 256 wide with 2,048 channels in
between, eight heads of four points on four scales, 300 queries and 80 classes. Ours trains without queries with noise,
which the other does not have. What differs: ours computes the boxes of chosen cells alone, and the other's queries come
from the encoder, where ours are learned. Batches are two images of noise, with eight objects each in training. Results
go to benchmarks/results/dino.jsonl. Needs: .venv/bin/pip install -e ".[train]" transformers.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fourstage.api import create_detector
from fourstage.bench import side_by_side
from fourstage.bench.task_workloads import noise, scene
from fourstage.tasks.detection.boxes import center_form
from fourstage.tasks.detection.detector import Detector

RESULTS = Path(__file__).parent / "results" / "dino.jsonl"
CLASSES, QUERIES, LAYERS, WIDTH, HIDDEN, HEADS, POINTS, SCALES, IMAGES = 80, 300, 6, 256, 2048, 8, 4, 4, 2


def theirs(backbone: str) -> Any:
    """Return the network of transformers with the sizes of ours and fresh weights."""
    from transformers import (  # pyright: ignore[reportMissingImports]
        DeformableDetrConfig,
        DeformableDetrForObjectDetection,
        TimmBackboneConfig,
    )

    config = DeformableDetrConfig(
        backbone_config=TimmBackboneConfig(backbone=backbone, out_indices=[2, 3, 4], use_pretrained_backbone=False),
        use_timm_backbone=False,
        backbone=None,
        use_pretrained_backbone=False,
        num_labels=CLASSES,
        num_queries=QUERIES,
        two_stage_num_proposals=QUERIES,
        two_stage=True,
        with_box_refine=True,
        d_model=WIDTH,
        encoder_layers=LAYERS,
        decoder_layers=LAYERS,
        encoder_ffn_dim=HIDDEN,
        decoder_ffn_dim=HIDDEN,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        encoder_n_points=POINTS,
        decoder_n_points=POINTS,
        num_feature_levels=SCALES,
        dropout=0.0,
        attention_dropout=0.0,
        auxiliary_loss=True,
        disable_custom_kernels=True,
    )
    return DeformableDetrForObjectDetection(config)


def ours(backbone: str) -> Detector:
    detector = create_detector(
        "dino",
        f"timm/{backbone}",
        CLASSES,
        queries=QUERIES,
        scales=SCALES,
        channels=WIDTH,
        encoder_layers=LAYERS,
        decoder_layers=LAYERS,
        heads=HEADS,
        points=POINTS,
        hidden=HIDDEN,
        denoising=0,
    )
    assert isinstance(detector, Detector)
    return detector


def make(backbone: str, size: int) -> side_by_side.Make:
    """Return a function that builds the step of a side and a mode."""

    def step_of(side: str, mode: str) -> side_by_side.Step:
        torch.manual_seed(0)
        images_BCHW = torch.randn(IMAGES, 3, size, size)
        model: Any = ours(backbone) if side == side_by_side.OURS else theirs(backbone)
        model.train(mode == "train")
        batch = scene(images_BCHW)
        labels = [
            {"class_labels": one.labels_N, "boxes": center_form(one.boxes_N4) / size} for one in batch.objects or ()
        ]

        def infer() -> int:
            with torch.inference_mode():
                if side == side_by_side.PEER:
                    return len(model(pixel_values=images_BCHW).logits)
                return sum(len(one) for one in model.detect(noise(images_BCHW)))

        def loss() -> Tensor:
            if side == side_by_side.PEER:
                return model(pixel_values=images_BCHW, labels=labels).loss
            return torch.stack([*model.losses(batch).values()]).sum()

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
        f"dino:timm/{args.backbone}", "transformers DeformableDetr", steps, ["--backbone", args.backbone]
    )
    side_by_side.show(side_by_side.measure(__file__, pair, args, {"images": IMAGES, "queries": QUERIES}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
