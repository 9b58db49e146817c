"""Measure two networks that do the same work side by side in one run: seconds of a step and peak memory.

The two take turns, and their order is reversed from round to round, so that other load on the machine slows down both
alike. Processor seconds are those of this process, all threads together; they stay valid on a shared machine. Memory
is measured in a separate process for each step, see `memory`.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fourstage.bench import memory
from fourstage.bench.machine import machine
from fourstage.bench.results import append_jsonl
from fourstage.bench.timing import Spread, ratio, spread

Step = Callable[[], Any]
Make = Callable[[str, str], Step]  # of a side and a mode, such as "ours" and "train"
OURS, PEER = "ours", "peer"
SIDES = (OURS, PEER)
MODES = ("infer", "train")
ROUNDS, FEWEST = 20, 3
PEAK = "--peak"  # makes a script measure memory alone: --peak SIDE MODE
CLOCKS: Mapping[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class PairedResult:
    """The measurements of both sides in one mode.

    Attributes:
        seconds: seconds of a step, by clock, then by side: one value per round.
        peaks: peak bytes by side; None where the system does not report them.
    """

    seconds: Mapping[str, Mapping[str, tuple[float, ...]]]
    peaks: Mapping[str, int | None]

    def times_as_fast(self, clock: str) -> Spread:
        """Return the peer's seconds over ours, round by round."""
        return ratio(self.seconds[clock][PEER], self.seconds[clock][OURS])

    @property
    def memory(self) -> float | None:
        """Our peak memory over the peer's."""
        ours, peer = (self.peaks.get(side) for side in SIDES)
        return ours / peer if ours and peer else None


def training_step(network: nn.Module, loss: Callable[[], Tensor]) -> Step:
    """Return a step of loss, backward and AdamW. The learning rate is 0, so that the weights stay as they are."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.0)

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def measure_pair(make: Make, mode: str, seconds: float, peaks: Mapping[str, int | None]) -> PairedResult:
    """Time both sides in turns for about `seconds` of wall time, in at least three rounds."""
    steps = {side: make(side, mode) for side in SIDES}
    for step in steps.values():
        step()
    taken: dict[str, dict[str, list[float]]] = {clock: {side: [] for side in SIDES} for clock in CLOCKS}
    start = time.perf_counter()
    for number in range(ROUNDS):
        if number >= FEWEST and time.perf_counter() - start > seconds:
            break
        for side in SIDES if number % 2 == 0 else SIDES[::-1]:
            before = {clock: now() for clock, now in CLOCKS.items()}
            steps[side]()
            for clock, now in CLOCKS.items():
                taken[clock][side].append(now() - before[clock])
    return PairedResult({clock: {side: tuple(v) for side, v in sides.items()} for clock, sides in taken.items()}, peaks)


# -------------------------------------------------------------------------------------------------------- memory


def peaks(script: str | Path, mode: str, arguments: Sequence[str]) -> dict[str, int | None]:
    """Return peak bytes of a step of each side. The script measures each in a separate process by `print_peak`.

    Raises:
        ValueError: a process failed; the sentence has its last line.
    """
    out: dict[str, int | None] = {}
    for side in SIDES:
        done = subprocess.run(
            [sys.executable, str(script), *arguments, PEAK, side, mode],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **memory.RETURN_MEMORY},
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise ValueError(f"the process that measures the memory of {side} failed: {last}")
        out[side] = json.loads(done.stdout.splitlines()[-1])
    return out


def print_peak(make: Make, side: str, mode: str) -> None:
    """Measure one step in this process and print its peak bytes as JSON."""
    print(json.dumps(memory.peak_of(lambda: make(side, mode))))


# ----------------------------------------------------------------------------------------------------- results


def line(model: str, peer: str, mode: str, result: PairedResult) -> dict[str, Any]:
    """Return all measurements as one record of a JSON lines file."""
    return {
        "model": model,
        "peer": peer,
        "mode": mode,
        "seconds": {
            clock: {side: round(spread(values).median, 4) for side, values in sides.items()}
            for clock, sides in result.seconds.items()
        },
        "times_as_fast": {
            clock: {key: round(getattr(result.times_as_fast(clock), key), 4) for key in ("median", "low", "high")}
            for clock in result.seconds
        },
        "rounds": {
            clock: {side: [round(v, 4) for v in values] for side, values in sides.items()}
            for clock, sides in result.seconds.items()
        },
        "peak_mib": {side: None if peak is None else round(peak / 2**20, 1) for side, peak in result.peaks.items()},
        "peak_over_peer": None if result.memory is None else round(result.memory, 4),
    }


HEAD = ("", "", "ours s", "peer s", "times as fast", "by processor time", "ours MiB", "MiB x peer")


def cells(model: str, mode: str, result: PairedResult) -> list[str]:
    """Return one row of the printed table."""
    ours, peer = (f"{spread(result.seconds['cpu'][side]).median:.3f}" for side in SIDES)
    wall, cpu = (result.times_as_fast(clock) for clock in ("wall", "cpu"))
    peak = result.peaks.get(OURS)
    return [
        model,
        mode,
        ours,
        peer,
        *(f"{value.median:.2f} ({value.low:.2f} to {value.high:.2f})" for value in (wall, cpu)),
        "-" if peak is None else f"{peak / 2**20:.0f}",
        "-" if result.memory is None else f"{result.memory:.2f}",
    ]


# ----------------------------------------------------------------------------------------------------- scripts


@dataclass(frozen=True)
class Pair:
    """The two networks that a script compares.

    Attributes:
        model: name of our network.
        peer: name of the other network.
        make: builds the step of a side and a mode.
        arguments: command line arguments with which the script builds these two.
    """

    model: str
    peer: str
    make: Make
    arguments: Sequence[str]


def add_options(top: argparse.ArgumentParser, results: Path, *, size: int, seconds: float, each: str) -> None:
    """Add the options that all paired benchmarks share; `seconds` are for `each`, such as "mode"."""
    top.add_argument("--size", type=int, default=size, metavar="PX", help=f"a side of the images; default: {size}")
    top.add_argument(
        "--seconds", type=float, default=seconds, metavar="S", help=f"for each {each}; default: {seconds:g}"
    )
    top.add_argument("--threads", type=int, metavar="N")
    top.add_argument("--mode", choices=MODES, help="one of the two; default: both")
    top.add_argument("--out", type=Path, default=results, metavar="FILE", help=f"default: {results.name} in results")
    top.add_argument(PEAK, nargs=2, metavar=("SIDE", "MODE"), help=argparse.SUPPRESS)


def measure(script: str, pair: Pair, args: argparse.Namespace, conditions: Mapping[str, Any]) -> Iterator[list[str]]:
    """Measure the pair in each mode of `args` (see `add_options`): append a line to the file, yield a table row."""
    threads = str(torch.get_num_threads())
    given = [*pair.arguments, "--size", str(args.size), "--threads", threads]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for mode in [args.mode] if args.mode else MODES:
        result = measure_pair(pair.make, mode, args.seconds, peaks(script, mode, given))
        where = {"size": args.size, **conditions, "machine": machine(torch.device("cpu"))}
        append_jsonl(args.out, [{**line(pair.model, pair.peer, mode, result), **where}])
        yield cells(pair.model, mode, result)


def show(rows: Iterable[Sequence[str]], *more: str) -> None:
    """Print rows below the titles of `HEAD` and of `more` columns."""
    from rich.console import Console  # `make gpu` may run where it is missing, and shows nothing
    from rich.table import Table

    table = Table(*HEAD, *more, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*row)
    Console(highlight=False, width=160).print(table)
