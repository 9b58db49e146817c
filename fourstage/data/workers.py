"""Loader processes that can be killed, or hang, without a hang of the run.

Torch's own loader processes share one queue and its locks; a process that is killed while it holds such a lock leaves
all others, and the main process, waiting for ever. Here each process has its own two pipes. A process ends when the
other end of a pipe is gone, so that none outlives the main process.
"""

import errno
import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import util
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from queue import SimpleQueue
from typing import Any, Generic, Self, TypeVar

import torch
import torch.multiprocessing

from fourstage.resources import (
    SHARED_MEMORY,
    count_memory_kills,
    free_text,
    is_out_of_memory,
    is_shared_memory_full,
    memory_text,
)

AHEAD = 4  # requests that wait in each process
GRACE = 5.0  # seconds in which a process that received SIGTERM still answers
FAREWELL = 2.0  # seconds after which a process that does not end is killed
PATIENCE = "FOURSTAGE_LOADER_TIMEOUT"  # environment variable: seconds to wait for a batch
PATIENCE_SECONDS = 600.0
AGAIN = "the same command continues a training"

Request = TypeVar("Request")
Answer = TypeVar("Answer")
Place = Callable[[int], None]  # notes which sample is being read
Name = Callable[[int], str]  # of the sample of an index

_in_worker = False


def in_worker() -> bool:
    """Return whether this is a loader process."""
    return _in_worker


class LoaderError(ValueError):
    """A loader process was killed, hangs or has no memory. The message names the likely cause and what to type."""


@dataclass(frozen=True)
class _Failure:
    """An exception of a loader process that is no mistake in the data."""

    error: BaseException
    index: int  # of the sample that was being read; -1: none


class Answers(Generic[Request, Answer]):
    """An iterator over `fetch` of each request, in the order of the requests, computed in `count` processes.

    Args:
        fetch: is given a function beside the request, by which it notes the index that it is reading.
        name: returns the name of the sample of an index, for messages.

    Raises:
        LoaderError: a process was killed, hangs, or has no memory.
        ValueError: the environment variable for the patience is no number of seconds.
    """

    def __init__(
        self, fetch: Callable[[Request, Place], Answer], requests: Iterator[Request], count: int, name: Name
    ) -> None:
        self._pool, self._left, self._waiting = _Pool(fetch, count, name, _patience()), requests, 0
        self._ahead = AHEAD * count

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Answer:
        while self._waiting < self._ahead and (request := next(self._left, None)) is not None:
            self._pool.ask(request)
            self._waiting += 1
        if not self._waiting:
            raise StopIteration
        self._waiting -= 1
        return self._pool.answer()

    def ready(self) -> bool:
        """Return whether the next answer can be taken without waiting."""
        return self._waiting > 0 and self._pool.ready()

    def close(self) -> None:
        """End all processes."""
        self._pool.close()


def _patience() -> float:
    text = os.environ.get(PATIENCE, "")
    try:
        seconds = float(text or PATIENCE_SECONDS)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise ValueError(f"{PATIENCE} is the number of seconds to wait for a batch; got {text!r}")
    return seconds


class _Pool(Generic[Request, Answer]):
    """The processes. Request number i goes to process i % count; answers come in the order of the requests."""

    def __init__(self, fetch: Callable[[Request, Place], Answer], count: int, name: Name, patience: float) -> None:
        util.get_temp_dir()  # else each process makes one of its own, which stays when the process is killed
        context = torch.multiprocessing.get_context()
        self._name, self._patience, self._kills = name, patience, count_memory_kills()
        self._places = context.RawArray("q", [-1] * count)
        self._asked = self._answered = 0
        self._since: float | None = None  # when the main process began to wait for an answer
        self._hung: int | None = None
        self._processes: list[BaseProcess] = []
        self._requests: list[Connection] = []
        self._answers: list[Connection] = []
        self._end = util.Finalize(  # at the exit of the interpreter, if not before
            self, _end, (self._processes, self._requests, self._answers), exitpriority=10
        )
        for number in range(count):
            read_request, write_request = context.Pipe(duplex=False)
            read_answer, write_answer = context.Pipe(duplex=False)
            pipes = (read_request, write_answer, write_request, read_answer)
            process = context.Process(target=_work, args=(fetch, number, pipes, self._places), daemon=True)
            process.start()
            read_request.close()  # before the next process starts, which would keep this end open
            write_answer.close()
            self._processes.append(process)
            self._requests.append(write_request)
            self._answers.append(read_answer)
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name="fourstage-loader-watch", daemon=True).start()

    def ask(self, request: Request) -> None:
        number = self._asked % len(self._processes)
        try:
            self._requests[number].send(request)
        except OSError:
            raise self._lost(number) from None
        self._asked += 1

    def answer(self) -> Answer:
        """Return the answer to the oldest request."""
        number = self._answered % len(self._processes)
        pipe = self._answers[number]
        self._since = time.monotonic()
        try:
            sentinels = [process.sentinel for process in self._processes]
            ready = wait([pipe, *sentinels])
            if pipe not in ready:
                raise self._lost(next(i for i, sentinel in enumerate(sentinels) if sentinel in ready))
            answer = pipe.recv()
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
                raise ValueError(f"too many files are open; raise the limit by `ulimit -n 65536`; {AGAIN}") from None
            raise self._lost(number) from None  # it ended while it handed over the answer
        finally:
            self._since = None
        self._answered += 1
        if isinstance(answer, _Failure):
            raise self._explained(answer)
        return answer

    def ready(self) -> bool:
        return self._answers[self._answered % len(self._processes)].poll()

    def close(self) -> None:
        self._closed.set()
        self._end()

    def _watch(self) -> None:
        """Kill a process that does not answer; the main process, which may be waiting in a read, then continues."""
        while not self._closed.wait(min(1.0, self._patience / 4)):
            since = self._since
            if since is not None and time.monotonic() - since > self._patience:
                self._hung = self._answered % len(self._processes)
                for process in self._processes:
                    process.kill()
                return

    def _lost(self, number: int) -> LoaderError:
        """Return the error for a process that has ended, or does so now."""
        if self._hung is not None:
            reading = self._while_reading(self._places[self._hung])
            return LoaderError(
                f"a loader process gave no batch for {self._patience:g} seconds{reading} and was ended; check the "
                f"disk or the network folder of the data; {AGAIN}, and the environment variable {PATIENCE} sets the "
                f"seconds"
            )
        self._processes[number].join(FAREWELL)
        return LoaderError(self._cause(self._processes[number].exitcode, self._while_reading(self._places[number])))

    def _cause(self, code: int | None, reading: str) -> str:
        shared = f"/dev/shm: {free_text(SHARED_MEMORY)}" if SHARED_MEMORY.is_dir() else "shared memory"
        state = f" ({memory_text()})" if memory_text() else ""
        if code == -signal.SIGKILL and count_memory_kills() > self._kills:
            return (
                f"the system killed a loader process{reading} because memory ran out{state}; {AGAIN}, with fewer "
                f"workers, such as workers=0, or a smaller optimisation.batch_size"
            )
        if code == -signal.SIGKILL:
            return (
                f"a loader process was killed{reading}, most likely because memory ran out{state}; {AGAIN}, perhaps "
                f"with workers=0"
            )
        if code == -signal.SIGBUS:
            return _shared_memory_sentence(shared, reading)
        if code in (-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGILL, -signal.SIGFPE):
            return (
                f"a loader process crashed with {signal.Signals(-code).name}{reading}; the library that decodes images "
                f"failed, perhaps on a damaged file: `fourstage data check` reads all of them; {AGAIN}"
            )
        if code in (-signal.SIGTERM, 128 + signal.SIGTERM):
            return f"a loader process was ended by SIGTERM{reading}; {AGAIN}"
        how = "hangs" if code is None else f"ended with exit code {code}"
        return f"a loader process {how}{reading}; {AGAIN}, and workers=0 reads the data in the main process"

    def _while_reading(self, index: int) -> str:
        return "" if index < 0 else f" while it read {self._name(index)}"

    def _explained(self, failure: _Failure) -> BaseException:
        error, reading = failure.error, self._while_reading(failure.index)
        if is_shared_memory_full(error):
            return LoaderError(_shared_memory_sentence(f"/dev/shm: {free_text(SHARED_MEMORY)}", reading))
        if is_out_of_memory(error):
            state = f" ({memory_text()})" if memory_text() else ""
            return LoaderError(
                f"memory ran out in a loader process{reading}{state}; {AGAIN}, with fewer workers, such as workers=0, "
                f"or a smaller optimisation.batch_size"
            )
        return error


def _shared_memory_sentence(shared: str, reading: str) -> str:
    return (
        f"a loader process found no room in shared memory{reading} ({shared}); start the container with more, such as "
        f"docker run --shm-size=8g, or add workers=0; {AGAIN}"
    )


def _end(processes: list[BaseProcess], requests: list[Connection], answers: list[Connection]) -> None:
    """Close the pipes, by which each process ends itself, and kill those that do not."""
    for pipe in (*requests, *answers):
        pipe.close()
    deadline = time.monotonic() + FAREWELL
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join(FAREWELL)


# ------------------------------------------------------------------------------------------------ in a loader process


def _work(
    fetch: Callable[[Any, Place], Any],
    number: int,
    pipes: tuple[Connection, Connection, Connection, Connection],
    places: Any,
) -> None:
    """Answer requests until the main process closes their pipe. See `_listen` for the end.

    Args:
        pipes: where requests are read and answers written, and the other two ends. A forked process has inherited
            these and closes them: a pipe ends only when all copies of its other end are closed.
    """
    requests, answers, *others = pipes
    for other in others:
        other.close()
    global _in_worker  # noqa: PLW0603 - one process is one worker
    _in_worker = True
    inbox: SimpleQueue[Any] = SimpleQueue()
    threading.Thread(target=_listen, args=(requests, _signals(), inbox), daemon=True).start()
    torch.set_num_threads(1)

    def place(index: int) -> None:
        places[number] = index

    while True:
        try:
            answer = fetch(inbox.get(), place)
            data = ForkingPickler.dumps(answer)  # moves tensors to shared memory, which may be full
        except Exception as error:  # it is raised in the main process
            data = ForkingPickler.dumps(_Failure(_portable(error), places[number]))
        place(-1)
        try:
            answers.send_bytes(data)
        except OSError:
            os._exit(0)  # the main process is gone


def _signals() -> Connection | int | None:
    """Leave Ctrl-C and a vanished terminal to the main process; return where a SIGTERM is announced."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if os.name != "posix":
        return None
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    read, write = os.pipe()
    os.set_blocking(write, False)
    # The C handler writes to this pipe at once, also while the main thread is stuck in a read.
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    return read


def _listen(requests: Connection, announced: Any, inbox: "SimpleQueue[Any]") -> None:
    """Take requests in a thread, which works while the main thread reads a file, and end the process.

    It ends at once when the main process closes the pipe or dies, and `GRACE` seconds after SIGTERM: a launcher sends
    that to all processes, and the main process may still need a batch to complete its step.
    """
    deadline: float | None = None
    sources = [requests] if announced is None else [requests, announced]
    while True:
        ready = wait(sources, None if deadline is None else max(0.0, deadline - time.monotonic()))
        if announced in ready and announced is not None:
            os.read(announced, 64)
            deadline = deadline or time.monotonic() + GRACE
        if deadline is not None and time.monotonic() >= deadline:
            os._exit(128 + signal.SIGTERM)
        if requests in ready:
            try:
                inbox.put(requests.recv())
            except (EOFError, OSError):
                os._exit(0)


def _portable(error: Exception) -> BaseException:
    """Return an exception that can be sent, with its traceback as a note."""
    text = "".join(traceback.format_exception(error)).rstrip()
    try:
        copy: BaseException = pickle.loads(pickle.dumps(error))
    except Exception:  # anything may be wrong with a class of the user
        copy = RuntimeError(f"{type(error).__name__}: {error}")
    copy.add_note(f"In a loader process:\n{text}")
    return copy
