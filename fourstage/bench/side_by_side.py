"""Two networks that do the same work, side by side in one run: wall and processor seconds of a step, and peak memory.

They take turns, the order turning around from round to round, so that a machine that is busy for a while is so for
both. Processor seconds are those of this process, all threads together; on a machine that others use they survive.
Memory is that of a process of its own for each step, see `memory`.
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
from rich.console import Console
from rich.table import Table
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
PEAK = "--peak"  # how a script is told to measure memory: --peak SIDE MODE
CLOCKS: Mapping[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Duel:
    """What one mode gave.

    Attributes:
        seconds: of a step: by clock, by side, round by round.
        peaks: bytes, by side; None: not known here.
    """

    seconds: Mapping[str, Mapping[str, tuple[float, ...]]]
    peaks: Mapping[str, int | None]

    def times_as_fast(self, clock: str) -> Spread:
        """The peer's seconds over ours, round by round."""
        return ratio(self.seconds[clock][PEER], self.seconds[clock][OURS])

    @property
    def memory(self) -> float | None:
        """Our peak over the peer's."""
        ours, peer = (self.peaks.get(side) for side in SIDES)
        return ours / peer if ours and peer else None


def training_step(network: nn.Module, loss: Callable[[], Tensor]) -> Step:
    """Loss, backward, and an update by AdamW, all of it work as usual; at a learning rate of 0 nothing moves."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.0)

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def duel(make: Make, mode: str, seconds: float, peaks: Mapping[str, int | None]) -> Duel:
    """Let both take turns for about so many seconds on the wall, in at least three rounds."""
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
    return Duel({clock: {side: tuple(v) for side, v in sides.items()} for clock, sides in taken.items()}, peaks)


# -------------------------------------------------------------------------------------------------------- memory


def peaks(script: str | Path, mode: str, arguments: Sequence[str]) -> dict[str, int | None]:
    """Peak bytes of a step of each side, which the script measures in processes of their own by `tell_peak`."""
    out: dict[str, int | None] = {}
    for side in SIDES:
        done = subprocess.run(
            [sys.executable, str(script), *arguments, PEAK, side, mode],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **memory.AT_ONCE},
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise ValueError(f"the process that measures the memory of {side} failed: {last}")
        out[side] = json.loads(done.stdout.splitlines()[-1])
    return out


def tell_peak(make: Make, side: str, mode: str) -> None:
    """Measure one step in this process, and print its peak bytes as JSON."""
    print(json.dumps(memory.peak_of(lambda: make(side, mode))))


# ----------------------------------------------------------------------------------------------------- results


def line(model: str, peer: str, mode: str, found: Duel) -> dict[str, Any]:
    """All that is known, for a file of JSON lines."""
    return {
        "model": model,
        "peer": peer,
        "mode": mode,
        "seconds": {
            clock: {side: round(spread(values).median, 4) for side, values in sides.items()}
            for clock, sides in found.seconds.items()
        },
        "times_as_fast": {
            clock: {key: round(getattr(found.times_as_fast(clock), key), 4) for key in ("median", "low", "high")}
            for clock in found.seconds
        },
        "rounds": {
            clock: {side: [round(v, 4) for v in values] for side, values in sides.items()}
            for clock, sides in found.seconds.items()
        },
        "peak_mib": {side: None if peak is None else round(peak / 2**20, 1) for side, peak in found.peaks.items()},
        "peak_over_peer": None if found.memory is None else round(found.memory, 4),
    }


HEAD = ("", "", "ours s", "peer s", "times as fast", "by processor time", "ours MiB", "MiB x peer")


def cells(model: str, mode: str, found: Duel) -> list[str]:
    """A row for a person."""
    ours, peer = (f"{spread(found.seconds['cpu'][side]).median:.3f}" for side in SIDES)
    wall, cpu = (found.times_as_fast(clock) for clock in ("wall", "cpu"))
    peak = found.peaks.get(OURS)
    return [
        model,
        mode,
        ours,
        peer,
        *(f"{value.median:.2f} ({value.low:.2f} to {value.high:.2f})" for value in (wall, cpu)),
        "-" if peak is None else f"{peak / 2**20:.0f}",
        "-" if found.memory is None else f"{found.memory:.2f}",
    ]


# ----------------------------------------------------------------------------------------------------- scripts


@dataclass(frozen=True)
class Pair:
    """Whom a script compares.

    Attributes:
        model: what ours is called.
        peer: what the other is called.
        make: the steps of both.
        arguments: with which the script makes these two.
    """

    model: str
    peer: str
    make: Make
    arguments: Sequence[str]


def add_options(top: argparse.ArgumentParser, results: Path, *, size: int, seconds: float, each: str) -> None:
    """What every script of duels can be told; `seconds` are for `each`, such as "mode"."""
    top.add_argument("--size", type=int, default=size, metavar="PX", help=f"a side of the images; default: {size}")
    top.add_argument(
        "--seconds", type=float, default=seconds, metavar="S", help=f"for each {each}; default: {seconds:g}"
    )
    top.add_argument("--threads", type=int, metavar="N")
    top.add_argument("--mode", choices=MODES, help="one of the two; default: both")
    top.add_argument("--out", type=Path, default=results, metavar="FILE", help=f"default: {results.name} in results")
    top.add_argument(PEAK, nargs=2, metavar=("SIDE", "MODE"), help=argparse.SUPPRESS)


def measure(script: str, pair: Pair, args: argparse.Namespace, conditions: Mapping[str, Any]) -> Iterator[list[str]]:
    """The pair in each mode that `args`, see `add_options`, asks for: a line for its file, and a row for a person."""
    threads = str(torch.get_num_threads())
    given = [*pair.arguments, "--size", str(args.size), "--threads", threads]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for mode in [args.mode] if args.mode else MODES:
        found = duel(pair.make, mode, args.seconds, peaks(script, mode, given))
        where = {"size": args.size, **conditions, "machine": machine(torch.device("cpu"))}
        append_jsonl(args.out, [{**line(pair.model, pair.peer, mode, found), **where}])
        yield cells(pair.model, mode, found)


def show(rows: Iterable[Sequence[str]], *more: str) -> None:
    """Print rows below `HEAD` and the titles of `more` columns."""
    table = Table(*HEAD, *more, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*row)
    Console(highlight=False, width=160).print(table)
