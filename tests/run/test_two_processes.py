"""Two processes make the losses of one in a few steps; `test_distributed.py` has the long form, with launchers."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fourstage.engine.state import load_state

NETWORK = """
import fourstage
from fourstage.backbones import swin


@fourstage.register
def few_layer_norms(num_classes: int = 10, img_size: int = 32):
    return swin.tiny(img_size=img_size, num_classes=num_classes)
"""
RECIPE = """
base: digits_visformer
imports: [network.py]
model: few_layer_norms
precision: float64
ema: 0.9
workers: 0
log_every: 1
evaluate_every: 6it
checkpoint_every: 6it
optimisation: {batch_size: 32, length: 6it, lr: 1.0e-3, warmup: 0it, warmup_lr: 0.0, min_lr: 0.0, grad_clip: 1.0}
augmentation: {mixup: 0.0, cutmix: 0.0}
"""
EXACT = 1e-8


def start(words: list[str], processes: int) -> list[subprocess.Popen[str]]:
    """A command in processes as a launcher would start them, without one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
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


def test_two_processes_make_the_losses_of_one(tmp_path: Path) -> None:
    (tmp_path / "network.py").write_text(NETWORK)
    recipe = tmp_path / "exact.yaml"
    recipe.write_text(RECIPE)
    folders = [tmp_path / "one", tmp_path / "two"]
    words = ["train", str(recipe), "--out"]
    started = [process for count, out in enumerate(folders, 1) for process in start([*words, str(out)], count)]
    for process in started:
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
    logs = [[json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()] for out in folders]
    alone, divided = ([line["total"] for line in log if line["kind"] == "train"] for log in logs)
    assert len(alone) == 6
    assert alone[0] > alone[-1]
    assert divided == pytest.approx(alone, abs=EXACT)
    measured = [[line["metrics"] for line in log if line["kind"] == "evaluation"] for log in logs]
    assert len(measured[0]) == 2  # the network and its average
    for one, two in zip(*measured, strict=True):
        assert two == pytest.approx(one, abs=EXACT)
    states = [load_state(out / "checkpoints" / "last.pt") for out in folders]
    for part in ("model", "ema"):
        for key, value in states[0][part].items():
            torch.testing.assert_close(states[1][part][key], value, rtol=0, atol=EXACT)
