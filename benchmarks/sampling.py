"""Time deformable sampling by each form, and torchvision's operator beside them, on one device.

    benchmarks/sampling.py --device cuda [--out FILE]

One work is a DCNv3 layer of `unified_dcn_v3_tiny` in stage 1: 3 x 3 points for each cell, offset by about a cell. The
other is deformable attention in an encoder: 4 points at each of four levels, for each cell of all levels, in 8 heads of
32 channels. At the end, Triton's form is timed with other sizes of a program, written as (elements, warps), which takes
long to compile.
The least traffic reads the map, the locations and the weights once and writes the result once.
"""

import argparse
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torchvision.ops import deform_conv2d

from fourstage.bench.machine import machine
from fourstage.bench.results import append_jsonl
from fourstage.ops import sampling_choice
from fourstage.ops.sampling import FORMS, Form, best_form, deformable_sample, kernel_cells

RESULTS = Path(__file__).parent / "results" / "sampling.jsonl"
KERNEL = 3
HEADS, DIM = 4, 16
ROUNDS = 15
LAUNCHES = ((256, 2), (512, 2), (1024, 2), (2048, 4), (2048, 8))


@dataclass(frozen=True)
class Work:
    """Inputs of one layer. B images, H x W cells, h heads of d channels, L levels, P points."""

    name: str
    maps: list[Tensor]  # (B, H, W, h, d)
    locations_BQhLP2: Tensor
    weights_BQhLP: Tensor
    cells: Tensor | None

    @property
    def leaves(self) -> list[Tensor]:
        return [*self.maps, self.locations_BQhLP2, self.weights_BQhLP]

    @property
    def traffic(self) -> int:
        """Bytes that must move at least, forward."""
        batch, queries, heads = self.weights_BQhLP.shape[:3]
        result = batch * queries * heads * self.maps[0].shape[-1] * self.maps[0].element_size()
        return result + sum(x.numel() * x.element_size() for x in self.leaves)

    def by_form(self, form: Form | None) -> Tensor:
        return deformable_sample(
            self.maps, self.locations_BQhLP2, self.weights_BQhLP, cells_BQhLP2=self.cells, form=form
        )

    def by_torchvision(self) -> Tensor:
        """A modulated deformable convolution whose kernel adds up the points of each head: the same sum of readings."""
        batch, height, width, heads, dim = self.maps[0].shape
        offsets_BQhP2, weights_BQhP = self.locations_BQhLP2[:, :, :, 0], self.weights_BQhLP[:, :, :, 0]
        map_BCHW = self.maps[0].float().flatten(3).movedim(-1, 1)
        order = torch.arange(KERNEL**2, device=map_BCHW.device).view(KERNEL, KERNEL).T.flatten()  # theirs: row by row
        offsets = offsets_BQhP2[:, :, :, order].flip(-1).permute(0, 2, 3, 4, 1).reshape(batch, -1, height, width)
        mask = weights_BQhP[:, :, :, order].permute(0, 2, 3, 1).reshape(batch, -1, height, width)
        kernel = map_BCHW.new_ones(heads * dim, 1, KERNEL, KERNEL)
        out_BCHW = deform_conv2d(map_BCHW, offsets, kernel, padding=(KERNEL // 2, KERNEL // 2), mask=mask)
        return out_BCHW.flatten(2).transpose(1, 2).to(self.maps[0].dtype)


def convolution(batch: int, side: int, dtype: torch.dtype, device: torch.device) -> Work:
    """Return the work of DCNv3: 3 x 3 points around each cell."""
    torch.manual_seed(0)
    points, queries = KERNEL**2, side * side
    map_BHWhd = torch.randn(batch, side, side, HEADS, DIM, device=device, dtype=dtype, requires_grad=True)
    offsets = torch.randn(batch, queries, HEADS, 1, points, 2, device=device).requires_grad_()
    weights = torch.rand(batch, queries, HEADS, 1, points, device=device).requires_grad_()
    cells = kernel_cells(side, side, KERNEL, device=device)[None, :, None, None]
    return Work("convolution", [map_BHWhd], offsets, weights, cells)


def attention(batch: int, side: int, dtype: torch.dtype, device: torch.device) -> Work:
    """Return the work of deformable attention: every cell of four levels reads 4 points at each level."""
    torch.manual_seed(0)
    sides = [max(1, side // 2**i) for i in range(4)]
    maps = [torch.randn(batch, x, x, 8, 32, device=device, dtype=dtype, requires_grad=True) for x in sides]
    queries = sum(x * x for x in sides)
    places = [torch.rand(batch, queries, 8, 1, 4, 2, device=device) * (x + 1) - 1 for x in sides]
    weights = torch.rand(batch, queries, 8, 4, 4, device=device).requires_grad_()
    return Work("attention", maps, torch.cat(places, dim=3).requires_grad_(), weights, None)


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
        "work": work.name,
        "form": name,
        "dtype": str(work.maps[0].dtype).removeprefix("torch."),
        "shape": list(work.maps[0].shape),
        "forward_ms": 1e3 * forward,
        "backward_ms": 1e3 * seconds(train, device) if name != "embedding_bag" else None,
        "gigabytes_per_second": work.traffic / forward / 1e9,
    }


def runs(work: Work) -> dict[str, Callable[[], Tensor]]:
    """Return the forms by name: the plain one first, then those that the device has, and the choice among them."""
    forms: dict[str, Callable[[], Tensor]] = {name: partial(work.by_form, name) for name in FORMS}
    if sampling_choice.may_run_kernel(*work.leaves):
        forms["triton"] = partial(work.by_form, "triton")
    if work.name == "convolution":
        forms["torchvision"] = work.by_torchvision
    learns = best_form(work.maps, work.locations_BQhLP2, work.weights_BQhLP, work.cells)
    return {**forms, f"chosen to train: {learns}": partial(work.by_form, learns)}


def slow_to_compile(work: Work) -> dict[str, Callable[[], Tensor]]:
    """Return what compiles for many seconds: Triton's form in programs of other sizes, and the compiled gather form."""
    kernel = sampling_choice.may_run_kernel(*work.leaves)
    forms = {kernel_name(launch): partial(work.by_form, "triton") for launch in (LAUNCHES if kernel else ())}
    return {**forms, "gather, compiled": torch.compile(partial(work.by_form, "gather"))}


def kernel_name(launch: tuple[int, int] | None) -> str:
    return "triton" if launch is None else f"triton {launch}"


@contextmanager
def launched(name: str) -> Generator[None]:
    """Divide the work of Triton's kernels as a name of `kernel_name` says, forward and backward."""
    launch = next((launch for launch in LAUNCHES if kernel_name(launch) == name), None)
    if launch is None:
        yield
        return
    from fourstage.ops import sampling_kernel

    before = sampling_kernel.FORWARD, sampling_kernel.BACKWARD
    sampling_kernel.FORWARD = sampling_kernel.BACKWARD = sampling_kernel.Launch(*launch)
    try:
        yield
    finally:
        sampling_kernel.FORWARD, sampling_kernel.BACKWARD = before


def lines(
    work: Work, forms: Callable[[Work], dict[str, Callable[[], Tensor]]], device: torch.device
) -> Iterator[dict[str, object]]:
    """Measure every form and yield a line for each; a form that fails costs its line alone."""
    expected = work.by_form("grid_sample").detach().float()
    for name, run in forms(work).items():
        try:
            with launched(name):
                error = float((run().detach().float() - expected).norm() / expected.norm())
                assert error < 2e-2, f"{name} differs from grid_sample by {error:.2g} of its norm"
                line: dict[str, object] = measure(work, name, run, device) | {"error": error}
        except Exception as error:  # a compiler or a kernel may raise anything; the other forms still run
            dtype = str(work.maps[0].dtype).removeprefix("torch.")
            line = {"work": work.name, "form": name, "dtype": dtype, "failed": repr(error)[:300]}
        yield line


def main(arguments: Sequence[str] | None = None) -> int:
    top = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    top.add_argument("--device", choices=("cuda", "cpu"), default="cpu")
    top.add_argument("--tiny", action="store_true", help="small maps, for a test of the script")
    top.add_argument("--out", type=Path, default=RESULTS, metavar="FILE", help="default: sampling.jsonl in results")
    args = top.parse_args(arguments)
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        top.error("torch sees no GPU; leave --device out to measure on the CPU")
    batch, side = (1, 8) if args.tiny else (64, 56) if device.type == "cuda" else (2, 56)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    failed = False
    makes, dtypes = ((convolution, batch), (attention, max(1, batch // 8))), (torch.float32, torch.bfloat16)
    for forms, (make, images), dtype in product((runs,) if args.tiny else (runs, slow_to_compile), makes, dtypes):
        for line in lines(make(images, side, dtype, device), forms, device):
            append_jsonl(args.out, [line | {"machine": machine(device)}])
            failed = failed or "failed" in line
            print(", ".join(f"{key} {value}" for key, value in line.items()), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
