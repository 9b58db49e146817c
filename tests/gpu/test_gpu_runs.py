"""Whole runs on the device: stopped and continued, and in the processes of `torchrun`."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

LIMIT = 240  # seconds of one program, where no test has a limit of its own


def command(out: Path, device: torch.device, *more: str) -> list[str]:
    for name in ("pydantic", "yaml", "rich"):
        pytest.importorskip(name, reason=f"complete runs need {name}")
    data = out.parent / "data"
    if not data.exists():
        write_images(data)
    changes = [
        f"device={device.type}",
        "deterministic=true",
        f"optimisation.length={120 if device.type == 'cuda' else 40}it",
        "optimisation.warmup=4it",
        "checkpoint_every=8it",
        "evaluate_every=40it",
    ]
    return [
        sys.executable,
        "-m",
        "fourstage",
        "train",
        "digits_visformer",
        "--data",
        str(data),
        "--out",
        str(out),
        *changes,
        *more,
    ]


def write_images(folder: Path) -> None:
    """Write images of four classes: the digits of the recipe come with scikit-learn, which may be missing."""
    chance = np.random.default_rng(0)
    for split, count in (("train", 512), ("val", 64)):
        for i in range(count):
            path = folder / split / f"class_{i % 4}" / f"{i:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(chance.integers(64 * (i % 4), 64 * (i % 4 + 1), (8, 8, 3), dtype=np.uint8)).save(path)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state = torch.load(folder / "checkpoints" / "last.pt", weights_only=True, map_location="cpu")
    return state["model"]


def run(words: list[str]) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=LIMIT)
    assert done.returncode == 0, f"{_last(done.stderr)}\n{done.stdout}{done.stderr}"
    return done.stdout


def _last(text: str) -> str:
    """Return the last line, which says what went wrong: the page shows the first line of an assertion alone."""
    return (text.strip().splitlines() or ["no message"])[-1]


def stop_after_first_checkpoint(out: Path, device: torch.device) -> int:
    """Start a run, end it by SIGTERM, which it answers by saving, and return its exit code."""
    process = subprocess.Popen(command(out, device), stdout=subprocess.DEVNULL)
    try:
        end = time.monotonic() + LIMIT
        while not (out / "checkpoints" / "last.pt").exists() and time.monotonic() < end:
            assert process.poll() in (None, 0)
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        return process.wait(timeout=LIMIT)
    finally:
        process.kill()  # also where the test has no time left


def test_a_stopped_run_continues_bit_for_bit(tmp_path: Path, device: torch.device) -> None:
    run(command(tmp_path / "whole", device))
    code = stop_after_first_checkpoint(tmp_path / "stopped", device)
    assert code in (0, 143)
    run(command(tmp_path / "stopped", device))
    ours, whole = weights(tmp_path / "stopped"), weights(tmp_path / "whole")
    assert ours.keys() == whole.keys()
    assert all(torch.equal(ours[key], whole[key]) for key in whole)
    if code == 0:
        pytest.skip("two runs gave the same bits, but the second one ended before it could be stopped")


def test_one_process_of_torchrun_trains(tmp_path: Path, device: torch.device) -> None:
    words = command(tmp_path / "run", device)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", "-m", "fourstage"]
    run([*launch, *words[3:]])
    assert (tmp_path / "run" / "checkpoints" / "last.pt").exists()


def test_a_group_of_one_process_trains_as_no_group_does(tmp_path: Path, device: torch.device) -> None:
    program = Path(__file__).with_name("one_process_group.py")
    assert run([sys.executable, str(program), str(device), str(tmp_path / "store")]).startswith("trained over")


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_run_in_half_precision_with_workers(precision: str, tmp_path: Path, device: torch.device) -> None:
    """Loader processes are started beside a GPU in use, and batches are pinned."""
    run(command(tmp_path / "run", device, f"precision={precision}", "workers=2", "optimisation.length=20it", "ema=0.9"))
    assert all(value.isfinite().all() for value in weights(tmp_path / "run").values())
