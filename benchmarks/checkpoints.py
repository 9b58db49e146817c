"""Time to save and to read a checkpoint with and without the sum of its bytes, in turns.

    python benchmarks/checkpoints.py [--model swin_tiny] [--rounds 9] [--folder /tmp]

The checkpoint is that of a training: a network, its average and the two moments of AdamW. Each round does each task
once, in turns. Figures are medians, in milliseconds, of wall time (with the sync to the disk) and of processor time,
and the ratio is the median of the ratios within rounds.

| task | description |
| --- | --- |
| save, plain | `torch.save`, flushed and synced |
| save, with sum | the same with the CRC-32 of the bytes behind it, as runs save |
| torch.load | `torch.load(weights_only=True)`, which checks no sum |
| load_state | the sum, then `torch.load` |
| read, no sum | the reader for files from anyone, on a file without a sum: it compares the archive's own sums |
| read, with sum | the same on a file with its sum |
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

import fourstage
from fourstage.checksums import write_summed
from fourstage.engine.state import load_state
from fourstage.weights.reading.safe import read_checkpoint

PAIRS = (("save, with sum", "save, plain"), ("load_state", "torch.load"), ("read, with sum", "read, no sum"))


def training_state(model: str) -> dict[str, Any]:
    """Return the state of a training after its first step, as a run saves it."""
    network = fourstage.create_model(model)
    optimizer = torch.optim.AdamW(network.parameters())
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    weights = network.state_dict()
    return {"fourstage": 1, "model": weights, "ema": dict(weights), "optimizer": optimizer.state_dict()}


def synced(path: Path, write: Callable[[Any], object]) -> None:
    with path.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


def tasks(state: dict[str, Any], folder: Path) -> dict[str, Callable[[], object]]:
    plain, summed = folder / "plain.pt", folder / "summed.pt"

    def save(file: Any) -> None:
        torch.save(state, file)

    return {
        "save, plain": lambda: synced(plain, save),
        "save, with sum": lambda: synced(summed, lambda file: write_summed(file, save)),
        "torch.load": lambda: torch.load(summed, map_location="cpu", weights_only=True),
        "load_state": lambda: load_state(summed),
        "read, no sum": lambda: read_checkpoint(plain),
        "read, with sum": lambda: read_checkpoint(summed),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="swin_tiny")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--folder", type=Path, help="where the files are written; default: the temporary folder")
    args = parser.parse_args()
    state = training_state(args.model)
    with TemporaryDirectory(dir=args.folder) as folder:
        work = tasks(state, Path(folder))
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in work}
        for number in range(args.rounds + 1):
            names = list(work) if number % 2 else [*list(work)[1::-1], *list(work)[:1:-1]]
            for name in names:
                wall, processor = time.perf_counter(), time.process_time()
                work[name]()
                if number:  # the first round fills caches
                    times[name].append((time.perf_counter() - wall, time.process_time() - processor))
        megabytes = (Path(folder) / "summed.pt").stat().st_size / 1e6
    for name, pairs in times.items():
        row = {"task": name, "MB": round(megabytes)}
        row |= {key: round(1000 * median(pair[i] for pair in pairs), 1) for i, key in enumerate(("wall ms", "cpu ms"))}
        print(json.dumps(row))
    for one, other in PAIRS:
        for i, clock in enumerate(("wall", "processor time")):
            ratios = [a[i] / b[i] for a, b in zip(times[one], times[other], strict=True)]
            print(f"{one} / {other}, {clock}: {median(ratios):.3f}")


if __name__ == "__main__":
    main()
