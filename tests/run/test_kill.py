"""A training that is killed at any moment and started again ends with the same bits as one that never was."""

import json
import os
import platform
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch

from fourstage.engine.state import load_state

# Everything random is on: augmentation, erasing, mixing, drop path, EMA. Six epochs of eight steps, and a
# checkpoint in the middle of an epoch.
SETTINGS = [
    "length=48it", "batch_size=16", "warmup=1ep", "log_every=3", "checkpoint_every=5it", "evaluate_every=8it",
    "auto_augment=rand-m5-mstd0.5-inc1", "cutmix=1.0", "mixup=0.8", "mixup_prob=1.0", "reprob=0.25", "ema=0.9",
    "model_args={drop_path_rate: 0.2, drop_rate: 0.1}", "accumulation=2",
]  # fmt: skip


@dataclass
class Ending:
    """What must be the same: weights, log, data order (through the losses)."""

    state: dict[str, Any]
    log: list[dict[str, Any]]


def command(out: Path, data: Path, *more: str) -> list[str]:
    recipe = ["digits_visformer", "--data", str(data), "--out", str(out)]
    return [sys.executable, "-m", "fourstage", "train", *recipe, *SETTINGS, *more]


def start(out: Path, data: Path, *more: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command(out, data, *more),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def ending(out: Path) -> Ending:
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    for line in log:
        line.pop("timing", None)
    return Ending(load_state(out / "checkpoints" / "last.pt"), log)


def assert_same(a: Ending, b: Ending) -> None:
    assert a.log == b.log
    assert a.state["step"] == b.state["step"] == 48
    for part in ("model", "ema"):
        assert a.state[part].keys() == b.state[part].keys()
        assert all(torch.equal(value, b.state[part][key]) for key, value in a.state[part].items())
    for key, entry in a.state["optimizer"]["state"].items():
        other = b.state["optimizer"]["state"][key]
        assert all(torch.equal(entry[name], other[name]) for name in entry)


def progress(out: Path) -> int:
    """Bytes of the log: how far the run is, seen from outside."""
    log = out / "log.jsonl"
    return log.stat().st_size if log.exists() else 0


def last_step(out: Path) -> int:
    """The step of the last line in the log."""
    lines = (out / "log.jsonl").read_text().splitlines() if (out / "log.jsonl").exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def kill_at(out: Path, data: Path, moment: str, rng: random.Random, workers: int) -> str:
    """Start, wait for a moment, SIGKILL the whole group. Returns what the moment was, for a table."""
    process = start(out, data, f"workers={workers}")
    wait_for(out, moment, rng, process)
    alive = process.poll() is None
    if alive:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return f"{moment} ({last_step(out)})" if alive else f"{moment} (had ended)"


def wait_for(out: Path, moment: str, rng: random.Random, process: subprocess.Popen[Any]) -> None:
    deadline, before = time.monotonic() + 120, progress(out)
    while time.monotonic() < deadline and process.poll() is None:
        if moment == "while a checkpoint is written" and list(out.glob("checkpoints/.*.partial")):
            return
        if moment == "in a step" and progress(out) > before:
            time.sleep(rng.uniform(0, 0.4))
            return
        if moment == "during validation" and due(out):
            time.sleep(rng.uniform(0, 0.05))
            return
        time.sleep(0.0005)


def due(out: Path) -> bool:
    """Whether the last line told is the one before an evaluation: both are due at step 24."""
    text = (out / "log.jsonl").read_text() if (out / "log.jsonl").exists() else ""
    return text.endswith("\n") and '"step": 24,' in text.splitlines()[-1] and '"kind": "train"' in text.splitlines()[-1]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small image folder of real scans, so that files are read and workers have work."""
    from PIL import Image

    from fourstage.data.embedded.digits import Digits

    root = tmp_path_factory.mktemp("digits")
    for split, count in (("train", 128), ("val", 40)):
        digits = Digits("train" if split == "train" else "val")
        for index in range(count):
            sample = digits.sample(index)
            folder = root / split / str(sample.label)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(sample.image).save(folder / f"{index}.png")  # pyright: ignore[reportArgumentType]
    return root


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Ending:
    out = tmp_path_factory.mktemp("whole") / "run"
    process = start(out, data, "workers=0")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()
    return ending(out)


MOMENTS = ("in a step", "while a checkpoint is written", "during validation")


def survive(out: Path, data: Path, moments: list[str], seed: int) -> list[str]:
    """Kill at each moment, each time with another number of workers, then let it end."""
    rng = random.Random(seed)
    told = [kill_at(out, data, moment, rng, workers=i % 3) for i, moment in enumerate(moments)]
    process = start(out, data, "workers=1")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()
    return told


def test_sigkill_at_three_moments_changes_no_bit(data: Path, whole: Ending, tmp_path: Path) -> None:
    told = survive(tmp_path / "run", data, list(MOMENTS), seed=1)
    assert not any("had ended" in moment for moment in told)
    assert_same(whole, ending(tmp_path / "run"))


@pytest.mark.parametrize(("number", "name", "code"), [(signal.SIGTERM, "SIGTERM", 143), (signal.SIGINT, "Ctrl-C", 130)])
def test_a_polite_stop_saves_says_where_and_continues(
    data: Path, whole: Ending, tmp_path: Path, number: signal.Signals, name: str, code: int
) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen(
        command(out, data, "workers=2"), env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    wait_for(out, "in a step", random.Random(0), process)
    os.killpg(process.pid, number)
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == code, errors
    assert f"Stopped by {name} at step" in printed
    assert str(out / "checkpoints" / "last.pt") in printed
    assert "Traceback" not in errors
    again = start(out, data)
    assert again.wait(timeout=300) == 0
    again.communicate()
    assert_same(whole, ending(out))


@pytest.mark.torture
def test_sigkill_at_thirty_moments(data: Path, whole: Ending, tmp_path: Path) -> None:
    """Ten runs, three kills each; a table of the kills is appended to docs/log.md."""
    rows = ["| run | killed (after the log line of this step) | same bits |", "| --- | --- | --- |"]
    for number in range(10):
        rng = random.Random(number)
        out = tmp_path / f"run{number}"
        chosen = sorted((rng.choice(MOMENTS) for _ in range(3)), key=lambda moment: moment != "during validation")
        told = survive(out, data, chosen, seed=number)  # an early moment first: later it would not come again
        assert not any("had ended" in moment for moment in told)
        assert_same(whole, ending(out))
        rows.append(f"| {number} | {'; '.join(told)} | yes |")
    today, machine = datetime.now(UTC).date(), f"{platform.machine()}, Python {platform.python_version()}"
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    title = f"## {today}: thirty kills, and the bits of a run that was never killed"
    where = f"Machine: {machine}, torch {torch.__version__}. Commit: {commit}."
    with (Path(__file__).parents[2] / "docs" / "log.md").open("a") as log:
        log.write("\n".join(["", title, "", where, "", "`make torture` gave:", "", *rows, ""]))
