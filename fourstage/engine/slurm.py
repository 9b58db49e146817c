"""What Slurm tells its processes, in the words of `torchrun`. Needs nothing but the environment."""

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import MutableMapping

LAST_STEP = 0xFFFF_FFF0  # from here on a number of a step is none: a batch script, an interactive shell


def translate(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT from Slurm's variables where `srun` started us.

    What is set already stays, as by `torchrun`. A shell inside an allocation is no step of it, and is left alone.
    """
    if "RANK" in environment or not in_step(environment):
        return
    job = environment.get("SLURM_JOB_ID", "0")
    found = {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": str(_tasks(environment)),
        "LOCAL_RANK": "0" if _has_one_gpu(environment) else environment.get("SLURM_LOCALID", "0"),
        "MASTER_ADDR": first_host(environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_NODELIST", "")),
        # The same in all processes, another one in each job, and below the ports that systems hand out by themselves.
        "MASTER_PORT": str(12_000 + (int(job) if job.isdigit() else 0) % 20_000),
    }
    for name, value in found.items():
        environment.setdefault(name, value)


def in_step(environment: MutableMapping[str, str] = os.environ) -> bool:
    """Whether `srun` started this process, one of several."""
    step = environment.get("SLURM_STEP_ID", "")
    begun = step.isdigit() and int(step) < LAST_STEP and environment.get("SLURM_PROCID", "").isdigit()
    return begun and _tasks(environment) > 1


def _tasks(environment: MutableMapping[str, str]) -> int:
    """How many processes the step has, which may be fewer than the allocation has room for."""
    count = environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS", "")
    return int(count) if count.isdigit() else 1


def _has_one_gpu(environment: MutableMapping[str, str]) -> bool:
    """Whether Slurm shows this process a GPU of its own and no other, as `--gpus-per-task=1` does."""
    seen = environment.get("CUDA_VISIBLE_DEVICES", "")
    return environment.get("SLURM_GPUS_PER_TASK") == "1" and bool(seen) and "," not in seen


def first_host(nodes: str) -> str:
    """The first host of Slurm's list: of `gpu[03-05,9],login1` it is `gpu03`."""
    if not nodes:
        return "127.0.0.1"
    if scontrol := shutil.which("scontrol"):
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            told = subprocess.run(
                [scontrol, "show", "hostnames", nodes], capture_output=True, text=True, check=True, timeout=10
            )
            if told.stdout.strip():
                return told.stdout.split()[0]
    first = re.match(r"(?:[^\[,]|\[[^\]]*\])+", nodes)
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first[0] if first else nodes)
