"""Processor cores: how many this process may use, how many are free, and how its threads wait for each other.

Only the standard library, because a policy of waiting must be in the environment before torch is imported.
"""

import os
import time
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path

# GNU's, LLVM's and Intel's OpenMP read these once, when torch loads them. GNU's then spins for about 3 ms, and not at
# all while a process has more of its threads than processors, which engine/waiting.py brings about; others never spin.
WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "300000"}
WAITING_BY_USER = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
THREADS_BY_USER = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
LIMITS, MEMBERSHIP, ACCOUNTS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"), Path("/proc/stat")


def set_waiting(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set how OpenMP's threads wait for each other, unless the user chose it."""
    if not waiting_by_user(environment):
        environment.update(WAITING)


def waiting_by_user(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether the user, and no command of ours, chose how threads wait for each other."""
    chosen = {name: value for name in WAITING_BY_USER if (value := environment.get(name))}
    return bool(chosen) and chosen != WAITING


def threads_by_user() -> bool:
    """Return whether the user, or a launcher such as torchrun, chose the number of threads."""
    return any(os.environ.get(name) for name in THREADS_BY_USER)


def number_by_user(environment: Mapping[str, str] = os.environ) -> int | None:
    """Return the number of threads that the user set for OpenMP; None: none, or no number."""
    values = [environment.get(name, "") for name in THREADS_BY_USER]
    return next((int(value) for value in values if value.isascii() and value.isdecimal() and int(value)), None)


def available_cores() -> int:
    """Return how many processors this process may use: by its affinity and by the limits of its control groups."""
    cores = len(_mine())
    return max(1, min([cores, *(int(limit) for limit in _quotas())]))


def busy_cores(seconds: float = 0.25) -> float | None:
    """Sleep, and return how many of its processors other processes keep busy; None: it is not known."""
    others = Others()
    time.sleep(seconds)
    return others()


class Others:
    """Each call returns how many of this process's processors others kept busy since the call before.

    None: it is not known.
    """

    def __init__(self) -> None:
        self.before, self.own = _idle_and_total(), time.process_time()

    def __call__(self) -> float | None:
        before, own = self.before, self.own
        self.before, self.own = after, _ = _idle_and_total(), time.process_time()
        if before is None or after is None or after[1] <= before[1]:
            return None
        seconds = (after[1] - before[1]) / len(_mine()) / os.sysconf("SC_CLK_TCK")
        busy = len(_mine()) * (1 - (after[0] - before[0]) / (after[1] - before[1]))
        return max(0.0, busy - (self.own - own) / seconds)


def _mine() -> frozenset[int]:
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def _quotas() -> Iterator[float]:
    """Yield the limits of this process's control groups and of those around them, in processors."""
    try:
        lines = MEMBERSHIP.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        names = controllers.split(",")
        if not controllers:  # version 2
            roots = [LIMITS, LIMITS / "unified"]
        elif "cpu" in names:
            roots = [LIMITS / controllers, LIMITS / "cpu"]
        else:
            continue
        for root in roots:
            for folder in _and_above(root, path):
                quota = _quota(folder)
                if quota is not None:
                    yield quota


def _and_above(root: Path, path: str) -> Iterator[Path]:
    """Yield a control group and those that it is in. In a container, only the root may be visible."""
    parts = [part for part in path.split("/") if part not in ("", "..")]
    for length in range(len(parts), -1, -1):
        yield root.joinpath(*parts[:length])


def _quota(folder: Path) -> float | None:
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return None if quota in ("max", "-1") else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _idle_and_total() -> tuple[int, int] | None:
    """Return the system's ticks of this process's processors so far: those without work, and all."""
    try:
        lines = [line.split() for line in ACCOUNTS.read_text().splitlines()]
    except OSError:
        return None
    names = {f"cpu{number}" for number in _mine()}
    ticks = [[int(value) for value in line[1:9]] for line in lines if line and line[0] in names]
    if not ticks or any(len(one) < 5 for one in ticks):
        return None
    return sum(one[3] + one[4] for one in ticks), sum(sum(one) for one in ticks)
