"""Slurm's variables as those of torchrun."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fourstage.engine.slurm import first_host, in_step, translate

STEP = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS": "16",
    "SLURM_STEP_NODELIST": "gpu[03-04]",
}


@pytest.fixture(autouse=True)
def _no_slurm_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


def test_a_process_of_srun_learns_its_place() -> None:
    environment = dict(STEP)
    translate(environment)
    assert {key: environment[key] for key in environment.keys() - STEP.keys()} == {
        "RANK": "9",
        "WORLD_SIZE": "16",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "gpu03",
        "MASTER_PORT": "16711",
    }


def test_what_is_set_already_stays() -> None:
    torchrun = {**STEP, "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "3"}
    environment = dict(torchrun)
    translate(environment)
    assert environment == torchrun
    environment = {**STEP, "MASTER_PORT": "29500"}
    translate(environment)
    assert (environment["MASTER_PORT"], environment["MASTER_ADDR"]) == ("29500", "gpu03")


@pytest.mark.parametrize(
    "changes",
    [
        {"SLURM_STEP_ID": ""},  # a batch script, or a shell that salloc opened
        {"SLURM_STEP_ID": "4294967290"},  # salloc's shell where the cluster makes it a step
        {"SLURM_STEP_ID": "4294967291"},
        {"SLURM_NTASKS": "1"},
        {"SLURM_STEP_NUM_TASKS": "1"},  # one process in an allocation with room for sixteen
        {"SLURM_PROCID": ""},
    ],
)
def test_a_process_that_is_alone_is_left_alone(changes: dict[str, str]) -> None:
    environment = {**STEP, **changes}
    before = dict(environment)
    assert not in_step(environment)
    translate(environment)
    assert environment == before


def test_a_process_that_sees_one_gpu_takes_that_one() -> None:
    environment = {**STEP, "SLURM_GPUS_PER_TASK": "1", "CUDA_VISIBLE_DEVICES": "1"}
    translate(environment)
    assert environment["LOCAL_RANK"] == "0"
    environment = {**STEP, "SLURM_GPUS_PER_TASK": "1", "CUDA_VISIBLE_DEVICES": "0,1"}
    translate(environment)
    assert environment["LOCAL_RANK"] == "1"


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu7", "gpu7"),
        ("gpu[03-05,9],login1", "gpu03"),
        ("gpu[9,11-12]-ib", "gpu9-ib"),
        ("node-a,node-b", "node-a"),
        ("rack[1-2]n[01-04]", "rack1n01"),
        ("", "127.0.0.1"),
    ],
)
def test_the_first_host_of_a_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_scontrol_knows_better_and_may_fail(tmp_path: Path) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f"#!{sys.executable}\nimport sys\nprint('asked', *sys.argv[1:])\n")
    scontrol.chmod(0o755)
    assert first_host("gpu[1-2]") == "asked"
    scontrol.write_text(f"#!{sys.executable}\nraise SystemExit(1)\n")
    assert first_host("gpu[1-2]") == "gpu1"


def test_only_the_first_process_speaks() -> None:
    for process, spoken in (("0", "fourstage "), ("1", "")):
        done = subprocess.run(
            [sys.executable, "-m", "fourstage", "--version"],
            env={**os.environ, **STEP, "SLURM_PROCID": process},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.startswith(spoken)
        assert bool(done.stdout) == bool(spoken)
