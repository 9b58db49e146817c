"""A run that no division into processes may change, in double precision, and how processes are started and compared.

The network has no batch statistics, mixing and drop path are off: what differs between processes by nature.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from run.runs import logged

from fourstage.engine.state import load_state

NETWORK = """
import fourstage
from fourstage.backbones import swin

TINY = swin.Design(width=16, depths=(2, 2, 2, 2), heads=(1, 2, 4, 8), window=4)


@fourstage.register
def layer_norms(num_classes: int = 10, img_size: int = 32):
    return swin.classifier(TINY, img_size=img_size, num_classes=num_classes)
"""
RECIPE = """
base: digits_visformer
imports: [network.py]
model: layer_norms
precision: float64
ema: 0.9
workers: 0
log_every: 1
evaluate_every: STEPSit
checkpoint_every: SAVEit
optimisation: {batch_size: 32, length: STEPSit, lr: 1.0e-3, warmup: 0it, warmup_lr: 0.0, min_lr: 0.0, grad_clip: 1.0}
augmentation: {mixup: 0.0, cutmix: 0.0}
"""
EXACT = 1e-8


def write_recipe(folder: Path, steps: int, save: int) -> Path:
    """The recipe's file; a run of it has so many steps and a checkpoint every `save` of them."""
    (folder / "network.py").write_text(NETWORK)
    recipe = folder / "exact.yaml"
    recipe.write_text(RECIPE.replace("STEPS", str(steps)).replace("SAVE", str(save)))
    return recipe


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(words: list[str], processes: int) -> list[subprocess.Popen[str]]:
    """A command in processes as a launcher would start them, without one."""
    meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "fourstage", *words],
            env={**os.environ, **meet, "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(processes), **place},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for place in ({"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes))
    ]


def wait(processes: Sequence[subprocess.Popen[str]], timeout: float = 200) -> None:
    for process in processes:
        _, errors = process.communicate(timeout=timeout)
        assert process.returncode == 0, errors


def totals(out: Path) -> list[float]:
    """The loss of each step."""
    return [line["total"] for line in logged(out, "train")]


def metrics(out: Path) -> list[dict[str, Any]]:
    """Those of the network and of its average."""
    return [line["metrics"] for line in logged(out, "evaluation")]


def assert_same(out: Path, alone: Path) -> None:
    """Two runs have the same losses, metrics and weights."""
    assert totals(out) == pytest.approx(totals(alone), abs=EXACT)
    for found, wanted in zip(metrics(out), metrics(alone), strict=True):
        assert found == pytest.approx(wanted, abs=EXACT)
    ours, theirs = (load_state(folder / "checkpoints" / "last.pt") for folder in (out, alone))
    for part in ("model", "ema"):
        for key, value in theirs[part].items():
            torch.testing.assert_close(ours[part][key], value, rtol=0, atol=EXACT)
