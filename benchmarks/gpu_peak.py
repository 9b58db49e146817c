"""Measure what a device reaches at its best: products of large square matrices, and copies of memory.

    benchmarks/gpu_peak.py --device cuda [--out FILE]

The page of `make gpu` divides the arithmetic of a network by these figures, which is its share of the peak.
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from fourstage.bench.machine import machine
from fourstage.bench.results import append_jsonl

RESULTS = Path(__file__).parent / "results" / "gpu_peak.jsonl"
ROUNDS = 10
WAYS = {"float32": (torch.float32, "highest"), "tf32": (torch.float32, "high"),
        "bfloat16": (torch.bfloat16, "highest"), "float16": (torch.float16, "highest")}  # fmt: skip


def shortest(run: Callable[[], object], device: torch.device) -> float:
    """Return the shortest seconds of several runs."""
    taken = []
    for _ in range(ROUNDS + 2):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - start)
    return min(taken[2:])


def teraflops(side: int, dtype: torch.dtype, precision: str, device: torch.device) -> float:
    """Return 10^12 operations a second of a product of two square matrices; a multiply-accumulate is two."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        return 2 * side**3 / shortest(lambda: a @ b, device) / 1e12
    finally:
        torch.set_float32_matmul_precision(before)


def gigabytes(count: int, device: torch.device) -> float:
    """Return 10^9 bytes a second that a copy reads and writes."""
    source, target = (torch.empty(count, device=device) for _ in range(2))
    return 2 * source.nbytes / shortest(lambda: target.copy_(source), device) / 1e9


def main(arguments: Sequence[str] | None = None) -> int:
    top = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    top.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    top.add_argument("--tiny", action="store_true", help="small matrices, for a test of the script")
    top.add_argument("--out", type=Path, default=RESULTS, metavar="FILE", help=f"default: {RESULTS.name} in results")
    args = top.parse_args(arguments)
    if args.device == "cuda" and not torch.cuda.is_available():
        print("gpu_peak.py: torch sees no GPU; type --device cpu --tiny to try the script", file=sys.stderr)
        return 2
    device, failed = torch.device(args.device), False
    args.out.parent.mkdir(parents=True, exist_ok=True)
    runs: dict[str, Callable[[], float]] = {
        name: lambda dtype=dtype, precision=precision: teraflops(256 if args.tiny else 8192, dtype, precision, device)
        for name, (dtype, precision) in WAYS.items()
    }
    runs["copy"] = lambda: gigabytes(2**18 if args.tiny else 2**28, device)
    for name, run in runs.items():
        try:
            line: Mapping[str, object] = {"what": name, "unit": "GB/s" if name == "copy" else "TFLOP/s", "value": run()}
        except RuntimeError as error:  # memory, or a type that the device does not multiply
            line, failed = {"what": name, "error": str(error).splitlines()[0]}, True
        append_jsonl(args.out, [{**line, "machine": machine(device)}])
        print(name, line, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
