"""benchmarks/busy.py: its arithmetic, its policies and its spinning programs; the measurement itself takes minutes."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from fourstage import cores

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "busy.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_of_a_busy_machine", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def turns(images: float, cpu: float) -> list[dict[str, float]]:
    return [{"images": images, "wall": 2.0, "cpu": cpu}] * 3


@pytest.mark.parametrize(
    ("threads", "beside", "expected"), [(2, 0, 2), (2, 1, 4 / 3), (2, 3, 0.8), (1, 0, 1), (1, 3, 0.5)]
)
def test_the_fair_share_is_that_of_equal_threads(
    threads: int, beside: int, expected: float, script: ModuleType
) -> None:
    assert script.fair(threads, beside, 2) == pytest.approx(expected)


def test_shares_are_relative_to_being_alone(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "available_cores", lambda: 2)
    every = {
        0: {"ours": turns(400, 4.0), "own": turns(400, 4.0)},  # 200 images/s with both cores
        1: {"ours": turns(200, 2.0), "own": turns(50, 2.0)},  # with one core: all of it used, and a quarter
    }
    ours, own = script.summary(every, 1, 2)
    assert ours["images_per_second"] == 100
    assert ours["got"] == 1.0
    assert ours["use_of_what_it_got"] == pytest.approx(1.0)
    assert ours["of_its_fair_share"] == pytest.approx(0.75)  # 4 / 3 cores were fair
    assert own["use_of_what_it_got"] == pytest.approx(0.25)
    del every[0]
    assert script.summary(every, 1, 2)[0]["use_of_what_it_got"] is None


class Process:
    """A training process that says which policy its environment has."""

    def __init__(self, words: list[str], env: dict[str, str], **_: object) -> None:
        self.environment, self.stdout, self.killed = env, self, False
        assert words[1:3] == [str(SCRIPT), "--worker"]
        assert words[5] == ("1" if words[3] == "one" else "2")

    def readline(self) -> str:
        return "ready\n"

    def kill(self) -> None:
        self.killed = True

    def wait(self) -> None:
        assert self.killed


def test_each_process_has_its_policy(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    with monkeypatch.context() as patched:
        patched.setattr(script.subprocess, "Popen", Process)
        with script.trainers(2) as processes:
            pass
    assert all(process.killed for process in processes.values())
    chosen = {
        policy: {name: process.environment[name] for name in cores.WAITING_BY_USER if name in process.environment}
        for policy, process in processes.items()
    }
    assert chosen == {"ours": cores.WAITING, "passive": {"OMP_WAIT_POLICY": "PASSIVE"}, "own": {}, "one": {}}


def test_other_programs_spin_until_the_end(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    real = script.subprocess.Popen
    monkeypatch.setattr(script.subprocess, "Popen", lambda words: started.append(real(words)) or started[-1])
    with script.spinning(2):
        assert [process.poll() for process in started] == [None, None]  # pyright: ignore[reportAttributeAccessIssue]
    assert all(process.poll() is not None for process in started)  # pyright: ignore[reportAttributeAccessIssue]


def test_a_turn_counts_images_and_seconds(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", iter(["0\n"]))
    assert script.work(1, yielding=False) == 0
    ready, turn = capsys.readouterr().out.splitlines()
    images, wall, cpu = json.loads(turn)
    assert ready == "ready"
    assert images == script.BATCH
    assert cpu > 0
    assert wall > 0
