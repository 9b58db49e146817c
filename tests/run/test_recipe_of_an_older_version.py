"""A run whose named recipe has other values today: the refusal has the command that continues it."""

import shlex
from pathlib import Path

import pytest
import torch
from run.runs import stop_before

from fourstage.cli import main
from fourstage.engine.state import load_state

SHORT = ["length=4it", "warmup=0it", "batch_size=8", "workers=0", "device=cpu"]


def test_a_run_of_an_older_recipe_continues_with_the_printed_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    complete, stopped = tmp_path / "a", tmp_path / "a b"
    older = ["train", "digits_visformer", *SHORT, "evaluate_every=4it", "optimisation.lr=1e-4"]
    assert main([*older, "--out", str(complete)]) == 0
    with monkeypatch.context() as patch:
        stop_before(2, patch)
        assert main([*older, "--out", str(stopped)]) == 143
    capsys.readouterr()
    assert main(["train", "digits_visformer", *SHORT, "--out", str(stopped)]) == 2
    line = capsys.readouterr().err.strip()
    assert "holds a run of another recipe" in line
    typed = shlex.split(line.partition("to continue it with its own values: ")[2])
    assert typed[0] == "fourstage"
    assert main(typed[1:]) == 0
    one, other = (load_state(folder / "checkpoints" / "last.pt") for folder in (complete, stopped))
    assert one["step"] == other["step"] == 4
    assert all(torch.equal(value, other["model"][key]) for key, value in one["model"].items())
