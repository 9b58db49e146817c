"""Grids that are trained: the same weights at the start, resumption, and the table after kills."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from run.runs import stop_before

from fourstage.cli import main
from fourstage.run.compare.compare import plan_comparison
from fourstage.run.compare.initial import initial_weights, shared_state
from fourstage.run.splits import open_split
from fourstage.run.task_protocol import protocol_of
from fourstage.weights.reading.safe import read_checkpoint

SHORT = ["length=2it", "warmup=0it", "batch_size=16", "workers=0", "ema=null", "checkpoint_every=1it", "device=cpu"]
GRID = ["compare", "digits_visformer", "--vary", "mixer=swin,pvt", "--seeds", "2", "--seconds", "0"]
GRID += ["--analyses", "erf,cka", *SHORT]


def result(out: Path) -> dict[str, Any]:
    """The table without what a machine's pace and the place of the folder decide."""
    table = json.loads((out / "table.json").read_text())
    for arm in table["arms"]:
        arm["hours"] = None
        arm["runs"] = [Path(folder).relative_to(out.resolve()).as_posix() for folder in arm["runs"]]
    return table


def test_a_grid_is_trained_stopped_and_continued(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "mixers"
    assert main([*GRID, "--out", str(out), "--cell", "1"]) == 0
    assert [path.parents[1].name for path in out.glob("*/seed-*/report.html")] == ["pvt"]
    assert main(["compare", str(out)]) == 2
    assert "no seed is in every arm" in capsys.readouterr().err
    assert not (out / "table.md").exists()
    assert main(["train", "digits_visformer", "model=unified_pico", "--out", str(out / "swin" / "seed-0"), *SHORT]) == 0
    assert main([*GRID, "--out", str(out)]) == 2  # a run of another recipe is in the way
    assert "holds a run of another recipe" in capsys.readouterr().err
    shutil.rmtree(out / "swin")
    for cell in ("0", "2"):
        assert main([*GRID, "--out", str(out), "--cell", cell]) == 0
    capsys.readouterr()
    assert main(["compare", str(out), "--seconds", "0", "--analyses", "none", "--reference", "pvt"]) == 0
    assert "not ended, and not in the table: pvt, seed 1" in capsys.readouterr().out
    assert [pair["arm"] for pair in result(out)["pairs"]] == ["swin"]
    assert main([*GRID, "--out", str(out), "--cell", "4"]) == 2
    assert "--cell 4 is outside of this grid; its cells are 0 to 3" in capsys.readouterr().err


def test_arms_begin_with_the_same_weights_where_shapes_allow(tmp_path: Path) -> None:
    planned = plan_comparison(["digits_visformer"], ["mixer=swin,pvt"], 2, tmp_path / "out", changes=SHORT)
    cells = planned.grid.cells
    assert initial_weights(cells[0], planned.reference) == []  # the reference itself
    [change] = initial_weights(cells[3], planned.reference)  # pvt, seed 1
    assert change == f"weights={tmp_path}/out/pvt/initial/seed-1.pt"
    states = {}
    for cell in cells[2:]:
        protocol = protocol_of(cell.arm.recipe.model_copy(update={"seed": 1}))
        task = protocol.build_task(open_split(protocol, "train", show=False).classes)
        if cell.arm.name == "pvt":
            before = {name: value.clone() for name, value in task.network.state_dict().items()}
            protocol.load_initial_weights(task, change.removeprefix("weights="))
            assert any(not torch.equal(value, before[name]) for name, value in task.network.state_dict().items())
        states[cell.arm.name] = task.network.state_dict()
    shared = [
        name for name, value in states["swin"].items() if states["pvt"].get(name, torch.empty(0)).shape == value.shape
    ]
    assert len(shared) > 50
    assert {"head.weight", "stages.3.blocks.0.mlp.expand.weight"} <= set(shared)
    assert all(torch.equal(states["swin"][name], states["pvt"][name]) for name in shared)
    assert (
        read_checkpoint(tmp_path / "out" / "pvt" / "initial" / "seed-1.pt").content["model"].keys()
        == states["pvt"].keys()
    )


def test_arms_of_the_same_layers_need_no_file(tmp_path: Path) -> None:
    planned = plan_comparison(["digits_visformer"], ["lr=1e-3,2e-3"], 1, tmp_path / "out", changes=SHORT)
    assert initial_weights(planned.grid.cells[1], planned.reference) == []
    assert not (tmp_path / "out").exists()


def test_shapes_that_differ_keep_their_own_weights() -> None:
    own = {"a": torch.zeros(2), "b": torch.zeros(3), "c": torch.zeros(1)}
    state, shared = shared_state(own, {"a": torch.ones(2), "b": torch.ones(4)})
    assert [state[name].tolist() for name in "abc"] == [[1, 1], [0, 0, 0], [0]]
    assert shared == 2


def test_a_comparison_that_was_moved_continues_within_a_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "elsewhere" / "moved"
    words = [word if word != "2" else "1" for word in GRID]
    words[words.index("length=2it")] = "length=3it"
    words[words.index("erf,cka")] = "none"
    assert main([*words, "--out", str(tmp_path / "whole"), "--cell", "1"]) == 0
    with pytest.MonkeyPatch.context() as patch:
        stop_before(2, patch)
        assert main([*words, "--out", str(here), "--cell", "1"]) == 143  # pvt, which begins with weights of swin
    assert not (here / "pvt" / "seed-0" / "report.html").exists()
    there.parent.mkdir()
    here.rename(there)
    assert main([*words, "--out", str(there), "--cell", "1"]) == 0
    ends = [read_checkpoint(out / "pvt" / "seed-0" / "checkpoints" / "best.pt").content["model"]
            for out in (there, tmp_path / "whole")]  # fmt: skip
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    assert not here.exists()


class Forks:
    """A process that has imported everything and forks one for each command; see `run/zygote.py`."""

    def __init__(self) -> None:
        file = Path(__file__).parents[1] / "zygote.py"
        self.process = subprocess.Popen(
            [sys.executable, str(file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def ask(self, **request: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def run(self, words: list[str], log: Path, kill_after: float | None = None) -> int | None:
        """Run a command to its end, or kill it after so many seconds; return its exit code."""
        pid = self.ask(start=words, environment={}, errors=str(log))
        if kill_after is None:
            return self.ask(wait=pid, seconds=240)
        code = self.ask(wait=pid, seconds=kill_after)
        if code is None:
            os.killpg(pid, signal.SIGKILL)
            code = self.ask(wait=pid, seconds=60)
        return code


def killed_and_not(tmp_path: Path, words: list[str], kills: int, seed: int) -> tuple[Path, Path, int]:
    """Run a comparison undisturbed, and another that is killed at random moments; return both, and the real kills."""
    forks, draw, log = Forks(), random.Random(seed), tmp_path / "log.txt"
    whole, killed, hits = tmp_path / "whole", tmp_path / "killed", 0
    try:
        start = time.monotonic()
        assert forks.run([*words, "--out", str(whole)], log) == 0, log.read_text()
        seconds = time.monotonic() - start
        for _ in range(kills):  # all together before the end of an undisturbed comparison
            hits += (
                forks.run([*words, "--out", str(killed)], log, draw.uniform(0.1, 0.9) / kills * seconds)
                == -signal.SIGKILL
            )
        assert forks.run([*words, "--out", str(killed)], log) == 0, log.read_text()
    finally:
        forks.process.communicate()
    return whole, killed, hits


@pytest.mark.skipif(os.name != "posix", reason="processes are forked and killed")
def test_three_kills_leave_the_same_table(tmp_path: Path) -> None:
    words = [word if word != "2" else "1" for word in GRID]
    whole, killed, hits = killed_and_not(tmp_path, words, kills=3, seed=5)
    assert hits >= 1
    assert result(killed) == result(whole)
    assert not list(killed.glob("*/initial/*.pt"))  # of cells that have ended


@pytest.mark.torture
@pytest.mark.parametrize("seed", range(4))
def test_many_kills_leave_the_same_table(seed: int, tmp_path: Path) -> None:
    words = [word if word != "2" else "3" for word in GRID]
    words[words.index("length=2it")] = "length=8it"
    whole, killed, hits = killed_and_not(tmp_path, words, kills=8, seed=seed)
    assert hits >= 4
    assert result(killed) == result(whole)
