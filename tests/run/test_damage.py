"""A damaged checkpoint is noticed, and a run continues from the one before it, with the same bits as without damage."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from run.runs import refused, stop_before

from fourstage.cli import main
from fourstage.engine.state import load_state
from fourstage.run.folder import RunFolder
from fourstage.run.resume import check_same_data
from fourstage.run.states import CONTENT, read_best, read_state

RUN = ["train", "digits_visformer", "length=6it", "batch_size=16", "warmup=0it", "workers=0", "ema=0.9", "log_every=2",
       "evaluate_every=3it", "checkpoint_every=2it"]  # fmt: skip


def train(out: Path, *more: str) -> int:
    return main([*RUN, "--out", str(out), *more])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run that nothing disturbed, and one that was stopped after step 5."""
    root = tmp_path_factory.mktemp("runs")
    assert train(root / "unharmed") == 0
    with pytest.MonkeyPatch.context() as patch:
        stop_before(4, patch)
        assert train(root / "stopped") == 143
    return root / "unharmed", root / "stopped"


@pytest.fixture
def stopped(runs: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(runs[1], tmp_path / "run"))


def flip(path: Path, place: int | None = None, bit: int = 3) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if place is None else place] ^= 1 << bit
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2000])


def zeros(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:4096] + bytes(path.stat().st_size - 4096))


def other_state(path: Path) -> None:
    """A file that is intact, of another kind."""
    torch.save({"fourstage": 1, "model": {}}, path)


def log_of(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "timing"} for line in lines]


def assert_same(out: Path, unharmed: Path) -> None:
    ours, theirs = (load_state(folder / "checkpoints" / "last.pt") for folder in (out, unharmed))
    for part in ("model", "ema"):
        assert all(torch.equal(ours[part][key], value) for key, value in theirs[part].items())
    moments = [state["optimizer"]["state"][0]["exp_avg"] for state in (ours, theirs)]
    assert torch.equal(*moments)
    assert log_of(out) == log_of(unharmed)


@pytest.mark.parametrize("damage", [flip, Path.unlink])
def test_a_run_continues_from_the_previous_checkpoint_bit_for_bit(
    damage: Callable[[Path], None], stopped: Path, runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    last, previous = (stopped / "checkpoints" / name for name in ("last.pt", "previous.pt"))
    assert [read_state(path)["step"] for path in (last, previous)] == [5, 4]
    damage(last)
    assert train(stopped) == 0
    printed = capsys.readouterr().out
    assert f"{last} is" in printed
    assert "continuing from previous.pt" in printed
    assert "at step 4 of 6" in printed
    assert_same(stopped, runs[0])
    assert last.with_name("last.pt.damaged").exists() == (damage is flip)
    assert read_state(previous)["step"] == 6
    assert not last.samefile(previous)


def test_a_run_continues_with_recomputed_activations_bit_for_bit(
    stopped: Path, runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(stopped, "grad_checkpointing=true") == 0
    assert "not bit for bit" not in capsys.readouterr().out
    assert "grad_checkpointing: true" in (stopped / "recipe.yaml").read_text()
    assert_same(stopped, runs[0])


def test_other_kernels_are_reported_where_activations_are_recomputed(stopped: Path) -> None:
    from fourstage.recipe import resolve

    state = read_state(stopped / "checkpoints" / "last.pt")
    for changes, expected in ([], False), (["compile=true"], True):
        recipe = resolve("digits_visformer", ["grad_checkpointing=true", *changes]).recipe
        setup: Any = SimpleNamespace(
            splits=SimpleNamespace(train=SimpleNamespace(classes=state["classes"])),
            recipe=recipe,
            conditions=state["conditions"],
            device=torch.device("cpu"),
        )
        assert any("grad_checkpointing" in text for text in check_same_data(state, setup)) is expected


@pytest.mark.parametrize("damage", [empty, cut, zeros, other_state])
def test_the_previous_checkpoint_is_taken(damage: Callable[[Path], None], stopped: Path) -> None:
    folder = RunFolder(stopped)
    damage(folder.last)
    newest = folder.newest()
    assert newest.state is not None
    assert newest.state["step"] == 4
    assert newest.damaged
    assert newest.note.startswith(str(folder.last))


def test_two_damaged_checkpoints_are_a_sentence(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("last.pt", "previous.pt"):
        flip(stopped / "checkpoints" / name)
    refused(train(stopped), capsys, "last.pt is damaged", "previous.pt is damaged", "weights=", "best.pt", "--fresh")
    flip(stopped / "checkpoints" / "best.pt")
    refused(train(stopped), capsys, "last.pt is damaged", "add --fresh to start again")


def test_a_damaged_best_checkpoint_is_replaced_when_the_run_continues(
    stopped: Path, runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    flip(stopped / "checkpoints" / "best.pt")
    for verb in (["evaluate"], ["predict"]):
        words = [*verb, str(stopped), *([str(stopped / "samples")] if verb == ["predict"] else [])]
        (stopped / "samples").mkdir(exist_ok=True)
        (stopped / "samples" / "a.png").touch()
        refused(main(words), capsys, "best.pt is damaged", "--weights", "last.pt")
    shutil.rmtree(stopped / "samples")
    assert train(stopped) == 0
    assert "best.pt is damaged" in capsys.readouterr().out
    assert read_best(stopped / "checkpoints" / "best.pt")["step"] in (5, 6)
    assert log_of(stopped)[-1] == log_of(runs[0])[-1]


def test_no_flipped_bit_is_silent(stopped: Path) -> None:
    last = stopped / "checkpoints" / "last.pt"
    good, size = last.read_bytes(), last.stat().st_size
    random.seed(1)
    for place in [*random.sample(range(size), 16), 0, 5, 30, size - 1, size - 40, size - 60, size - 70, size - 500]:
        flip(last, place, random.randrange(8))
        with pytest.raises(ValueError, match=r"last\.pt "):
            read_state(last)
        last.write_bytes(good)


@pytest.mark.torture
@pytest.mark.parametrize(("name", "read"), [("last", read_state), ("previous", read_state), ("best", read_best)])
def test_no_one_of_many_flipped_bits_is_silent(
    name: str, read: Callable[[Path], dict[str, Any]], stopped: Path
) -> None:
    file = stopped / "checkpoints" / f"{name}.pt"
    good, random_bits = file.read_bytes(), random.Random(7)
    first_and_last = [*range(64), *range(len(good) - 256, len(good), 2)]
    for place in [*random_bits.sample(range(len(good)), 200), *first_and_last]:
        flip(file, place, random_bits.randrange(8))
        with pytest.raises(ValueError, match=rf"{name}\.pt "):
            read(file)
        file.write_bytes(good)


@pytest.mark.parametrize("key", sorted(CONTENT))
def test_a_state_that_lacks_something_is_no_state(key: str, stopped: Path) -> None:
    last = stopped / "checkpoints" / "last.pt"
    state = load_state(last)
    for wrong in ({**state, key: "x"}, {name: value for name, value in state.items() if name != key}):
        if key == "ema" and key not in wrong:
            continue  # as good as none
        torch.save(wrong, last)
        with pytest.raises(ValueError, match=f"{key} is missing or wrong"):
            read_state(last)


def test_a_state_of_an_older_version_knows_its_last_log_line(stopped: Path) -> None:
    last = stopped / "checkpoints" / "last.pt"
    state = load_state(last)
    older = {name: value for name, value in state.items() if name != "logged"}
    for every, logged in ((1, 5), (2, 4), (50, 0)):
        torch.save({**older, "step": 5, "evaluated": 0, "recipe": {**state["recipe"], "log_every": every}}, last)
        assert read_state(last)["logged"] == logged
    for wrong in ("x", None, -1, state["step"] + 1):
        torch.save({**state, "logged": wrong}, last)
        with pytest.raises(ValueError, match="logged is missing or wrong"):
            read_state(last)


def test_a_state_of_another_network_is_a_sentence(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("last.pt", "previous.pt"):
        state = load_state(stopped / "checkpoints" / name)
        state["model"] = {"other": torch.ones(3)}
        torch.save(state, stopped / "checkpoints" / name)
    refused(train(stopped), capsys, "does not fit the network that the recipe builds", "--fresh")


def test_a_state_with_other_groups_of_the_optimiser_is_a_sentence(
    stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not even where the groups have the same sizes: moments would belong to other parameters."""
    for name in ("last.pt", "previous.pt"):
        state = load_state(stopped / "checkpoints" / name)
        groups = state["optimizer"]["param_groups"]
        groups[0]["names"] = [*groups[0]["names"][1:], groups[0]["names"][0]]
        torch.save(state, stopped / "checkpoints" / name)
    refused(train(stopped), capsys, "or its optimiser", "another place among the optimiser's groups", "--fresh")


@pytest.mark.parametrize("windows", [{}, {"1": {}}, {"0": {}, "2": {}}, {"0": {}, "1": {"loss": torch.zeros(1)}}])
def test_sums_of_other_processes_than_the_first_are_no_state(windows: dict[str, Any], stopped: Path) -> None:
    last = stopped / "checkpoints" / "last.pt"
    torch.save({**load_state(last), "windows": windows}, last)
    with pytest.raises(ValueError, match="windows is missing or wrong"):
        read_state(last)
