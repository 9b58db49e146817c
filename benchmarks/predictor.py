"""Compare a predictor with what it is made of: a decoder of images and the bare network, in turns in one process.

    python benchmarks/predictor.py [--model visformer_tiny] [--images 40] [--rounds 7] [--threads 2]

Images are JPEG files of 640 x 480 pixels, read one after the other by the same function on all sides. "bare" runs the
network on one prepared image for each file. "prepared" also resizes and normalises each image, as every way to predict
it must. "predictor" is `network(path)`. Results go to benchmarks/results/predictor.jsonl.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import fourstage
from fourstage.bench.machine import machine
from fourstage.data.images import read_image
from fourstage.data.sample import Sample

RESULTS = Path(__file__).parent / "results" / "predictor.jsonl"
HEIGHT, WIDTH = 480, 640


def photographs(folder: Path, count: int) -> list[Path]:
    """Write smooth noise as JPEG files, which compress about as photographs do."""
    rng, paths = np.random.default_rng(0), []
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8)).resize(
            (WIDTH, HEIGHT), Image.Resampling.BICUBIC
        )
        fine = rng.normal(0, 4, (HEIGHT, WIDTH, 3))
        pixels = np.clip(np.array(coarse, np.float64) + fine, 0, 255).astype(np.uint8)
        paths.append(folder / f"{i:03}.jpg")
        Image.fromarray(pixels).save(paths[-1], quality=90)
    return paths


def sides(model: str, folder: Path, paths: Sequence[Path]) -> dict[str, Callable[[], object]]:
    """Return what is timed: each predicts all files once."""
    weights = folder / "weights.pth"
    torch.manual_seed(0)
    torch.save(fourstage.create_model(model).state_dict(), weights)
    predictor: Any = fourstage.load(model, weights=weights)
    network, prepared_1CHW = predictor.network, torch.randn(1, *predictor.network.default_cfg["input_size"])

    @torch.inference_mode()
    def bare() -> None:
        for path in paths:
            read_image(path, orient=False)
            network(prepared_1CHW)

    @torch.inference_mode()
    def prepared() -> None:
        for path in paths:
            pixels_HW3 = read_image(path, orient=False)
            sample = predictor.task.transform(Sample("", pixels_HW3, pixels_HW3.shape[:2]))
            network(sample.image[None])

    return {"bare": bare, "prepared": prepared, "predictor": lambda: [predictor(path) for path in paths]}


def measured(model: str, count: int, rounds: int) -> dict[str, Any]:
    """Return the median milliseconds of an image of each side, and the quartiles of the predictor's ratios to both."""
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        runs = sides(model, Path(folder), photographs(Path(folder), count))
        for turn in range(rounds + 1):
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                if turn:
                    times.setdefault(name, []).append((time.perf_counter() - start) / count * 1000)
    record: dict[str, Any] = {
        "model": model,
        "images": count,
        "threads": torch.get_num_threads(),
        **machine(torch.device("cpu")),
    }
    for name, each in times.items():
        record[f"{name}_ms"] = round(statistics.median(each), 2)
    for name in ("bare", "prepared"):
        ratios = [a / b for a, b in zip(times["predictor"], times[name], strict=True)]
        record[f"over_{name}"] = [round(x, 3) for x in statistics.quantiles(ratios, n=4)]
    return record


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="visformer_tiny", metavar="NAME")
    parser.add_argument("--images", type=int, default=40, metavar="N")
    parser.add_argument("--rounds", type=int, default=7, metavar="N")
    parser.add_argument("--threads", type=int, metavar="N")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads or torch.get_num_threads())
    record = measured(args.model, args.images, args.rounds)
    print(json.dumps(record))
    with RESULTS.open("a") as file:
        file.write(json.dumps(record) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
