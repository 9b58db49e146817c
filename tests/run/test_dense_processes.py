"""Two processes train and score detectors and segmentors; one process gives the same scores, and can go on alone."""

import json
import math
import os
import signal
import time
from pathlib import Path

import pytest
from run.exact import start, wait
from run.runs import logged
from test_dense_bad_input import change, no_objects_in_half, scenes_in, words

from fourstage.cli import main
from fourstage.engine.state import load_state

# One image at a time: what a processor computes of an image depends on how many come with it, in the last bits.
ALONE = ["evaluation_batch_size=1", "ema=0.9", "filter_empty=false", "seed=3"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An odd number of validation images, and training images without objects, so that processes differ."""
    root = scenes_in(tmp_path_factory.mktemp("scenes") / "data", val=5)
    change(root, no_objects_in_half, "train")
    return root


def command(method: str, data: Path, out: Path, *more: str) -> list[str]:
    own = [word for word in ALONE if method != "upernet" or "filter" not in word]
    return words(method, data, out, *own, *more)


@pytest.mark.parametrize("method", ["retinanet", "atss", "sparse_rcnn", "mask_rcnn", "dino", "upernet"])
def test_two_processes_train_and_score_as_one(
    method: str, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    wait(start(command(method, scenes, out), 2))
    train = logged(out, "train")
    assert [line["step"] for line in train] == [1, 2]  # one process writes
    assert all(math.isfinite(value) for line in train for value in (*line["losses"].values(), line["grad_norm"]))
    assert [line["which"] for line in logged(out, "evaluation")] == ["model", "ema"]
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["best.pt", "last.pt", "previous.pt"]
    assert load_state(out / "checkpoints" / "last.pt")["finished"]
    divided = json.loads((out / "evaluation.json").read_text())
    assert len((out / "records.jsonl").read_text().splitlines()) == 5
    assert main(["evaluate", str(out), "--json"]) == 0
    alone = json.loads(capsys.readouterr().out)["metrics"]
    assert {name: alone[name] for name in divided["metrics"]} == divided["metrics"]


def test_one_process_goes_on_with_a_run_of_two(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each process draws its own regions, so the numbers that follow are others; it says so."""
    out, more = tmp_path / "run", ["length=16it", "evaluate_every=16it"]
    begun = start(command("mask_rcnn", scenes, out, *more), 2)
    while len(logged(out, "train")) < 2:
        assert all(process.poll() is None for process in begun)
        time.sleep(0.01)
    os.kill(begun[0].pid, signal.SIGTERM)
    for process in begun:
        process.communicate(timeout=200)
    assert 2 <= load_state(out / "checkpoints" / "last.pt")["step"] < 16
    assert main(command("mask_rcnn", scenes, out, *more)) == 0
    printed = capsys.readouterr().out
    assert "not bit for bit" in printed
    assert "processes 2 before, 1 now" in printed
    assert [line["step"] for line in logged(out, "train")] == list(range(1, 17))
    assert load_state(out / "checkpoints" / "last.pt")["finished"]
