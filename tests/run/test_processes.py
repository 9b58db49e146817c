"""Two processes on one machine train and score as one run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from fourstage.engine.state import load_state

SETTINGS = ["length=30it", "batch_size=32", "warmup=0it", "evaluate_every=15it", "log_every=5", "workers=0"]


def start(processes: int, *words: str) -> subprocess.Popen[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone"]
    return subprocess.Popen(
        [*torchrun, "-m", "fourstage", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def launch(processes: int, *words: str) -> str:
    process = start(processes, *words)
    printed, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    return printed


def log(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("timing")
    return lines


def test_two_processes_write_one_run_with_exact_numbers_and_continue_it(tmp_path: Path) -> None:
    out = tmp_path / "run"
    printed = launch(2, "train", "digits_visformer", "--out", str(out), *SETTINGS)
    assert printed.count("Finished:") == 1
    whole = log(out)
    assert [line["step"] for line in whole if line["kind"] == "train"] == [*range(1, 31)]  # 20 points at least
    best = max((line for line in whole if line["kind"] == "evaluation"), key=lambda line: line["metrics"]["top1"])
    for processes in (1, 2):
        found = json.loads(launch(processes, "evaluate", str(out), "--json"))
        assert found["images"] == 360
        assert found["metrics"]["top1"] == best["metrics"]["top1"]
        assert abs(found["metrics"]["loss"] - best["metrics"]["loss"]) < 1e-6
    check_a_stop_changes_no_bit(out, tmp_path / "again")


def check_a_stop_changes_no_bit(whole: Path, out: Path) -> None:
    """SIGTERM to the launcher saves in all processes; the same command ends as if nothing had been."""
    words = ["train", "digits_visformer", "--out", str(out), *SETTINGS]
    process = start(2, *words)
    while not (out / "log.jsonl").exists() or not (out / "log.jsonl").stat().st_size:
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=100)
    assert 1 <= load_state(out / "checkpoints" / "last.pt")["step"] < 30
    launch(2, *words)
    assert log(out) == log(whole)
    a, b = (load_state(folder / "checkpoints" / "last.pt") for folder in (whole, out))
    assert all(torch.equal(value, b["model"][key]) for key, value in a["model"].items())
