"""Measure whether the loader keeps a device busy: JPEG files into training steps, beside each of the two alone.

    benchmarks/gpu_loader.py --device cuda [--workers 8] [--out FILE]

The files are 500 x 375 pixels of smooth noise, in a temporary folder. Each image becomes 224 pixels by the transform of
evaluation or of training (timm's, with RandAugment), and batches are pinned and copied. The network trains in bfloat16.
Each line has the images per second of the loader alone, of steps on one batch that stays on the device, and of both
together. A rate leaves out the first steps, in which workers start.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from fourstage.api import create_model
from fourstage.bench.machine import machine
from fourstage.bench.results import append_jsonl
from fourstage.data.labels.imagefolder import ImageFolder
from fourstage.data.loader import TrainPlan, train_batches
from fourstage.data.sample import Batch
from fourstage.data.transforms.classification import eval_transform, train_transform

RESULTS = Path(__file__).parent / "results" / "gpu_loader.jsonl"
MEAN, STD, SIDE, CLASSES = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 224, 4
WIDTH, HEIGHT, QUALITY = 500, 375, 95
WARM = 3  # steps before the clock starts
TRANSFORMS: dict[str, Callable[[], Any]] = {
    "evaluation": lambda: eval_transform(SIDE, mean=MEAN, std=STD),
    "training": lambda: train_transform(SIDE, mean=MEAN, std=STD),
}


def write_files(folder: Path, images: int) -> None:
    """Write train/<class>/*.jpg."""
    from PIL import Image

    chance = np.random.default_rng(0)
    for i in range(images):
        small = Image.fromarray(chance.integers(0, 256, (HEIGHT // 12, WIDTH // 12, 3), dtype=np.uint8))
        path = folder / "train" / f"class_{i % CLASSES}" / f"{i:04}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        small.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(path, quality=QUALITY)


def rate(steps: Iterator[int], device: torch.device, seconds: float) -> float:
    """Return images per second of steps, each of which gives its number of images."""
    for _ in range(WARM):
        next(steps)
    _wait(device)
    start, images = time.perf_counter(), 0
    while time.perf_counter() - start < seconds or not images:
        images += next(steps)
    _wait(device)
    return images / (time.perf_counter() - start)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(folder: Path, kind: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return one line: the loader alone, the step alone, both."""
    device, size = torch.device(args.device), 2 if args.tiny else args.batch_size
    data, transform = ImageFolder(folder, "train"), TRANSFORMS[kind]()
    network = create_model("visformer_digits" if args.tiny else args.model, num_classes=CLASSES).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.0)

    def loaded() -> Generator[Batch]:
        plan, many = TrainPlan(len(data), size), 2**20
        pin = device.type == "cuda"
        steps = train_batches(data, plan, transform, first_step=0, last_step=many, workers=args.workers, pin_memory=pin)
        with closing(steps):
            for step in steps:
                yield from step

    def train(batch: Batch) -> int:
        _step(network, optimizer, batch)
        return len(batch)

    with closing(loaded()) as batches:
        resident = next(batches).to(device)
        loader = rate((len(batch) for batch in batches), device, args.seconds)
    step = rate(iter(lambda: train(resident), 0), device, args.seconds)
    with closing(loaded()) as batches:
        both = rate((train(batch.to(device)) for batch in batches), device, args.seconds)
    return {"loader": loader, "step": step, "both": both, "batch": size, "workers": args.workers}


def _step(network: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    assert batch.labels_B is not None
    with torch.autocast(batch.images_BCHW.device.type, dtype=torch.bfloat16):
        loss = F.cross_entropy(network(batch.images_BCHW), batch.labels_B)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    top.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    top.add_argument("--tiny", action="store_true", help="a small network and two images a step, for a test")
    top.add_argument("--model", default="swin_tiny", metavar="NAME", help="of ours; default: swin_tiny")
    top.add_argument("--batch-size", type=int, default=128, metavar="N")
    top.add_argument(
        "--workers", type=int, default=max(1, (os.cpu_count() or 1) - 1), metavar="N", help="default: all cores but one"
    )
    top.add_argument("--images", type=int, default=512, metavar="N", help="files; default: 512")
    top.add_argument("--seconds", type=float, default=4.0, metavar="S", help="for each rate; default: 4")
    top.add_argument("--out", type=Path, default=RESULTS, metavar="FILE", help=f"default: {RESULTS.name} in results")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    if args.device == "cuda" and not torch.cuda.is_available():
        print("gpu_loader.py: torch sees no GPU; type --device cpu --tiny to try the script", file=sys.stderr)
        return 2
    args.out.parent.mkdir(parents=True, exist_ok=True)
    failed = False
    with TemporaryDirectory() as folder:
        write_files(Path(folder), args.images)
        for kind in TRANSFORMS:
            try:
                line = measure(Path(folder), kind, args)
            except (ImportError, OSError, RuntimeError, ValueError) as error:  # such as timm, which is missing
                line, failed = {"error": str(error).splitlines()[0]}, True
            append_jsonl(args.out, [{"transform": kind, **line, "machine": machine(torch.device(args.device))}])
            print(kind, line, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
