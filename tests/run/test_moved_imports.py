"""Python files of a recipe that have moved: which one is missing is named, and the option that gives the new path."""

import sys
from pathlib import Path

import pytest

from fourstage import registry
from fourstage.cli import main
from fourstage.user_files import PREFIX, imports_option

NETWORK = """
import fourstage
from torch import nn

@fourstage.register
def moved_network(num_classes: int = 10, img_size: int = 28, drop_path_rate: float = 0.0):
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, num_classes))
"""
RECIPE = """
base: digits_visformer
model: moved_network
model_args: {}
imports: [own.py]
optimisation: {length: 2it}
workers: 0
"""


def forget(patch: pytest.MonkeyPatch) -> None:
    """Forget the network and its file, as another process does."""
    patch.delitem(registry._entries, "moved_network", raising=False)
    for name in [name for name in sys.modules if name.startswith(PREFIX)]:
        patch.delitem(sys.modules, name)


@pytest.fixture
def moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """A folder with a recipe and its run, whose own file is in another folder than it was."""
    monkeypatch.chdir(tmp_path)
    forget(monkeypatch)
    Path("own.py").write_text(NETWORK)
    Path("mine.yaml").write_text(RECIPE)
    assert main(["train", "mine.yaml", "--out", "run"]) == 0, capsys.readouterr().err
    Path("new place").mkdir()
    Path("own.py").rename("new place/own.py")
    forget(monkeypatch)
    capsys.readouterr()
    return tmp_path


RUN = ("evaluate run", "evaluate run/checkpoints/best.pt", "export run --out x.onnx", "verify run")
OWN_RECIPE = ("evaluate mine.yaml --weights run/checkpoints/best.pt", "train mine.yaml --out other", "bench mine.yaml")


@pytest.mark.parametrize("command", RUN)
def test_a_run_names_the_missing_file_and_the_option(
    command: str, moved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command.split()) == 2
    words = f"--imports FOLDER/own.py with the folder that own.py is in now: there is no {moved}/own.py"
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("command", OWN_RECIPE)
def test_a_recipe_names_them_too_and_takes_the_new_path(
    command: str, moved: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(command.split()) == 2
    line = capsys.readouterr().err
    assert f"there is no Python file {moved}/own.py to import; correct the path" in line
    assert "where the file has moved, add --imports FOLDER/own.py" in line
    more = ["--seconds", "0.1", "--batch-size", "1"] if command.startswith("bench") else []
    assert main([*command.split(), "--imports", "new place/own.py", *more]) == 0, capsys.readouterr().err


def test_an_evaluation_takes_the_new_path(moved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "run", "--imports", "new place/own.py"]) == 0, capsys.readouterr().err


def test_files_that_are_there_are_named_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "a b.py").touch()
    assert imports_option([f"{tmp_path}/a b.py"]) == f"--imports '{tmp_path}/a b.py'"
    assert imports_option(["a.py"]).endswith("folder that a.py is in now: it is not known where a.py is")
