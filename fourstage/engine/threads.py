"""The number of torch's threads and of loader workers.

Together they are no more than the cores. Threads are fewer where cores are busy and steps are faster with fewer.
"""

import os
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from statistics import median

import torch

from fourstage.cores import available_cores, busy_cores, threads_by_user

MOST_WORKERS = 8  # of a process on a GPU
PAIRS = 5  # steps with each number of threads that are compared
PATIENCE = 10.0  # seconds for the comparison
GAIN = 0.9  # fewer threads are taken where a step takes at most this share of the time


def cores_of_process() -> int:
    """Return how many cores this process may use; `torchrun` starts several on a machine, which share them."""
    here = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, available_cores() // (int(here) if here.isdigit() and int(here) else 1))


def loader_workers(asked: int | None, device: torch.device) -> int:
    """Return the number of loader processes.

    Args:
        asked: by the recipe; None: as many as leave enough cores for computing.
    """
    cores = cores_of_process()
    if asked is not None:
        return min(asked, cores)
    return min(MOST_WORKERS, cores - 1) if device.type == "cuda" else cores // 4


@contextmanager
def limited_threads(workers: int) -> Generator[None]:
    """While entered, leave a core to each loader worker, unless the user chose the number of threads."""
    before = torch.get_num_threads()
    if not threads_by_user():
        torch.set_num_threads(max(1, min(before, cores_of_process() - workers)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def keep_threads(threads: int) -> None:
    """Compute with the threads that a run had before, unless the user chose others or there are fewer cores now."""
    if not threads_by_user() and threads <= cores_of_process():
        torch.set_num_threads(threads)


def choose_threads(step: Callable[[], None]) -> str | None:
    """Use fewer threads from here on if cores are busy and steps are measured to be faster with fewer.

    Args:
        step: computes what takes the time of a training step, and leaves everything as it is.

    Returns:
        A sentence for the user, or None where every thread has a free core.
    """
    threads, busy = torch.get_num_threads(), busy_cores()
    if threads == 1 or threads_by_user() or busy is None:
        return None
    cores = cores_of_process()
    free = max(0.0, cores - busy)
    if free > threads - 0.5:
        return None
    fewer = min(max(1, round(free)), threads - 1)
    found = f"Other programs keep {min(busy, cores):.1f} of {cores} cores busy"
    seconds = _measured(step, threads, fewer)
    if seconds is None:
        return f"{found}; steps take too long to compare numbers of threads, so {threads} are used."
    with_all, with_fewer = median(seconds[threads]), median(seconds[fewer])
    chosen = fewer if with_fewer < GAIN * with_all else threads
    torch.set_num_threads(chosen)
    return (
        f"{found}; a step takes {with_all:.3g} s with {threads} threads and {with_fewer:.3g} s with {fewer}, so "
        f"{chosen} {'is' if chosen == 1 else 'are'} used."
    )


def _measured(step: Callable[[], None], *numbers: int) -> dict[int, list[float]] | None:
    """Return seconds of steps with these numbers of threads, taken in turns; None where a single step takes long."""
    seconds: dict[int, list[float]] = {number: [] for number in numbers}
    began = time.monotonic()
    for pair in range(PAIRS + 1):
        for number in numbers if pair % 2 else numbers[::-1]:
            torch.set_num_threads(number)
            start = time.monotonic()
            step()
            if pair:  # the first pair warms up
                seconds[number].append(time.monotonic() - start)
            elif time.monotonic() - start > PATIENCE / 4:
                torch.set_num_threads(numbers[0])
                return None
        if pair and time.monotonic() - began > PATIENCE:
            break
    torch.set_num_threads(numbers[0])
    return seconds
