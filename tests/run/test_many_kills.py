"""Fifty kills for each task change no bit: SIGKILL and SIGTERM, of one process with two loader processes, and of two.

A run is killed again and again, each time at a moment that a seeded generator draws from the length of a run that is
not killed. When a run has ended, it is compared with that one, and another run begins. The rows of the table go to
runs/torture/kills.jsonl at once; a torture that is stopped continues there. FOURSTAGE_KILLS sets another number.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from run.exact import free_port
from run.runs import logged
from test_cli import image_folder
from test_dense_bad_input import SMALL, scenes_in

from fourstage.engine.state import load_state

pytestmark = pytest.mark.torture
ROOT = Path(__file__).parents[2]
TABLE = ROOT / "runs" / "torture" / "kills.jsonl"
KILLS = int(os.environ.get("FOURSTAGE_KILLS", "50"))  # of each task, in both forms together
PATIENCE = 20.0  # seconds in which all processes must be gone after SIGTERM, or after the kill of their neighbour
STEPS = 16
COMMON = ["warmup=0it", "log_every=1", "evaluate_every=8it", "checkpoint_every=3it", "ema=0.9", "device=cpu"]
LENGTH = [f"length={STEPS}it", "batch_size=8"]
TASKS = {
    "classification": ["digits_visformer", "auto_augment=rand-m5-mstd0.5-inc1", "mixup=0.8", "accumulation=2"],
    "detection": ["digit_scenes_retinanet", *SMALL["retinanet"], "filter_empty=false"],
    "segmentation": ["digit_scenes_upernet", *SMALL["upernet"]],
}
FORMS = {"two workers": (1, 2), "two processes": (2, 1)}  # processes, loader processes of each


@dataclass
class Kill:
    """One row of the table."""

    task: str
    form: str
    run: int
    number: int
    signal: str
    target: str  # "all", or "one" of two processes
    seconds: float  # after the start
    step: int  # last one in the log
    codes: list[int | None]
    gone_after: float


class Zygote:
    """See zygote.py."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "run" / "zygote.py")],
            env={**os.environ, "OMP_NUM_THREADS": "1"}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def ask(self, **request: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    made = Zygote()
    yield made
    made.close()


@dataclass
class Runs:
    """Starts and kills the runs of one task in one form."""

    zygote: Zygote
    task: str
    form: str
    data: Path
    folder: Path

    def start(self, out: Path) -> list[int]:
        processes, workers = FORMS[self.form]
        words = [*TASKS[self.task], "--data", str(self.data), "--out", str(out), *COMMON, *LENGTH, f"workers={workers}"]
        meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(processes)}
        return [
            self.zygote.ask(
                start=["train", *words],
                environment={**meet, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                errors=str(self.errors(out, rank)),
            )
            for rank in range(processes)
        ]

    def errors(self, out: Path, rank: int) -> Path:
        return out.with_name(f"{out.name}-{rank}.txt")

    def wait(self, pids: list[int], seconds: float) -> list[int | None]:
        deadline = time.monotonic() + seconds
        return [self.zygote.ask(wait=pid, seconds=max(0.0, deadline - time.monotonic())) for pid in pids]

    def complete(self, out: Path) -> float:
        """Let a run end. Returns the seconds that it took."""
        began = time.monotonic()
        codes = self.wait(self.start(out), 300)
        assert codes == [0] * len(codes), self.errors(out, 0).read_text()
        return time.monotonic() - began

    def kill(self, out: Path, after: float, name: str, target: str) -> Kill | None:
        """Start a run and kill it. None: it had ended before."""
        pids = self.start(out)
        time.sleep(after)
        codes = self.wait(pids, 0)
        if codes == [0] * len(pids):
            return None
        assert all(code in (None, 0) for code in codes), [self.errors(out, i).read_text() for i in range(len(pids))]
        reached, killed = len(logged(out, "train")), time.monotonic()
        alive = [pid for pid, code in zip(pids, codes, strict=True) if code is None]
        for pid in alive if target == "all" else alive[-1:]:
            os.killpg(pid, signal.Signals[name])
        codes = self._gone(alive)
        seconds = round(time.monotonic() - killed, 2)
        return Kill(self.task, self.form, 0, 0, name, target, round(after, 2), reached, codes, seconds)

    def _gone(self, pids: list[int]) -> list[int | None]:
        """Wait for all; a process that still waits for a neighbour at its start gets SIGTERM, as from a launcher."""
        codes = self.wait(pids, 5)
        left = [pid for pid, code in zip(pids, codes, strict=True) if code is None]
        for pid in left:
            os.killpg(pid, signal.SIGTERM)
        more = iter(self.wait(left, PATIENCE))
        codes = [next(more) if code is None else code for code in codes]
        for pid, code in zip(pids, codes, strict=True):
            if code is None:
                os.killpg(pid, signal.SIGKILL)
        return codes


def ending(out: Path) -> tuple[Any, Any]:
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    for line in log:
        line.pop("timing", None)
    return load_state(out / "checkpoints" / "last.pt"), log


def assert_same(out: Path, whole: Path) -> None:
    """Equal weights, averages, moments, log lines and scores."""
    (ours, our_log), (theirs, their_log) = ending(out), ending(whole)
    assert our_log == their_log
    assert ours["step"] == theirs["step"] == STEPS
    for part in ("model", "ema"):
        assert ours[part].keys() == theirs[part].keys()
        assert all(torch.equal(value, theirs[part][key]) for key, value in ours[part].items())
    for key, entry in ours["optimizer"]["state"].items():
        assert all(torch.equal(value, theirs["optimizer"]["state"][key][name]) for name, value in entry.items())
    scores = [json.loads((folder / "evaluation.json").read_text())["metrics"] for folder in (out, whole)]
    assert scores[0] == scores[1]


def done_before(task: str, form: str) -> list[dict[str, Any]]:
    """Rows of an earlier torture of the same code."""
    rows = [json.loads(line) for line in TABLE.read_text().splitlines()] if TABLE.is_file() else []
    return [row for row in rows if (row["task"], row["form"], row["commit"]) == (task, form, commit())]


def commit() -> str:
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def keep(kills: list[Kill]) -> None:
    """Append the kills of a run that ended with the same bits."""
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    with TABLE.open("a") as table:
        table.writelines(json.dumps({**asdict(kill), "commit": commit(), "same_bits": True}) + "\n" for kill in kills)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("data")
    made = {"images": image_folder(root / "images", 40, 12), "scenes": scenes_in(root / "scenes")}
    return lambda task: made["images" if task == "classification" else "scenes"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("task", TASKS)
def test_kills_change_no_bit(task: str, form: str, data: Callable[[str], Path], zygote: Zygote, tmp_path: Path) -> None:
    wanted, earlier = KILLS // len(FORMS), done_before(task, form)
    number, run = len(earlier), max((row["run"] for row in earlier), default=0) + 1
    runs = Runs(zygote, task, form, data(task), tmp_path)
    whole = tmp_path / "whole"
    length = runs.complete(whole)
    while number < wanted:
        rng, out, kills = random.Random(f"{task} {form} {run}"), tmp_path / f"run{run}", []
        while number + len(kills) < wanted:
            name = rng.choice(("SIGKILL", "SIGKILL", "SIGTERM"))
            target = rng.choice(("all", "one")) if form == "two processes" else "all"
            kill = runs.kill(out, rng.uniform(0.1, 0.9) * length, name, target)
            if kill is None:
                break
            assert None not in kill.codes, [runs.errors(out, i).read_text() for i in range(len(kill.codes))]
            kill.run, kill.number = run, number + len(kills) + 1
            kills.append(kill)
        runs.complete(out)
        assert_same(out, whole)
        keep(kills)
        number, run = number + len(kills), run + 1


def test_the_table_has_all_kills(capsys: pytest.CaptureFixture[str]) -> None:
    """It prints the sums; the rows are in the file."""
    lines = ["", "| task | form | kills | SIGKILL | SIGTERM | of one process | runs | longest wait (s) | same bits |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for task in TASKS:
        for form in FORMS:
            rows = done_before(task, form)
            assert len(rows) >= KILLS // len(FORMS)
            assert all(row["same_bits"] for row in rows)
            counts = [sum(row["signal"] == name for row in rows) for name in ("SIGKILL", "SIGTERM")]
            one, ended = sum(row["target"] == "one" for row in rows), len({row["run"] for row in rows})
            longest = max(row["gone_after"] for row in rows)
            cells = [task, form, len(rows), *counts, one, ended, f"{longest:.1f}", "yes"]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    TABLE.with_suffix(".md").write_text("\n".join(lines[1:]) + "\n")
    with capsys.disabled():
        print("\n".join(lines))
