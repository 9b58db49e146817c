"""Trackers get every number once; they are missed before a training, and never stop one."""

import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fourstage.engine.log import RunLog
from fourstage.engine.tracker import check_tracker

NAMES = ("wandb", "trackio")


class StandIn(ModuleType):
    """A module with the calls of `wandb` or `trackio` that we make; records them."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.begun: list[dict[str, Any]] = []
        self.sent: list[tuple[int, dict[str, float]]] = []
        self.defined: list[tuple[Any, ...]] = []
        self.closed = 0
        self.broken = ""

    def init(self, **arguments: Any) -> "StandIn":
        if self.broken == "init":
            raise RuntimeError("no network")
        print(f"{self.__name__} says hello")
        self.begun.append(arguments)
        return self

    def define_metric(self, *arguments: Any, **named: Any) -> None:
        self.defined.append((*arguments, *named.values()))

    def log(self, numbers: dict[str, float], step: int | None = None) -> None:
        if self.broken == "log":
            raise RuntimeError("the server is gone")
        self.sent.append((numbers.pop("step") if step is None else step, numbers))  # pyright: ignore[reportArgumentType]

    def finish(self) -> None:
        self.closed += 1
        if self.broken == "finish":
            raise RuntimeError("upload failed")

    def steps(self, name: str = "train/total") -> list[int]:
        return [step for step, numbers in self.sent if name in numbers]


@pytest.fixture(params=NAMES)
def tracker(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    stand_in = StandIn(request.param)
    monkeypatch.setitem(sys.modules, request.param, stand_in)
    for name in ("WANDB_PROJECT", "TRACKIO_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    return stand_in


def train(step: int) -> dict[str, Any]:
    return {"kind": "train", "step": step, "epoch": step / 10, "lr": 0.1, "total": 1 / step, "losses": {"class": 2.0},
            "timing": {"data_wait": 0.5}}  # fmt: skip


def evaluation(step: int, which: str) -> dict[str, Any]:
    return {"kind": "evaluation", "step": step, "epoch": 1.0, "which": which, "metrics": {"top1": 50.0}}


def opened(folder: Path, tracker: StandIn, position: int = 0, step: int = 0) -> RunLog:
    return RunLog(folder, position, step, tracker=tracker.__name__, config={"seed": 7})


def killed(log: RunLog) -> None:
    """The files are closed by the system, and the tracker hears nothing."""
    log._tracker = None
    log.__exit__(None, None, None)


def test_the_numbers_are_those_of_the_log_under_the_same_names(tmp_path: Path, tracker: StandIn) -> None:
    with opened(tmp_path, tracker) as log:
        log.write(train(5))
        log.write(evaluation(5, "ema"))
    assert tracker.sent == [
        (5, {"train/lr": 0.1, "train/total": 0.2, "train/class": 2.0, "train/data_wait": 0.5}),
        (5, {"evaluation-ema/top1": 50.0}),
    ]
    [begun] = tracker.begun
    assert begun["project"] == "fourstage"
    assert begun["config"] == {"seed": 7}
    assert begun["resume"] == "allow"
    assert tmp_path.name in begun["name"]
    assert tracker.closed == 1
    if tracker.__name__ == "wandb":
        assert begun["dir"] == str(tmp_path)
        assert tracker.defined == [("step",), ("*", "step")]
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2


def test_the_project_may_be_chosen(tmp_path: Path, tracker: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{tracker.__name__.upper()}_PROJECT", "thesis")
    opened(tmp_path, tracker).__exit__(None, None, None)
    assert tracker.begun[0]["project"] == "thesis"


def test_a_run_that_continues_goes_on_in_the_same_run_and_sends_nothing_twice(tmp_path: Path, tracker: StandIn) -> None:
    log = opened(tmp_path, tracker)
    for step in (10, 20):
        log.write(train(step))
    position = log.position()
    log.write(train(30))
    log.write(evaluation(30, "model"))
    killed(log)
    log = opened(tmp_path, tracker, position, 20)
    log.write(train(30))
    killed(log)
    with opened(tmp_path, tracker, position, 20) as log:
        for step in (30, 40):
            log.write(train(step))
            log.write(evaluation(step, "model"))
    assert tracker.steps() == [10, 20, 30, 40]
    assert tracker.steps("evaluation-model/top1") == [30, 40]
    own = {(begun.get("id"), begun["name"]) for begun in tracker.begun}
    assert len(tracker.begun) == 3
    assert len(own) == 1
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [
        10, 20, 30, 30, 40, 40,
    ]  # fmt: skip


def test_a_tracker_that_comes_late_gets_what_was_before(tmp_path: Path, tracker: StandIn) -> None:
    with RunLog(tmp_path) as log:
        for step in (10, 20):
            log.write(train(step))
        position = log.position()
        log.write(train(30))
    with opened(tmp_path, tracker, position, 20) as log:
        log.write(train(30))
    assert tracker.steps() == [10, 20, 30]


def test_a_failure_of_a_tracker_is_reported_once_and_the_next_start_sends_the_rest(
    tmp_path: Path, tracker: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    with opened(tmp_path, tracker) as log:
        log.write(train(10))
        tracker.broken = "log"
        for step in (20, 30):
            log.write(train(step))
        position = log.position()
    told = capsys.readouterr().err
    assert told.count("fourstage:") == 1
    assert "the server is gone" in told
    assert tracker.steps() == [10]
    tracker.broken = ""
    with opened(tmp_path, tracker, position, 30) as log:
        log.write(train(40))
    assert tracker.steps() == [10, 20, 30, 40]
    assert len(json.loads((tmp_path / "log.jsonl").read_text().splitlines()[1])["losses"]) == 1


def test_an_end_that_fails_harms_nothing(tmp_path: Path, tracker: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    tracker.broken = "finish"
    with opened(tmp_path, tracker) as log:
        log.write(train(10))
    assert "upload failed" in capsys.readouterr().err


def test_a_tracker_that_does_not_begin_stops_a_new_run_and_no_other(
    tmp_path: Path, tracker: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker.broken = "init"
    with pytest.raises(ValueError, match=r"could not start \(no network\).*tracker=none"):
        opened(tmp_path, tracker)
    assert not (tmp_path / "tracker.json").exists()
    tracker.broken = ""
    with opened(tmp_path, tracker) as log:
        log.write(train(10))
        position = log.position()
    tracker.broken = "init"
    with opened(tmp_path, tracker, position, 10) as log:
        log.write(train(20))
        position = log.position()
    assert "the training continues without it" in capsys.readouterr().err
    tracker.broken = ""
    with opened(tmp_path, tracker, position, 20) as log:
        log.write(train(30))
    assert tracker.steps() == [10, 20, 30]


def test_nothing_of_a_tracker_is_printed_where_programs_read(
    tmp_path: Path, tracker: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    opened(tmp_path, tracker).__exit__(None, None, None)
    assert capsys.readouterr().out == ("" if tracker.__name__ == "trackio" else "wandb says hello\n")


@pytest.mark.parametrize("name", NAMES)
def test_a_package_that_is_missing_is_named_with_what_installs_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, name, raising=False)
    folder = ModuleSpec(name, None, is_package=True)  # what Python makes of the folder that wandb leaves behind
    for found in (None, folder):
        monkeypatch.setattr("fourstage.engine.tracker.find_spec", lambda _, found=found: found)
        with pytest.raises(ValueError, match=rf'pip install .*\[{name}\]"'):
            check_tracker(name)
    with pytest.raises(ValueError, match="pip install"):
        RunLog(tmp_path, tracker=name)
    check_tracker("none")


@pytest.mark.parametrize(
    "note", ["5", "{}", '{"id": 3, "sent": {}, "live": true}', '{"id": "a", "sent": [1], "live": 1}']
)
def test_damaged_notes_begin_a_new_run_of_the_tracker(note: str, tmp_path: Path, tracker: StandIn) -> None:
    (tmp_path / "tracker.json").write_text(f'{{"{tracker.__name__}": {note}, "another": {note}}}')
    with opened(tmp_path, tracker) as log:
        log.write(train(10))
    assert tracker.steps() == [10]
