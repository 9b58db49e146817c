"""Threads and loader workers share the cores; fewer threads are used where that is measured to be faster."""

import time
from collections.abc import Iterator

import pytest
import torch

from fourstage.engine import threads
from fourstage.engine.threads import choose_threads, keep_threads, limited_threads, loader_workers

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def cores(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "available_cores", lambda: count)


@pytest.mark.parametrize("count", range(1, 20))
@pytest.mark.parametrize("asked", [None, 0, 1, 2, 8])
@pytest.mark.parametrize("device", [CPU, GPU])
def test_workers_and_threads_fit_the_cores(
    device: torch.device, asked: int | None, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cores(count, monkeypatch)
    torch.set_num_threads(count)
    workers = loader_workers(asked, device)
    with limited_threads(workers):
        inside = torch.get_num_threads()
    assert torch.get_num_threads() == count
    assert inside >= 1
    if asked is None:
        assert workers + inside <= count
        assert workers <= (8 if device == GPU else count // 4)
    else:
        assert workers == min(asked, count)
        assert inside == max(1, count - workers)


def test_processes_of_a_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    cores(8, monkeypatch)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    torch.set_num_threads(8)
    assert loader_workers(None, GPU) == 3
    with limited_threads(1):
        assert torch.get_num_threads() == 3


def test_a_number_of_the_user_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    cores(2, monkeypatch)
    torch.set_num_threads(3)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    with limited_threads(1):
        assert torch.get_num_threads() == 3
        keep_threads(1)
        assert torch.get_num_threads() == 3
        assert choose_threads(lambda: pytest.fail("nothing is measured")) is None


def test_a_run_keeps_its_threads_where_there_are_cores_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    cores(4, monkeypatch)
    torch.set_num_threads(4)
    keep_threads(2)
    assert torch.get_num_threads() == 2
    keep_threads(5)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("busy", "seconds", "chosen"), [
    (1.0, {2: 0.03, 1: 0.01}, 1),
    (1.0, {2: 0.01, 1: 0.03}, 2),
    (2.0, {2: 0.03, 1: 0.01}, 1),
])  # fmt: skip
def test_fewer_threads_are_used_where_they_are_faster(
    busy: float, seconds: dict[int, float], chosen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cores(2, monkeypatch)
    monkeypatch.setattr(threads, "busy_cores", lambda: busy)
    torch.set_num_threads(2)
    said = choose_threads(lambda: time.sleep(seconds[torch.get_num_threads()]))
    assert torch.get_num_threads() == chosen
    assert said is not None
    assert said.startswith(f"Other programs keep {busy:.1f} of 2 cores busy; a step takes 0.0")
    assert said.endswith(f"so {chosen} {'is' if chosen == 1 else 'are'} used.")


@pytest.mark.parametrize("busy", [None, 0.0, 0.4])
def test_nothing_is_measured_where_cores_are_free(busy: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    cores(2, monkeypatch)
    monkeypatch.setattr(threads, "busy_cores", lambda: busy)
    torch.set_num_threads(2)
    assert choose_threads(lambda: pytest.fail("nothing is measured")) is None


def test_long_steps_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    cores(3, monkeypatch)
    monkeypatch.setattr(threads, "busy_cores", lambda: 1.5)
    monkeypatch.setattr(threads, "PATIENCE", 0.04)
    torch.set_num_threads(3)
    calls: list[int] = []
    said = choose_threads(lambda: (calls.append(1), time.sleep(0.02))[1])
    assert len(calls) == 1
    assert torch.get_num_threads() == 3
    assert said is not None
    assert "take too long" in said
