"""What Slurm tells its processes, in the words of `torchrun`. Needs nothing but the environment."""

import os
import re
import shutil
import subprocess
from collections.abc import MutableMapping


def translate(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT from Slurm's variables where `srun` started us.

    `torchrun`'s own variables win. A shell inside an allocation is no step of it, and is left alone.
    """
    if "RANK" in environment or not in_step(environment):
        return
    job = int(environment.get("SLURM_JOB_ID", "0"))
    found = {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": environment["SLURM_NTASKS"],
        "LOCAL_RANK": environment.get("SLURM_LOCALID", "0"),
        "MASTER_ADDR": first_host(environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_NODELIST", "")),
        "MASTER_PORT": str(20_000 + job % 20_000),  # the same in all processes, another one in each job
    }
    for name, value in found.items():
        environment.setdefault(name, value)


def in_step(environment: MutableMapping[str, str] = os.environ) -> bool:
    """Whether `srun` started this process, one of several."""
    step = environment.get("SLURM_STEP_ID", "")
    return step.isdigit() and "SLURM_PROCID" in environment and int(environment.get("SLURM_NTASKS", "1")) > 1


def first_host(nodes: str) -> str:
    """The first host of Slurm's list: of `gpu[03-05,9],login1` it is `gpu03`."""
    if not nodes:
        return "127.0.0.1"
    if scontrol := shutil.which("scontrol"):
        told = subprocess.run([scontrol, "show", "hostnames", nodes], capture_output=True, text=True, check=False)
        if told.returncode == 0 and told.stdout.strip():
            return told.stdout.split()[0]
    match = re.match(r"([^\[,]+)(?:\[([^\]]+)\]([^,]*))?", nodes)
    assert match is not None, nodes
    first = re.split(r"[,-]", match[2])[0] if match[2] else ""
    return f"{match[1]}{first}{match[3] or ''}"
