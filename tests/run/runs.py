"""What tests do with runs: stop one, read its log, and see what the command line refuses."""

import json
import os
import signal
from collections.abc import Generator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from fourstage.data.sample import Batch
from fourstage.run import setup as run_setup

run_train = import_module("fourstage.run.train")  # the package names a function the same


def logged(out: Path, kind: str) -> list[dict[str, Any]]:
    """Lines of one kind, such as "train", in the log of a run that may not have begun."""
    log = out / "log.jsonl"
    every = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    return [line for line in every if line["kind"] == kind]


def losses(out: Path) -> list[tuple[int, Any]]:
    """Each step with its losses by name."""
    return [(line["step"], line["losses"]) for line in logged(out, "train")]


def stop_before(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM reaches this process when the batch of `step` is asked for."""
    real = run_setup.train_batches

    def batches(*args: Any, first_step: int, **named: Any) -> Generator[list[Batch]]:
        for number, parts in enumerate(real(*args, first_step=first_step, **named), first_step):
            if number == step:
                os.kill(os.getpid(), signal.SIGTERM)
            yield parts

    monkeypatch.setattr(run_setup, "train_batches", batches)


def refused(code: int, capsys: pytest.CaptureFixture[str], *expected: str) -> None:
    """Exit code 2, one line on stderr that holds the words, and no traceback."""
    err = capsys.readouterr().err
    line = err.strip().splitlines()[-1]
    assert code == 2, err
    assert line.startswith("fourstage: ")
    assert "Traceback" not in err
    for word in expected:
        assert word in line, line
