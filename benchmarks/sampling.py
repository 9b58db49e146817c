"""Time deformable sampling by each form, and torchvision's operator beside them, on one device.

The work is one DCNv3 layer of `unified_dcn_v3_tiny` in stage 1: 3 x 3 points for each cell, offset by about a cell.
The least traffic reads the map, the locations and the weights once and writes the result once.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torchvision.ops import deform_conv2d

from fourstage.bench.machine import machine
from fourstage.ops.sampling import FORMS, Form, deformable_sample, kernel_cells

RESULTS = Path(__file__).parent / "results" / "sampling.jsonl"
KERNEL = 3
HEADS, DIM = 4, 16
ROUNDS = 15


class Work:
    """Inputs of one layer. B images, H x W cells, h heads of d channels, P points."""

    def __init__(self, batch: int, side: int, dtype: torch.dtype, device: torch.device) -> None:
        torch.manual_seed(0)
        points, queries = KERNEL**2, side * side
        self.map_BHWhd = torch.randn(batch, side, side, HEADS, DIM, device=device, dtype=dtype, requires_grad=True)
        self.offsets_BQhP2 = torch.randn(batch, queries, HEADS, points, 2, device=device).requires_grad_()
        self.weights_BQhP = torch.rand(batch, queries, HEADS, points, device=device).requires_grad_()
        self.cells = kernel_cells(side, side, KERNEL, device=device)[None, :, None, None]

    @property
    def leaves(self) -> list[Tensor]:
        return [self.map_BHWhd, self.offsets_BQhP2, self.weights_BQhP]

    @property
    def traffic(self) -> int:
        """Bytes that must move at least, forward."""
        result = self.map_BHWhd
        return sum(x.numel() * x.element_size() for x in (*self.leaves, result))

    def by_form(self, form: Form) -> Tensor:
        return deformable_sample(
            [self.map_BHWhd],
            self.offsets_BQhP2[:, :, :, None],
            self.weights_BQhP[:, :, :, None],
            cells_BQhLP2=self.cells,
            form=form,
        )

    def by_torchvision(self) -> Tensor:
        """A modulated deformable convolution whose kernel adds up the points of each head: the same sum of readings."""
        batch, height, width, heads, dim = self.map_BHWhd.shape
        map_BCHW = self.map_BHWhd.float().flatten(3).movedim(-1, 1)
        order = torch.arange(KERNEL**2, device=map_BCHW.device).view(KERNEL, KERNEL).T.flatten()  # theirs: row by row
        offsets = self.offsets_BQhP2[:, :, :, order].flip(-1).permute(0, 2, 3, 4, 1).reshape(batch, -1, height, width)
        mask = self.weights_BQhP[:, :, :, order].permute(0, 2, 3, 1).reshape(batch, -1, height, width)
        kernel = map_BCHW.new_ones(heads * dim, 1, KERNEL, KERNEL)
        out_BCHW = deform_conv2d(map_BCHW, offsets, kernel, padding=(KERNEL // 2, KERNEL // 2), mask=mask)
        return out_BCHW.flatten(2).transpose(1, 2).to(self.map_BHWhd.dtype)


def seconds(step: Callable[[], object], device: torch.device) -> float:
    """Return the median of several rounds."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    taken = []
    for _ in range(ROUNDS + 3):
        wait()
        start = time.perf_counter()
        step()
        wait()
        taken.append(time.perf_counter() - start)
    return median(taken[3:])


def measure(work: Work, name: str, run: Callable[[], Tensor], device: torch.device) -> dict[str, object]:
    def train() -> None:
        torch.autograd.grad(run().sum(), work.leaves)

    with torch.inference_mode():
        forward = seconds(run, device)
    return {
        "form": name,
        "dtype": str(work.map_BHWhd.dtype).removeprefix("torch."),
        "shape": list(work.map_BHWhd.shape),
        "forward_ms": 1e3 * forward,
        "backward_ms": 1e3 * seconds(train, device) if name != "embedding_bag" else None,
        "gigabytes_per_second": work.traffic / forward / 1e9,
        "machine": machine(device),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    top = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    top.add_argument("--device", choices=("cuda", "cpu"), default="cpu")
    top.add_argument("--tiny", action="store_true", help="one small map, for a test of the script")
    top.add_argument("--out", type=Path, default=RESULTS, metavar="FILE", help="default: sampling.jsonl in results")
    args = top.parse_args(arguments)
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        top.error("torch sees no GPU; leave --device out to measure on the CPU")
    batch, side = (1, 8) if args.tiny else (64, 56) if device.type == "cuda" else (2, 56)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for dtype in (torch.float32, torch.bfloat16):
        work = Work(batch, side, dtype, device)
        forms: dict[str, Callable[[], Tensor]] = {name: partial(work.by_form, name) for name in FORMS}
        forms["gather, compiled"] = torch.compile(partial(work.by_form, "gather"))
        forms["torchvision"] = work.by_torchvision
        expected = work.by_form("grid_sample").detach().float()
        for name, run in forms.items():
            if args.tiny and "compiled" in name:
                continue
            error = float((run().detach().float() - expected).norm() / expected.norm())
            assert error < 2e-2, f"{name} differs from grid_sample by {error:.2g} of its norm"
            line = measure(work, name, run, device) | {"error": error}
            with args.out.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(f"{name:20} {line['dtype']:9} {line['forward_ms']:9.3f} ms forward", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
