"""Hostile checkpoints through every verb: nothing runs, nothing is written elsewhere, nothing waits or fills memory."""

import json
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
import torch
from golden.checkpoints.hostile import CODE
from PIL import Image
from run.hostile_files import all_files

import fourstage
from fourstage.cli import main

SECONDS, MEGABYTES = 20.0, 2000  # the most that a verb may take for a hostile file
FAST = ["length=1it", "batch_size=16", "warmup=0it", "workers=0"]
VERBS: dict[str, Callable[[str], list[str]]] = {
    "predict": lambda file: ["predict", file, "image.png", "--out", "out"],
    "evaluate": lambda file: ["evaluate", "digits_visformer", "--weights", file],
    "convert": lambda file: ["convert", file, "--model", "visformer_digits", "--out", "out/a.safetensors"],
    "train from it": lambda file: ["train", "digits_visformer", f"weights={file}", "--dry-run", *FAST],
    "resume": lambda file: ["train", "digits_visformer", "--out", "run", *FAST],
    "evaluate a run": lambda file: ["evaluate", "run"],
    "predict with a run": lambda file: ["predict", "run", "image.png", "--out", "out"],
}
API = "from_checkpoint"
OF_RUNS = ("resume", "evaluate a run", "predict with a run")


@dataclass
class Outcome:
    code: int  # -9: it was ended after the time
    seconds: float
    megabytes: float  # beyond those of the process before
    text: str


def in_a_fork(work: Callable[[], int], folder: Path) -> Outcome:
    """Do something in a child process, in a folder, with its output in a file, and end it after the time."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started, child = time.monotonic(), os.fork()
    if child == 0:
        code = 70
        try:
            os.chdir(folder)
            with (folder.parent / "printed").open("w", buffering=1) as printed:
                os.dup2(printed.fileno(), 1)
                os.dup2(printed.fileno(), 2)
                sys.stdout = sys.stderr = printed
                try:
                    code = work()
                except SystemExit as error:
                    code = int(error.code or 0)
                except BaseException:
                    traceback.print_exc(file=printed)
        finally:
            os._exit(code)
    slowdown = 6  # wall time on a machine that does other work too
    while (ended := os.wait4(child, os.WNOHANG))[0] == 0:
        if time.monotonic() - started > SECONDS * slowdown:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    _, status, used = ended
    text = (folder.parent / "printed").read_text(errors="replace")
    return Outcome(
        os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, (used.ru_maxrss - before) / 1024, text
    )


def build(file: str) -> int:
    try:
        fourstage.from_checkpoint(file)
    except (ValueError, OSError) as error:
        print(f"fourstage: {error}")
        return 2
    return 0


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("honest") / "run"
    assert main(["train", "digits_visformer", "--out", str(out), *FAST]) == 0
    (out / "report.html").unlink()
    return out


def tree(root: Path) -> dict[str, tuple[int, int]]:
    """Return every file that must stay, with size and time of change."""
    skipped = ("out", "run", "predictions")
    found = (path for path in root.rglob("*") if path.relative_to(root).parts[0] not in skipped)
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in found if not path.is_dir()}


def try_file(name: str, folder: Path, run_folder: Path, verbs: list[str]) -> list[tuple[str, Outcome, str]]:
    """Put one hostile file through the verbs; return each with its outcome and the fault, "" where there is none."""
    folder.mkdir()
    (folder / "evil.py").write_text(CODE)
    (folder / "victim").mkdir()
    (folder / "out").mkdir()
    (folder / "evil.pt").write_text("x")
    Image.new("RGB", (32, 32)).save(folder / "image.png")
    suffix = ".safetensors" if name.startswith("safetensors") else ".pt"
    file = folder / f"file{suffix}"
    all_files(run_folder / "checkpoints" / "best.pt")[name](file)
    results = []
    for verb in verbs:
        if verb in OF_RUNS:
            _place(file, run_folder, folder / "run")
        before = tree(folder)
        if verb == API:
            outcome = in_a_fork(lambda: build(file.name), folder)
        else:
            outcome = in_a_fork(partial(main, VERBS[verb](file.name)), folder)
        results.append((verb, outcome, _fault(outcome, before == tree(folder), folder)))
    return results


def _place(file: Path, run_folder: Path, run: Path) -> None:
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(run_folder, run)
    for name in ("last.pt", "previous.pt", "best.pt"):
        place = run / "checkpoints" / name
        place.unlink(missing_ok=True)
        if file.is_file() and file.stat().st_size < 2**30:
            shutil.copy(file, place)
        else:
            place.symlink_to(file)


def _fault(outcome: Outcome, unchanged: bool, folder: Path) -> str:
    if (folder / "marker").exists() or not (folder / "victim").exists() or (folder / "run" / "marker").exists():
        return "executed"
    if not unchanged:
        return "outside write"
    if outcome.code == -signal.SIGKILL or outcome.seconds > SECONDS:
        return "hang"
    if outcome.megabytes > MEGABYTES:
        return "memory"
    if "Traceback" in outcome.text or outcome.code not in (0, 2):
        return "traceback"
    return ""


QUICK = {
    "code, zip: os.system": [*VERBS, API],
    "bomb: colliding keys": ["predict"],
    "safetensors: img_size": [API, "predict"],
    "run: image_size that fits memory": [API, "predict"],
    "run: many layers": [API],
    "run: width": [API, "predict"],
    "run: imports": ["predict", "evaluate"],
    "run: unknown network": ["predict"],
    "run: recipe is deep": [API, "predict"],
    "run: classes is a number": [API, "predict"],
    "configuration: deep": [API],
    "file: pipe": ["predict"],
    "damage 0": ["predict", "resume"],
}


@pytest.mark.parametrize("name", QUICK)
def test_a_hostile_file_is_a_sentence(name: str, tmp_path: Path, run_folder: Path) -> None:
    for verb, outcome, fault in try_file(name, tmp_path / "work", run_folder, QUICK[name]):
        assert not fault, f"{verb}: {fault}, {outcome.text[-3000:]}"
        assert outcome.code == (0 if name == "run: imports" else 2), outcome.text


@pytest.mark.torture
def test_three_hundred_hostile_files(tmp_path: Path, run_folder: Path) -> None:
    """A table of the faults, none, is appended to docs/log.md."""
    names = list(all_files(run_folder / "checkpoints" / "best.pt"))
    assert len(names) >= 300
    faults: list[str] = []
    counts, slowest, largest = Counter[tuple[str, str]](), dict[str, float](), dict[str, float]()
    others = [verb for verb in VERBS if verb != "predict"]
    for number, name in enumerate(names):
        some = [others[(number // 2 + step) % len(others)] for step in (0, 2, 4)] if number % 2 else others[:3]
        for verb, outcome, fault in try_file(name, tmp_path / "work", run_folder, [API, "predict", *some]):
            counts[verb, "refused" if outcome.code else "read"] += 1
            slowest[verb] = max(slowest.get(verb, 0), outcome.seconds)
            largest[verb] = max(largest.get(verb, 0), outcome.megabytes)
            if fault:
                faults.append(f"{name}, {verb}: {fault}: {outcome.text[-300:]}")
        shutil.rmtree(tmp_path / "work")
    (tmp_path / "faults.json").write_text(json.dumps(faults, indent=1))
    assert not faults, "\n".join(faults)
    rows = [
        f"| {verb} | {counts[verb, 'refused']} | {counts[verb, 'read']} | {slowest[verb]:.1f} | {largest[verb]:.0f} |"
        for verb in (*VERBS, API)
    ]
    _append_to_log(len(names), rows)


def _append_to_log(files: int, rows: list[str]) -> None:
    today, machine = datetime.now(UTC).date(), f"{platform.machine()}, Python {platform.python_version()}"
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    text = [
        f"## {today}: {files} hostile checkpoints",
        f"Machine: {machine}, torch {torch.__version__}. Commit: {commit}.",
        "`make torture` put each file through five verbs: 0 executed, 0 wrote elsewhere, 0 took 20 s of processor "
        "time, 0 took 2 GB, 0 tracebacks.",
        "\n".join(
            [
                "| verb | refused | read | most seconds | most MB above the start |",
                "| --- | ---: | ---: | ---: | ---: |",
                *rows,
            ]
        ),
    ]
    with (Path(__file__).parents[2] / "docs" / "log.md").open("a") as log:
        log.write("\n" + "\n\n".join(text) + "\n")
