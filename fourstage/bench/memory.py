"""Measure peak memory, and find the largest batch that fits.

On a GPU, peak memory is `max_memory_allocated` over a step, less the memory that was allocated before the model was
built. On the CPU, it is the growth of the resident memory of a separate process, from before the model was built to
its peak: parameters, activations, gradients, the optimiser's state and the work space of the libraries. That process
returns freed memory to the system at once, so that only memory in use is measured.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from typing import Any

from fourstage.bench.options import Options

NO_MEMORY = 3  # exit code of the process when memory ran out
KILLED = -9  # exit code of the process when the system killed it for memory
STEPS = 2  # the optimiser's state exists from the second step on
RETURN_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}  # of the C library

Probe = Callable[[Sequence[str], int], Mapping[str, int | None]]


@dataclass(frozen=True)
class Fit:
    """A batch that fits, and its peak bytes; None where the system does not report them."""

    batch: int
    peak: int | None


def fit(probe: Probe, modes: Sequence[str], batch: int, report: Callable[[str], None]) -> dict[str, Fit]:
    """Return the batch for each mode, halved until it fits.

    Args:
        probe: tries modes at a batch, and returns the peak bytes of those that fit.
        report: is called with a sentence when a batch is halved.

    Raises:
        ValueError: not even one image fits.
    """
    fits: dict[str, Fit] = {}
    while True:
        left = [mode for mode in modes if mode not in fits]
        if not left:
            return fits
        fits |= {mode: Fit(batch, peak) for mode, peak in probe(left, batch).items()}
        left = [mode for mode in left if mode not in fits]
        if not left:
            return fits
        if batch == 1:
            raise ValueError("memory is not enough for a single image; give a smaller --img-size or another --device")
        report(f"memory is not enough for {batch} images ({left[0]}); continuing with {batch // 2}")
        batch //= 2


def peaks_on_cpu(name: str, options: Options, modes: Sequence[str], batch: int) -> dict[str, int | None]:
    """Return peak bytes of each mode that fits, measured in a separate process; None where the system reports none.

    Raises:
        ValueError: the process failed for another reason than memory.
    """
    from fourstage.ops.measure import choose_products
    from fourstage.ops.products import SETTING

    request = json.dumps({"name": name, "options": asdict(options), "modes": list(modes), "batch": batch})
    done = subprocess.run(
        [sys.executable, "-m", "fourstage.bench.memory"],
        input=request,
        capture_output=True,
        text=True,
        check=False,
        # products are chosen here, because memory that is new in every call would distort their times there
        env={**os.environ, **RETURN_MEMORY, SETTING: str(choose_products())},
    )
    if done.returncode not in (0, NO_MEMORY, KILLED):
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ValueError(f"the process that measures the memory of {name} failed: {last}")
    out: dict[str, int | None] = {}
    for line in done.stdout.splitlines():
        out |= json.loads(line)
    return out


def peaks_on_cuda(run: Callable[[str, int], Any], base: int, modes: Sequence[str], batch: int) -> dict[str, int | None]:
    """Return peak bytes of each mode that fits.

    Args:
        run: returns the step of a mode at a batch.
        base: bytes that were in use before the model was built.
    """
    import torch

    from fourstage.bench.workloads import OutOfMemoryError, memory_errors

    out: dict[str, int | None] = {}
    for mode in modes:
        try:
            with memory_errors():
                step = run(mode, batch)
                for _ in range(STEPS):  # cuDNN chooses its kernels, and the graph is compiled
                    step()
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
                step()
                torch.cuda.synchronize()
                out[mode] = torch.cuda.max_memory_allocated() - base
        except OutOfMemoryError:
            break
    return out


# --------------------------------------------------------------------------------------------- the separate process


def main() -> int:
    """Read a request from the standard input; print one JSON line per mode that fits.

    What the user's files print goes to the standard error.
    """
    request, lines = json.load(sys.stdin), sys.stdout
    size = request["options"]["img_size"]
    lists = {"img_size": tuple(size) if size else None, "imports": tuple(request["options"]["imports"])}
    options = Options(**{**request["options"], **lists})
    from fourstage.bench.workloads import OutOfMemoryError, memory_errors

    try:
        with redirect_stdout(sys.stderr), memory_errors():
            for mode, peak in _peaks(request["name"], options, request["modes"], request["batch"]):
                print(json.dumps({mode: peak}), file=lines, flush=True)
    except (OutOfMemoryError, MemoryError):
        return NO_MEMORY
    return 0


def _peaks(name: str, options: Options, modes: Sequence[str], batch: int) -> Iterator[tuple[str, int | None]]:
    import torch

    from fourstage.bench.networks import build, expand, image_for
    from fourstage.bench.workloads import Setting
    from fourstage.user_files import import_files

    if options.threads:
        torch.set_num_threads(options.threads)
    setting = Setting(options, torch.device("cpu"))
    import_files(options.imports)
    expand([name])  # imports what the name needs
    _wake_engines()
    base = _start()
    model = setting.place(build(name, options.img_size, dense=options.dense))
    image_CHW = image_for(model, options.img_size)
    for mode in modes:
        model.train(mode == "train")
        step = setting.step(mode, model, batch, image_CHW)
        for _ in range(STEPS):
            step()
        highest = _highest()
        yield mode, None if highest is None or base is None else highest - base


def peak_of(make: Callable[[], Callable[[], Any]]) -> int | None:
    """Return how many bytes this process grows while a step is built and run; None where the system reports none."""
    _wake_engines()
    base = _start()
    step = make()
    for _ in range(STEPS):
        step()
    highest = _highest()
    return None if highest is None or base is None else highest - base


def _wake_engines() -> None:
    """Run one small step, so that the libraries have allocated their own memory before anything is measured."""
    import torch
    from torch import nn

    small = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.GELU(), nn.Flatten(), nn.Linear(16 * 36, 8))
    small(torch.randn(2, 3, 8, 8)).sum().backward()
    torch.optim.AdamW(small.parameters()).step()


def _start() -> int | None:
    """Return the resident bytes now, and reset the system's record of the peak where it allows that."""
    try:
        with open("/proc/self/clear_refs", "w") as control:  # noqa: PTH123 - not a file to keep
            control.write("5")
    except OSError:
        return _highest()
    return _from_status("VmRSS")


def _highest() -> int | None:
    """Return the peak of the resident bytes; None where the system keeps no record."""
    peak = _from_status("VmHWM")
    if peak is not None:
        return peak
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _from_status(key: str) -> int | None:
    try:
        with open("/proc/self/status") as status:  # noqa: PTH123
            lines = [line.split() for line in status]
    except OSError:
        return None
    return next((int(words[1]) * 1024 for words in lines if words[0] == f"{key}:"), None)


if __name__ == "__main__":
    sys.exit(main())
