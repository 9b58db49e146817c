"""Compare our UPerNet and Semantic FPN with segmentation-models-pytorch's, on the same encoder of timm, in one run.

    python benchmarks/segmentation.py [--encoder resnet18] [--seconds 30] [--size 512] [--threads 2] [--mode infer]

UPerNet is 512 wide, without an auxiliary decoder, as the peer has none; FPN is 256 and 128 wide. The peer's FPN lacks
the 3x3 convolutions that end the pyramid in the paper and in ours, so MACs of both are printed. Both have 150 classes
and get two images of noise. Inference ends with logits for each pixel; a training step is cross-entropy, backward and
AdamW. Results go to benchmarks/results/segmentation.jsonl. Needs: .venv/bin/pip install -e ".[train]"
segmentation-models-pytorch.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fourstage.api import create_segmentor
from fourstage.bench import side_by_side
from fourstage.bench.count import count_module
from fourstage.bench.networks import without_dropout
from fourstage.bench.task_workloads import label_maps
from fourstage.tasks.segmentation.losses import pixel_cross_entropy
from fourstage.tasks.segmentation.segmentor import Segmentor

RESULTS = Path(__file__).parent / "results" / "segmentation.jsonl"
CLASSES, IMAGES = 150, 2
METHODS = ("upernet", "semantic_fpn")


def ours(method: str, encoder: str) -> nn.Module:
    arguments: dict[str, Any] = {"auxiliary_weight": 0} if method == "upernet" else {}
    return create_segmentor(method, f"timm/{encoder}", CLASSES, **arguments)


def theirs(method: str, encoder: str) -> nn.Module:
    """Return the peer's network with the widths of ours. It wraps the same network of timm."""
    try:
        smp = import_module("segmentation_models_pytorch")
    except ImportError as error:
        raise ValueError("the peer is missing; type: pip install segmentation-models-pytorch") from error
    known: dict[str, Any] = {"encoder_name": f"tu-{encoder}", "encoder_weights": None, "classes": CLASSES}
    if method == "upernet":
        return smp.UPerNet(decoder_channels=512, **known)
    return smp.FPN(decoder_pyramid_channels=256, decoder_segmentation_channels=128, **known)


def costs(method: str, encoder: str, size: int) -> dict[str, float]:
    """Return billions of MACs of one image, by side."""
    return {
        side: round(count_module(build(method, encoder), (3, size, size)).macs / 1e9, 2)
        for side, build in zip(side_by_side.SIDES, (ours, theirs), strict=True)
    }


def make(method: str, encoder: str, size: int) -> side_by_side.Make:
    """Return a function that builds the step of a side and a mode."""

    def step_of(side: str, mode: str) -> side_by_side.Step:
        torch.manual_seed(0)
        model = without_dropout((ours if side == side_by_side.OURS else theirs)(method, encoder)).train(mode == "train")
        images_BCHW = torch.randn(IMAGES, 3, size, size)
        labels_BHW = label_maps(images_BCHW, CLASSES)

        def infer() -> None:
            with torch.inference_mode():
                model(images_BCHW)

        def loss() -> Tensor:
            if isinstance(model, Segmentor):
                return torch.stack([*model.losses(images_BCHW, labels_BHW).values()]).sum()
            return pixel_cross_entropy(model(images_BCHW), labels_BHW)

        return side_by_side.training_step(model, loss) if mode == "train" else infer

    return step_of


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    top.add_argument("--encoder", default="resnet18", metavar="NAME", help="of timm; default: resnet18")
    top.add_argument("--method", choices=METHODS, help="one of the two; default: both")
    side_by_side.add_options(top, RESULTS, size=512, seconds=30, each="method and mode")
    return top


def rows(args: argparse.Namespace) -> Iterator[list[str]]:
    """Measure the requested methods and modes."""
    for method in [args.method] if args.method else METHODS:
        gmacs = costs(method, args.encoder, args.size)
        steps, own = make(method, args.encoder, args.size), ["--encoder", args.encoder, "--method", method]
        pair = side_by_side.Pair(f"{method}:timm/{args.encoder}", "smp", steps, own)
        for row in side_by_side.measure(__file__, pair, args, {"gmacs": gmacs, "images": IMAGES}):
            yield [*row, *(f"{gmacs[side]:.0f}" for side in side_by_side.SIDES)]


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    torch.set_num_threads(args.threads or torch.get_num_threads())
    if args.peak:
        side_by_side.print_peak(make(args.method, args.encoder, args.size), *args.peak)
        return 0
    try:
        side_by_side.show(rows(args), "G MACs", "peer G MACs")
    except ValueError as error:
        print(f"segmentation: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
