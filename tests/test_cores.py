"""How many cores a process may use, how many are busy, and the policy of waiting that commands set."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fourstage import cores

TICKS = "cpu  9 9 9 9 9 9 9 9\n"


def environment(**changes: str) -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key not in cores.WAITING_BY_USER} | changes


def printed(code: str, **changes: str) -> str:
    words = [sys.executable, "-c", code]
    return subprocess.run(words, capture_output=True, text=True, check=True, env=environment(**changes)).stdout.strip()


def test_a_command_sets_the_policy_before_torch_is_imported() -> None:
    code = (
        "import os, sys; from fourstage.cli import main; main(['models', 'visformer_digits'])\n"
        "print('torch' in sys.modules, os.environ.get('OMP_WAIT_POLICY'), os.environ.get('GOMP_SPINCOUNT'))"
    )
    assert printed(code).endswith("False PASSIVE 300000")  # this command needs no torch
    words = [sys.executable, "-m", "fourstage", "doctor"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment())
    assert "wait as OMP_WAIT_POLICY=PASSIVE, GOMP_SPINCOUNT=300000" in done.stdout


@pytest.mark.parametrize("name", cores.WAITING_BY_USER)
def test_a_policy_of_the_user_stays(name: str) -> None:
    given = {name: "1000", "PATH": "/bin"}
    assert cores.waiting_by_user(given)
    cores.set_waiting(given)
    assert given == {name: "1000", "PATH": "/bin"}


def test_a_policy_that_a_command_set_is_not_the_users() -> None:
    given: dict[str, str] = {"PATH": "/bin"}
    assert not cores.waiting_by_user(given)
    cores.set_waiting(given)
    assert given == {"PATH": "/bin", **cores.WAITING}
    assert not cores.waiting_by_user(given)
    assert cores.waiting_by_user({"OMP_WAIT_POLICY": "PASSIVE"})


def test_the_library_leaves_the_environment_alone() -> None:
    code = (
        "import os; before = dict(os.environ); import fourstage, fourstage.run\n"
        "fourstage.create_model('visformer_digits')\n"
        "print({k for k, v in os.environ.items() if before.get(k) != v} <= {'TORCHINDUCTOR_CACHE_DIR'})  # by torch"
    )
    assert printed(code) == "True"


def test_a_command_inside_of_a_program_with_torch_leaves_its_environment_alone() -> None:
    code = (
        "import torch, os; from fourstage import cli; cli.main(['--version']); print(os.environ.get('OMP_WAIT_POLICY'))"
    )
    assert printed(code).endswith("None")


@pytest.mark.parametrize(
    ("files", "membership", "limit"),
    [
        ({}, "0::/", None),
        ({"cpu.max": "max 100000"}, "0::/", None),
        ({"cpu.max": "150000 100000"}, "0::/", 1),
        ({"cpu.max": "50000 100000"}, "0::/", 1),  # never less than one
        ({"a/b/cpu.max": "max 100000", "a/cpu.max": "300000 100000"}, "0::/a/b", 3),
        ({"cpu.max": "200000 100000"}, "0::/of/the/host", 2),  # a container sees its own group as the root
        ({"cpu.max": "200000 100000"}, "0::/../other", 2),
        ({"cpu/a/cpu.cfs_quota_us": "200000", "cpu/a/cpu.cfs_period_us": "100000"}, "3:cpu:/a\n2:memory:/b", 2),
        ({"cpu,cpuacct/cpu.cfs_quota_us": "-1", "cpu,cpuacct/cpu.cfs_period_us": "1"}, "3:cpu,cpuacct:/", None),
        ({"cpu.max": "nonsense"}, "0::/", None),
        ({"cpu.max": "100000 0"}, "0::/", None),
    ],
)
def test_limits_of_control_groups(
    files: dict[str, str], membership: str, limit: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in {**files, "membership": membership + "\n"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(cores, "LIMITS", tmp_path)
    monkeypatch.setattr(cores, "MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(cores, "_mine", lambda: frozenset(range(64)))
    assert cores.available_cores() == (limit or 64)
    monkeypatch.setattr(cores, "_mine", lambda: frozenset([3]))
    assert cores.available_cores() == 1


def test_busy_cores_are_those_of_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "ACCOUNTS", tmp_path / "stat")
    monkeypatch.setattr(cores, "_mine", lambda: frozenset([1, 2]))
    assert cores.busy_cores(0) is None  # no such file, as on macOS
    stat = "{}cpu0 1 1 1 1 1 1 1 1 0 0\ncpu1 0 0 0 {} 0 0 0 0 0 0\ncpu2 {} 0 0 0 0 0 0 0 0 0\nintr 5\n"
    monkeypatch.setattr(
        cores.time, "sleep", lambda seconds: (tmp_path / "stat").write_text(stat.format(TICKS, 125, 25 + 7))
    )
    (tmp_path / "stat").write_text(stat.format(TICKS, 100, 7))
    assert cores.busy_cores() == pytest.approx(1.0, abs=0.1)


def test_the_time_of_this_process_is_not_that_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processors are busy for a second, one of them with this process."""
    monkeypatch.setattr(cores, "ACCOUNTS", tmp_path / "stat")
    monkeypatch.setattr(cores, "_mine", lambda: frozenset([0, 1]))
    tick, own = cores.os.sysconf("SC_CLK_TCK"), iter([3.0, 4.0, 4.0])
    monkeypatch.setattr(cores.time, "process_time", lambda: next(own))
    stat = "cpu0 {0} 0 0 0 0 0 0 0 0 0\ncpu1 {0} 0 0 0 0 0 0 0 0 0\n"
    (tmp_path / "stat").write_text(stat.format(50))
    others = cores.Others()
    (tmp_path / "stat").write_text(stat.format(50 + tick))
    assert others() == pytest.approx(1.0)
    (tmp_path / "stat").write_text(stat.format(50 + 2 * tick))
    assert others() == pytest.approx(2.0)  # since the call before


@pytest.mark.skipif(not Path("/proc/stat").is_file(), reason="only Linux accounts in this file")
def test_a_spinning_process_is_busy() -> None:
    spinning = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        busy = [cores.busy_cores(0.2) for _ in range(3)]
    finally:
        spinning.kill()
        spinning.wait()
    assert max(one for one in busy if one is not None) > 0.5


def test_the_number_of_threads_that_the_user_set() -> None:
    assert cores.number_by_user(environment={}) is None
    assert cores.number_by_user(environment={"OMP_NUM_THREADS": "2"}) == 2
    assert cores.number_by_user(environment={"OMP_NUM_THREADS": "", "MKL_NUM_THREADS": "3"}) == 3
    for text in ("0", "-1", "4,2", "many"):
        assert cores.number_by_user(environment={"OMP_NUM_THREADS": text}) is None
