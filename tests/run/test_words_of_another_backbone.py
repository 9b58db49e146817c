"""Words of a user's own recipe that name nothing in another network: the message has what to type, and it works."""

import re
import shlex
from pathlib import Path

import pytest

from fourstage.cli import main

RECIPE = """
base: digit_scenes_upernet
data: {data}
optimisation:
  no_decay: [table, bias]
  lr_multipliers: {{network.backbone: 0.2, network.neck.old: 3}}
"""


def test_what_a_refused_word_says_to_type_is_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(RECIPE.format(data="digit_scenes"))
    command = ["train", "mine.yaml", "--dry-run", "workers=0", "backbone=visformer_digits"]
    for key in ("no_decay", "lr_multipliers"):
        assert main(command) == 2
        line = capsys.readouterr().err
        assert f"optimisation.{key} has " in line
        match = re.search(r"; or add (.+)$", line.strip())
        assert match is not None
        command += shlex.split(match[1])
    assert main(command) == 0, capsys.readouterr().err


def test_missing_data_is_reported_before_the_recipe_of_an_earlier_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["compare", "digits_visformer", "--vary", "optimisation.lr=1e-3,2e-3", "--seeds", "1", "--out", "out"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "comparison.json").write_text("{}")
    for name in ("lr=0.001", "lr=0.002", "0.001", "0.002"):
        folder = tmp_path / "out" / name / "seed-0"
        folder.mkdir(parents=True)
        (folder / "recipe.yaml").write_text("task: classification\nmodel: visformer_digits\n")
    assert main([*command, "--data", "nowhere", "--dry-run"]) == 2
    assert f"{tmp_path}/nowhere does not exist: give the data set with --data PATH" in capsys.readouterr().err
