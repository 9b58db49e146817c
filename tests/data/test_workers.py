"""A loader process that dies, hangs or has no memory ends the run with a sentence, in seconds, and leaves nothing."""

import errno
import faulthandler
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing
from test_loader import Numbers, noisy

from fourstage.data import workers as workers_module
from fourstage.data.loader import _pinned, evaluation_batches
from fourstage.data.sample import Batch, Sample
from fourstage.data.workers import PATIENCE, Answers, LoaderError

SECONDS = 10  # in which a run must end


@dataclass
class Failing(Numbers):
    """Numbers; one of them does something else, in a loader process."""

    number: int
    act: Callable[[], Any]
    length: int = 40
    broken: int | None = None

    def sample(self, index: int) -> Sample:
        if index == self.number:
            self.act()
        return super().sample(index)


def die(number: int) -> None:
    faulthandler.disable()  # of pytest, which would print the stacks of all threads
    os.kill(os.getpid(), number)
    time.sleep(30)


def killed() -> None:
    die(signal.SIGKILL)


def crashed() -> None:
    die(signal.SIGSEGV)


def bus_error() -> None:
    die(signal.SIGBUS)


def ended() -> None:
    die(signal.SIGTERM)


def left() -> None:
    os._exit(3)


def no_memory() -> None:
    raise MemoryError


def torch_without_memory() -> None:
    raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")


def no_shared_memory() -> None:
    raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")


CAUSES = [
    (killed, r"was killed while it read 7, most likely because memory ran out .*workers=0"),
    (crashed, r"crashed with SIGSEGV while it read 7; .*fourstage data check"),
    (bus_error, r"no room in shared memory while it read 7 \(/dev/shm: .* free\); .*--shm-size=8g.*workers=0"),
    (left, r"ended with exit code 3 while it read 7; .*workers=0"),
    (no_memory, r"memory ran out in a loader process while it read 7.*workers=0.*optimisation.batch_size"),
    (torch_without_memory, r"memory ran out in a loader process while it read 7"),
    (no_shared_memory, r"no room in shared memory while it read 7"),
]


def batches(dataset: Numbers, workers: int) -> Iterator[Batch]:
    return evaluation_batches(dataset, noisy, batch_size=2, workers=workers)


def children() -> list[int]:
    """The loader processes, without the helpers of multiprocessing."""
    return [process.pid for process in multiprocessing.active_children() if process.pid is not None]


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    yield
    assert children() == []
    assert not [thread for thread in threading.enumerate() if thread.name == "fourstage-loader-watch" and hung(thread)]


def hung(thread: threading.Thread) -> bool:
    thread.join(2)
    return thread.is_alive()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("act", "sentence"), CAUSES, ids=[act.__name__ for act, _ in CAUSES])
def test_the_cause_is_named_in_time(act: Callable[[], None], sentence: str, workers: int) -> None:
    started, found = time.monotonic(), []
    with pytest.raises(LoaderError, match=sentence):
        found += batches(Failing(7, act), workers)
    assert time.monotonic() - started < SECONDS
    assert len(found) <= 3


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_other_start_methods(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    context = torch.multiprocessing.get_context(method)
    monkeypatch.setattr(torch.multiprocessing, "get_context", lambda: context)
    assert [batch.ids for batch in batches(Numbers(4), 1)] == [("0", "1"), ("2", "3")]
    with pytest.raises(LoaderError, match="was killed while it read 7"):
        list(batches(Failing(7, killed), 1))


def test_a_kill_for_memory_is_certain_where_the_system_counts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter((3, 4))
    monkeypatch.setattr(workers_module, "count_memory_kills", lambda: next(counts))
    with pytest.raises(LoaderError, match="the system killed a loader process while it read 7 because memory ran out"):
        list(batches(Failing(7, killed), 1))


def stuck() -> None:
    read, _ = os.pipe()
    os.read(read, 1)


def stopped() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


@pytest.mark.parametrize("act", [stuck, stopped])
def test_a_process_that_hangs_is_ended(act: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PATIENCE, "1.5")
    started = time.monotonic()
    with pytest.raises(LoaderError, match=f"no batch for 1.5 seconds while it read 7 .*{PATIENCE}"):
        list(batches(Failing(7, act), 2))
    assert time.monotonic() - started < SECONDS


def test_processes_that_stop_with_answers_in_their_pipes_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The main process then waits in a read, for the tensors of a batch whose message it has."""
    monkeypatch.setenv(PATIENCE, "1.5")
    loaded = batches(Numbers(40), 1)
    next(loaded)
    time.sleep(0.5)
    [worker] = children()
    os.kill(worker, signal.SIGSTOP)
    started = time.monotonic()
    with pytest.raises(LoaderError, match=r"no batch for 1.5 seconds"):
        list(loaded)
    assert time.monotonic() - started < SECONDS


@pytest.mark.parametrize("text", ["soon", "0", "nan"])
def test_the_patience_is_a_number(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PATIENCE, text)
    with pytest.raises(ValueError, match=f"{PATIENCE} is the number of seconds"):
        list(batches(Numbers(4), 1))


def test_sigterm_ends_a_process_after_a_grace_period(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "GRACE", 0.5)
    loaded = batches(Numbers(400), 1)
    next(loaded)
    [worker] = children()
    os.kill(worker, signal.SIGTERM)
    assert next(loaded).ids == ("2", "3")  # a launcher sends it to all; the main process may need one more batch
    time.sleep(1)
    with pytest.raises(LoaderError, match="was ended by SIGTERM"):
        list(loaded)


def test_sigterm_ends_a_process_that_is_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "GRACE", 0.5)
    loaded = batches(Failing(3, stuck), 1)
    threading.Timer(0.5, lambda: [os.kill(pid, signal.SIGTERM) for pid in children()]).start()
    with pytest.raises(LoaderError, match="was ended by SIGTERM while it read 3"):
        list(loaded)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_terminal_does_not_end_them(number: signal.Signals) -> None:
    loaded = batches(Numbers(40), 2)
    first = next(loaded)
    time.sleep(0.3)
    for pid in children():
        os.kill(pid, number)
    assert len([first, *loaded]) == 20


def test_closing_early_waits_for_no_process_that_is_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "FAREWELL", 0.5)
    loaded = batches(Failing(7, stopped), 2)
    next(loaded)
    time.sleep(0.3)
    started = time.monotonic()
    loaded.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert time.monotonic() - started < 4


class OddError(Exception):
    """It cannot be rebuilt from its arguments."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


def odd() -> None:
    raise OddError(1, 2)


def mistake() -> None:
    raise KeyError("a mistake in a class of the user")


def missing() -> None:
    Path("/nowhere").read_bytes()


@pytest.mark.parametrize(
    ("act", "kind", "text"),
    [(odd, RuntimeError, "OddError: 1 and 2"), (mistake, KeyError, "a mistake"), (missing, FileNotFoundError, "nowh")],
)
def test_other_errors_arrive_with_their_traceback(act: Callable[[], None], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text) as caught:
        list(batches(Failing(7, act), 1))
    assert act.__name__ in caught.value.__notes__[0]


def too_many_files(*args: object) -> None:
    raise OSError(errno.EMFILE, "Too many open files")


def test_too_many_open_files_are_no_lost_process(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = batches(Numbers(40), 1)
    next(loaded)
    monkeypatch.setattr(workers_module.Connection, "recv", too_many_files)
    with pytest.raises(ValueError, match="ulimit -n"):
        list(loaded)


PROGRAM = """
import sys, time
sys.path.insert(0, sys.argv[1])
from test_loader import Numbers, noisy
from fourstage.data.loader import evaluation_batches
batches = evaluation_batches(Numbers(4000), noisy, batch_size=2, workers=2)
next(batches)
print("ready", flush=True)
WAIT
"""


def program(wait: str) -> subprocess.Popen[str]:
    code = PROGRAM.replace("WAIT", wait)
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(Path(__file__).parent)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n", process.communicate()[1]
    return process


def family(pid: int) -> list[int]:
    listed = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return [int(word) for word in listed.stdout.split()]


def runs(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_no_process_outlives_a_main_process_that_is_killed() -> None:
    process = program("time.sleep(60)")
    workers = family(process.pid)
    assert len(workers) == 2
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 5
    while any(map(runs, workers)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(runs, workers))


def test_a_program_that_leaves_its_loader_open_ends() -> None:
    """Also with a stopped process; the interpreter ends all of them at its exit."""
    process = program("import os, signal, multiprocessing as m; os.kill(m.active_children()[0].pid, signal.SIGSTOP)")
    _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 0
    assert errors == ""


def test_ready_batches_are_pinned_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[tuple[tuple[str, ...], str]] = []

    def pin(batch: Batch) -> Batch:
        pinned.append((batch.ids, threading.current_thread().name))
        return batch

    monkeypatch.setattr(Batch, "pin_memory", pin)
    loaded = Answers(fetch_ids, iter(range(1, 12)), 2, str)
    found = []
    for batch in _pinned(loaded):  # pyright: ignore[reportArgumentType]
        found.append(batch)
        time.sleep(0.02)
    loaded.close()
    assert [batch.ids for batch in found] == [(str(i),) for i in range(1, 12)]
    assert [ids for ids, _ in pinned] == [batch.ids for batch in found]
    assert any(name.startswith("pin_memory") for _, name in pinned)


def fetch_ids(request: int, place: Callable[[int], None]) -> Batch:
    place(request)
    return Batch((str(request),), torch.from_numpy(np.zeros((1, 3, 4, 4))), ((4, 4),), ((4, 4),))


SMALL = """
mount -t tmpfs -o size=64k tmpfs /dev/shm || exit 77
exec "$0" -c '
import sys
sys.path.insert(0, sys.argv[1])
from test_workers import Numbers, big
from fourstage.data.loader import evaluation_batches
try:
    print(len(list(evaluation_batches(Numbers(8), big, batch_size=2, workers=1))))
except ValueError as error:
    print(error)
' "$1"
"""


def big(sample: Sample) -> Sample:
    return Sample(sample.id, torch.zeros(3, 200, 200), (4, 4), label=0)


def test_shared_memory_that_is_too_small_is_named(tmp_path: Path) -> None:
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", SMALL, sys.executable, str(Path(__file__).parent)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    if done.returncode in (1, 77) and not done.stdout:
        pytest.skip("this system lets nobody mount a small /dev/shm")
    assert "no room in shared memory" in done.stdout, done.stdout + done.stderr
    assert "of 65.5 kB are free" in done.stdout
    assert "--shm-size=8g" in done.stdout
