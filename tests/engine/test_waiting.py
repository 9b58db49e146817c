"""Threads sleep while they wait only where other programs need their cores."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from fourstage import cores
from fourstage.engine import waiting
from fourstage.engine.waiting import Reserves, yielding_cores

TASKS = Path("/proc/self/task")


@pytest.fixture(autouse=True)
def _two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in cores.WAITING_BY_USER:
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


class Recorded:
    """Stands for the reserves; `open` counts those that are not closed."""

    open = 0

    def __init__(self, threads: int) -> None:
        assert threads == 2
        type(self).open += 1

    def close(self) -> None:
        type(self).open -= 1


def watched(
    busy: list[float | None], count: int, monkeypatch: pytest.MonkeyPatch, then: Callable[[], None] = lambda: None
) -> list[int]:
    """Return how many reserves were open after each of the looks that found so many cores busy."""
    found: list[int] = []
    Recorded.open = 0
    done = threading.Event()

    class Others:
        before = (0, 0)

        def __call__(self) -> float | None:
            if len(found) == len(busy):
                done.set()
                return busy[-1]
            found.append(Recorded.open)
            return busy[len(found) - 1]

    monkeypatch.setattr(waiting, "Others", Others)
    monkeypatch.setattr(waiting, "Reserves", Recorded)
    monkeypatch.setattr(waiting, "available_cores", lambda: count)
    monkeypatch.setattr(waiting, "PERIOD", 0.001)
    with yielding_cores():
        then()
        assert done.wait(20)
        found.append(Recorded.open)
    assert Recorded.open == 0
    return found[1:]


def test_threads_sleep_from_the_first_busy_look_to_the_last_calm_one(monkeypatch: pytest.MonkeyPatch) -> None:
    calm: list[float | None] = [0.05] * waiting.CALM
    looks = [0.0, 0.2, 1.0, 0.2, *calm, 0.0]
    assert watched(looks, 2, monkeypatch) == [0, 0, 1, 1, *[1] * (waiting.CALM - 1), 0, 0]


def test_spare_cores_may_be_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    assert watched([2.0, 2.2, 2.5, 3.0], 4, monkeypatch) == [0, 0, 1, 1]


def test_what_is_not_known_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert watched([None, None], 2, monkeypatch) == [0, 0]


def test_an_error_inside_ends_the_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        watched([1.0], 2, monkeypatch, then=fail)
    assert Recorded.open == 0
    assert "waiting" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("name", cores.WAITING_BY_USER)
def test_nothing_is_watched_against_the_user(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1000")
    with yielding_cores():
        assert "waiting" not in {thread.name for thread in threading.enumerate()}


def test_a_single_thread_does_not_wait() -> None:
    torch.set_num_threads(1)
    with yielding_cores():
        assert "waiting" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.skipif(not TASKS.is_dir(), reason="threads are counted in /proc")
@pytest.mark.parametrize("count", [2, 5])
def test_reserves_are_more_threads_than_processors_and_end(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """GNU's OpenMP counts its own threads, which are one fewer than those that compute, and the first thread."""
    monkeypatch.setattr(waiting, "available_cores", lambda: count)
    torch.zeros(1 << 20).add_(1)
    before = thread_count()
    reserves = Reserves(2)
    expected = 2 * (count - 1)  # each holder has one thread of OpenMP
    until(lambda: thread_count() == before + expected)
    assert 2 + expected // 2 > count
    reserves.close()
    until(lambda: thread_count() == before)


def thread_count() -> int:
    return sum(1 for _ in TASKS.iterdir())


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)
