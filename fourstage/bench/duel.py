"""Two networks that do the same work, side by side in one run: wall and processor seconds of a step, and peak memory.

They take turns, the order turning around from round to round, so that a machine that is busy for a while is so for
both. Processor seconds are those of this process, all threads together; on a machine that others use they survive.
Memory is that of a process of its own for each step, see `memory`.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fourstage.bench import memory
from fourstage.bench.timing import Spread, ratio, spread

Step = Callable[[], Any]
Make = Callable[[str, str], Step]  # of a side and a mode, such as "ours" and "train"
OURS, PEER = "ours", "peer"
SIDES = (OURS, PEER)
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
