"""How OpenMP's threads wait for each other: they spin while their cores are free, and sleep while others need them.

A spinning thread starts its next piece of work at once, but beside another busy program it keeps a core from the thread
that it waits for. GNU's OpenMP, which PyTorch's packages for Linux contain, spins less or not at all while a process
has more OpenMP threads than processors (libgomp's manual, GOMP_SPINCOUNT). Reserves are such threads: they compute
nothing, so that no bit of a result depends on them.
"""

import threading
from collections.abc import Generator
from contextlib import contextmanager

import torch

from fourstage.cores import Others, available_cores, waiting_by_user

PERIOD = 0.25  # seconds between two looks at the processors
BEGIN, END = 0.3, 0.1  # cores that threads lack: above BEGIN they sleep; below END in CALM looks they spin again
CALM = 4
MOST_RESERVES = 16  # threads of Python, each with threads of OpenMP
ELEMENTS = 1 << 20  # of a tensor that is large enough for all threads to work on


@contextmanager
def yielding_cores() -> Generator[None]:
    """While entered, threads sleep while they wait whenever other programs need their cores.

    Nothing is done for a single thread, where the user chose a policy, and where the system does not count.
    """
    threads, others = torch.get_num_threads(), Others()
    if threads == 1 or waiting_by_user() or others.before is None:
        yield
        return
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(ended, threads, others), name="waiting", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def _watch(ended: threading.Event, threads: int, others: Others) -> None:
    spare, calm = available_cores() - threads, 0
    reserves: Reserves | None = None
    while not ended.wait(PERIOD):
        lacking = (others() or 0.0) - spare
        calm = calm + 1 if lacking < END else 0
        if reserves is None and lacking > BEGIN:
            reserves = Reserves(threads)
        elif reserves is not None and calm == CALM:
            reserves.close()
            reserves = None
    if reserves is not None:
        reserves.close()


class Reserves:
    """OpenMP threads that compute nothing: with them, the process has more OpenMP threads than processors.

    Args:
        threads: of OpenMP that a thread of Python computes with, at least two.
    """

    def __init__(self, threads: int) -> None:
        self.closing = threading.Event()
        count = -(-(available_cores() - threads + 1) // (threads - 1))
        self.holders = [threading.Thread(target=self._hold, daemon=True) for _ in range(min(count, MOST_RESERVES))]
        for holder in self.holders:
            holder.start()

    def _hold(self) -> None:
        torch.zeros(ELEMENTS).add_(1)  # starts OpenMP threads of its own, which live as long as this thread
        self.closing.wait()

    def close(self) -> None:
        """End the threads."""
        self.closing.set()
        for holder in self.holders:
            holder.join()
