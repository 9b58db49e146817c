"""Our UPerNet and Semantic FPN beside those of segmentation-models-pytorch on the same encoder of timm, in one run.

    python benchmarks/segmentation.py [--encoder resnet18] [--seconds 30] [--size 512] [--threads 2] [--mode infer]

UPerNet is 512 wide, its auxiliary decoder left out, as the peer has none; FPN is 256 and 128 wide. The peer's FPN goes
without the 3x3 convolutions that end the pyramid in the paper and in ours: MACs of both are told. 150 classes, two
images of noise, logits for each pixel in inference; in training cross-entropy, backward, AdamW. Lines go to
benchmarks/results/segmentation.jsonl. Needs: pip install "fourstage[train]" segmentation-models-pytorch.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from fourstage.bench import duel
from fourstage.bench.count import count_module
from fourstage.bench.machine import machine
from fourstage.bench.results import append_jsonl
from fourstage.bench.subjects import undropped
from fourstage.bench.work_dense import label_maps
from fourstage.dense import create_segmentor
from fourstage.tasks.segmentation.losses import pixel_cross_entropy
from fourstage.tasks.segmentation.segmentor import Segmentor

RESULTS = Path(__file__).parent / "results" / "segmentation.jsonl"
CLASSES, IMAGES = 150, 2
MODES = ("infer", "train")
METHODS = ("upernet", "semantic_fpn")


def ours(method: str, encoder: str) -> nn.Module:
    arguments: dict[str, Any] = {"auxiliary_weight": 0} if method == "upernet" else {}
    return create_segmentor(method, f"timm/{encoder}", CLASSES, **arguments)


def theirs(method: str, encoder: str) -> nn.Module:
    """The peer's network with the widths of ours. It wraps the same network of timm."""
    try:
        import segmentation_models_pytorch as smp  # type: ignore[import-not-found]
    except ImportError as error:
        raise ValueError("the peer is missing; type: pip install segmentation-models-pytorch") from error
    known: dict[str, Any] = {"encoder_name": f"tu-{encoder}", "encoder_weights": None, "classes": CLASSES}
    if method == "upernet":
        return smp.UPerNet(decoder_channels=512, **known)
    return smp.FPN(decoder_pyramid_channels=256, decoder_segmentation_channels=128, **known)


def costs(method: str, encoder: str, size: int) -> dict[str, float]:
    """Billions of MACs of one image, by side."""
    return {
        side: round(count_module(build(method, encoder), (3, size, size)).macs / 1e9, 2)
        for side, build in zip(duel.SIDES, (ours, theirs), strict=True)
    }


def make(method: str, encoder: str, size: int) -> duel.Make:
    """Steps of both sides."""

    def step_of(side: str, mode: str) -> duel.Step:
        torch.manual_seed(0)
        model = undropped((ours if side == duel.OURS else theirs)(method, encoder)).train(mode == "train")
        images_BCHW = torch.randn(IMAGES, 3, size, size)
        labels_BHW = label_maps(images_BCHW, CLASSES)

        def infer() -> None:
            with torch.inference_mode():
                model(images_BCHW)

        optimizer = torch.optim.AdamW(model.parameters(), lr=0.0) if mode == "train" else None

        def train() -> None:
            if isinstance(model, Segmentor):
                loss = torch.stack([*model.losses(images_BCHW, labels_BHW).values()]).sum()
            else:
                loss = pixel_cross_entropy(model(images_BCHW), labels_BHW)
            loss.backward()
            assert optimizer is not None
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return train if mode == "train" else infer

    return step_of


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    top.add_argument("--encoder", default="resnet18", metavar="NAME", help="of timm; default: resnet18")
    top.add_argument("--method", choices=METHODS, help="one of the two; default: both")
    top.add_argument("--size", type=int, default=512, metavar="PX", help="a side of the images; default: 512")
    top.add_argument("--seconds", type=float, default=30.0, metavar="S", help="for each method and mode; default: 30")
    top.add_argument("--threads", type=int, metavar="N")
    top.add_argument("--mode", choices=MODES, help="one of the two; default: both")
    top.add_argument("--out", type=Path, default=RESULTS, metavar="FILE", help=f"default: {RESULTS.name} in results")
    top.add_argument(duel.PEAK, nargs=2, metavar=("SIDE", "MODE"), help=argparse.SUPPRESS)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    torch.set_num_threads(args.threads or torch.get_num_threads())
    if args.peak:
        duel.tell_peak(make(args.method, args.encoder, args.size), *args.peak)
        return 0
    table = Table(*duel.HEAD, "G MACs", "peer G MACs", box=None, pad_edge=False, header_style="bold")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    try:
        for method in [args.method] if args.method else METHODS:
            gmacs = costs(method, args.encoder, args.size)
            steps, model = make(method, args.encoder, args.size), f"{method}:timm/{args.encoder}"
            given = ["--encoder", args.encoder, "--method", method, "--size", str(args.size)]
            given += ["--threads", str(torch.get_num_threads())]
            for mode in [args.mode] if args.mode else MODES:
                found = duel.duel(steps, mode, args.seconds, duel.peaks(__file__, mode, given))
                conditions = {
                    "gmacs": gmacs,
                    "size": args.size,
                    "images": IMAGES,
                    "machine": machine(torch.device("cpu")),
                }
                append_jsonl(args.out, [{**duel.line(model, "smp", mode, found), **conditions}])
                table.add_row(*duel.cells(model, mode, found), *(f"{gmacs[side]:.0f}" for side in duel.SIDES))
    except ValueError as error:
        print(f"segmentation: {error}", file=sys.stderr)
        return 2
    Console(highlight=False, width=160).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
