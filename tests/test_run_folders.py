"""A run that does not exist is answered with that, and with the runs that do, by every command that takes a run."""

from pathlib import Path

import pytest

from fourstage.cli import main
from fourstage.run_folders import no_run

COMMANDS = {
    "evaluate": "evaluate {}",
    "predict": "predict {} photo.jpg",
    "report": "report {}",
    "slurm": "slurm evaluate {} --partition p --gpus 1",
}


def answer(command: str, run: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(COMMANDS[command].format(run).split()) == 2
    line = capsys.readouterr().err.strip()
    assert "\n" not in line
    return line


def make_runs(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "recipe.yaml").write_text("task: classification\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_run_that_is_missing(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "there is no run runs/nope, and no other run in runs; name a folder" in answer(command, "runs/nope", capsys)
    (tmp_path / "photo.jpg").touch()
    make_runs(tmp_path / "runs", "flowers", "birds")
    (tmp_path / "runs" / "notes").mkdir()
    line = answer(command, "runs/nope", capsys)
    assert "there is no run runs/nope; the runs in runs are runs/birds, runs/flowers" in line
    assert "notes" not in line
    assert "did you mean runs/flowers?" in answer(command, "runs/flower", capsys)
    if command != "report":
        assert "there is no run flowers here; did you mean runs/flowers?" in answer(command, "flowers", capsys)
    line = answer(command, "runs", capsys)
    assert "runs is not a run folder: it has no recipe.yaml; name one of the runs in it: runs/birds, runs/f" in line
    make_runs(tmp_path / "runs", *(f"more{i}" for i in range(9)))
    assert "and 6 more" in answer(command, "runs/nope", capsys)


def test_a_run_as_the_recipe_of_a_training(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "runs/nope"]) == 2
    assert "the folder of a run is given with --out" in capsys.readouterr().err


def test_a_checkpoint_that_is_missing_is_no_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "weights/nope.pth", "photo.jpg"]) == 2
    assert "checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["digits_visformer", "smt_tiny"])
def test_a_run_may_have_the_name_of_its_recipe_or_network(
    word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_runs(tmp_path / "runs", word)
    (tmp_path / "photo.jpg").touch()
    main(["predict", word, "photo.jpg", "--weights", "nope.pth"])
    assert ("nope.pth" if word == "smt_tiny" else f"predict runs/{word} IMAGE") in capsys.readouterr().err
    if word == "digits_visformer":
        for command in (["evaluate"], ["slurm", "evaluate", "--partition", "p", "--gpus", "1", "--dry-run"]):
            main([*command, word, "--weights", "nope.pth"])
            printed = capsys.readouterr()
            assert "there is no run" not in printed.err


@pytest.mark.parametrize("command", COMMANDS)
def test_a_comparison_where_a_run_is_needed(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photo.jpg").touch()
    folder = Path("runs/compare mine")
    folder.mkdir(parents=True)
    (folder / "comparison.json").write_text("{}")
    assert no_run(folder) == f"{folder} is a comparison without a run so far; type the command that began it again"
    make_runs(folder, *(f"{arm}/seed-{seed}" for arm in ("swin", "pvt") for seed in range(3)))
    named = "fourstage compare 'runs/compare mine'` for its table and its page, or name one of its runs: "
    named += ", ".join(f"{folder}/{run}" for run in ("pvt/seed-0", "pvt/seed-1", "pvt/seed-2", "swin/seed-0"))
    assert named in no_run(folder)
    assert no_run(folder).endswith("and 1 more")
    folder.rename("runs/mine")
    printed = answer(command, "runs/mine", capsys)
    assert "runs/mine is a comparison, not a run; type `fourstage compare runs/mine` for its table" in printed
    assert "or name one of its runs: runs/mine/pvt/seed-0" in printed
    printed = answer(command, "runs", capsys)
    assert "runs is not a run folder, and holds comparisons alone: runs/mine is a comparison, not a run" in printed
    assert "name one of the runs in it: runs/mine/pvt/seed-0" in answer(command, "runs/mine/pvt", capsys)
