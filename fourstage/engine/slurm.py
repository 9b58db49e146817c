"""Slurm's variables in the form of `torchrun`'s. Needs nothing but the environment."""

import contextlib
import os
import re
import shutil
from collections.abc import MutableMapping

LAST_STEP = 0xFFFF_FFF0  # higher numbers are no steps but batch scripts and interactive shells


def translate(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT from Slurm's variables under `srun`.

    Variables that are already set, as by `torchrun`, keep their values. A shell in an allocation is no step of it, so
    nothing is set there.
    """
    if "RANK" in environment or not in_step(environment):
        return
    job = environment.get("SLURM_JOB_ID", "0")
    translated = {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": str(_tasks(environment)),
        "LOCAL_RANK": "0" if _has_one_gpu(environment) else environment.get("SLURM_LOCALID", "0"),
        "MASTER_ADDR": first_host(environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_NODELIST", "")),
        # The same in all processes of a job, different between jobs, and below the range of ephemeral ports.
        "MASTER_PORT": str(12_000 + (int(job) if job.isdigit() else 0) % 20_000),
    }
    for name, value in translated.items():
        environment.setdefault(name, value)


def in_step(environment: MutableMapping[str, str] = os.environ) -> bool:
    """Return whether `srun` started this process as one of several."""
    step = environment.get("SLURM_STEP_ID", "")
    begun = step.isdigit() and int(step) < LAST_STEP and environment.get("SLURM_PROCID", "").isdigit()
    return begun and _tasks(environment) > 1


def _tasks(environment: MutableMapping[str, str]) -> int:
    """Return the number of processes of the step, which may be lower than that of the allocation."""
    count = environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS", "")
    return int(count) if count.isdigit() else 1


def _has_one_gpu(environment: MutableMapping[str, str]) -> bool:
    """Return whether Slurm shows this process only a GPU of its own, as `--gpus-per-task=1` does."""
    visible = environment.get("CUDA_VISIBLE_DEVICES", "")
    return environment.get("SLURM_GPUS_PER_TASK") == "1" and bool(visible) and "," not in visible


def first_host(nodes: str) -> str:
    """Return the first host of Slurm's list: `gpu03` for `gpu[03-05,9],login1`."""
    if not nodes:
        return "127.0.0.1"
    if scontrol := shutil.which("scontrol"):
        import subprocess  # not for `fourstage --help`

        with contextlib.suppress(OSError, subprocess.SubprocessError):
            answer = subprocess.run(
                [scontrol, "show", "hostnames", nodes], capture_output=True, text=True, check=True, timeout=10
            )
            if answer.stdout.strip():
                return answer.stdout.split()[0]
    first = re.match(r"(?:[^\[,]|\[[^\]]*\])+", nodes)
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first[0] if first else nodes)
