"""Two processes on one machine train and score as one run."""

import json
import os
import subprocess
import sys
from pathlib import Path


def launch(processes: int, *words: str) -> str:
    torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone"]
    done = subprocess.run(
        [*torchrun, "-m", "fourstage", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_processes_write_one_run_and_its_numbers_are_exact(tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = ["length=6it", "batch_size=32", "warmup=0it", "evaluate_every=3it", "log_every=2", "workers=0"]
    printed = launch(2, "train", "digits_visformer", "--out", str(out), *settings)
    assert printed.count("Finished:") == 1
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log if line["kind"] == "train"] == [2, 4, 6]
    best = max((line for line in log if line["kind"] == "evaluation"), key=lambda line: line["metrics"]["top1"])
    for processes in (1, 2):
        found = json.loads(launch(processes, "evaluate", str(out), "--json"))
        assert found["images"] == 360
        assert found["metrics"]["top1"] == best["metrics"]["top1"]
        assert abs(found["metrics"]["loss"] - best["metrics"]["loss"]) < 1e-6
