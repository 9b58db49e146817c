"""What the machine chose is recorded before the first step, so that a restart and an evaluation have the same bits."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from run.exact import NETWORK
from run.runs import losses, run_setup, run_train
from torch import Tensor

from fourstage.cli.entry import main
from fourstage.engine import threads
from fourstage.engine.devices import Ranks
from fourstage.engine.state import load_state, save_state
from fourstage.ops import kept_choice, measure, products
from fourstage.run import computation
from fourstage.run.computation import Computation
from fourstage.run.folder import RunFolder

ONE, OTHER = "blas,blas,fused", "convolution,convolution,plain"
CPU = torch.device("cpu")
RECIPE = """
base: digits_visformer
imports: [network.py]
model: layer_norms
workers: 0
log_every: 1
evaluate_every: 4it
optimisation: {batch_size: 16, length: 4it, warmup: 0it, lr: 1.0e-3}
"""


@pytest.fixture(autouse=True)
def _unchosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.delenv("FOURSTAGE_PRODUCTS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = list(products._chosen)
    products._chosen.clear()
    yield
    products._chosen[:] = before


def stopwatch(names: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new process on a machine where these products were found to be the fastest, and would be again."""
    products._chosen.clear()
    monkeypatch.setattr(measure, "measured", lambda: products.checked(names))
    kept_choice.write(products.checked(names))


def train(finished: Path, out: Path) -> int:
    """Four steps of a network with linear layers and attention."""
    return main(["train", str(finished.with_name("recipe.yaml")), "--out", str(out)])


def weights(out: Path) -> dict[str, Tensor]:
    return load_state(out / "checkpoints" / "last.pt")["model"]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, b[key]) for key, value in a.items())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run on the digits with `ONE`."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        out = tmp_path_factory.mktemp("finished") / "run"
        monkeypatch.setenv("XDG_CACHE_HOME", str(out.with_name("cache")))
        stopwatch(ONE, monkeypatch)
        out.with_name("network.py").write_text(NETWORK)
        out.with_name("recipe.yaml").write_text(RECIPE)
        assert train(out, out) == 0
        yield out


def test_a_run_that_is_killed_before_its_first_checkpoint_has_the_same_bits(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    real = run_setup.train_batches

    def killed(*args: Any, **named: Any) -> Iterator[Any]:
        for number, batch in enumerate(real(*args, **named)):
            if number == 2:
                raise KeyError("killed")
            yield batch

    stopwatch(ONE, monkeypatch)
    monkeypatch.setattr(run_setup, "train_batches", killed)
    with pytest.raises(KeyError, match="killed"):
        train(finished, out)
    assert not (out / "checkpoints" / "last.pt").exists()
    assert json.loads((out / "computation.json").read_text())["products"] == ONE

    monkeypatch.setattr(run_setup, "train_batches", real)
    monkeypatch.setenv("FOURSTAGE_PRODUCTS", OTHER)
    stopwatch(OTHER, monkeypatch)
    assert train(finished, out) == 0
    assert losses(out) == losses(finished)
    assert same(weights(out), weights(finished))

    stopwatch(OTHER, monkeypatch)
    assert train(finished, tmp_path / "other") == 0
    assert not same(weights(tmp_path / "other"), weights(finished))  # the choice does show in the bits


@pytest.mark.parametrize("record", ["checkpoint", "folder", "conditions of an earlier version"])
def test_two_evaluations_have_the_same_bits(
    record: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    state = load_state(finished / "checkpoints" / "best.pt")
    if record != "checkpoint":
        del state["computation"]
    if record == "folder":
        del state["conditions"]
    words = ["evaluate", str(finished), "--json"]
    if record != "checkpoint":
        save_state(tmp_path / "weights.pt", state)
        words += ["--weights", str(tmp_path / "weights.pt")]
    results = []
    for names in (ONE, OTHER):
        monkeypatch.setenv("FOURSTAGE_PRODUCTS", names)
        stopwatch(names, monkeypatch)
        capsys.readouterr()
        assert main(words) == 0
        results.append(capsys.readouterr().out)
        assert str(products.current()) == ONE
    assert results[0] == results[1]


def test_a_prediction_computes_as_the_run_did(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    Image.new("RGB", (40, 30), (90, 10, 200)).save(tmp_path / "image.png")
    for source in ([finished], [finished / "checkpoints" / "best.pt", "--imports", finished.with_name("network.py")]):
        stopwatch(OTHER, monkeypatch)
        assert main(["predict", *map(str, source), str(tmp_path / "image.png")]) == 0
        assert str(products.current()) == ONE


# ------------------------------------------------------------------------------------------------ the record itself


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"products": 3}',
        '{"products": "blas,blas,fused", "threads": -1}',
        '{"products": "blas,blas,fused", "threads": "two"}',
        '{"products": "blas,blas,slow"}',
        '{"products": "os.system"}',
        '{"products": "' + 10**6 * "a" + '"}',
        "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
    ],
)
def test_a_damaged_record_is_written_again(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path)
    folder.computation.write_text(text, encoding="latin-1")
    stopwatch(OTHER, monkeypatch)
    computation.settle(folder, None, Ranks(), CPU)
    assert str(products.current()) == OTHER
    assert computation.read(folder.computation) == Computation(products=OTHER, threads=torch.get_num_threads())


def test_the_checkpoint_decides_where_the_record_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path)
    folder.computation.write_text(json.dumps({"products": OTHER, "threads": 1, "key of a later version": [1]}))
    stopwatch(OTHER, monkeypatch)
    computation.settle(folder, {"computation": {"products": ONE, "threads": 1}, "conditions": {}}, Ranks(), CPU)
    assert str(products.current()) == ONE
    assert computation.read(folder.computation) == computation.current()


def test_nothing_is_read_from_a_pipe_or_written_through_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopwatch(ONE, monkeypatch)
    folder, target = RunFolder(tmp_path), tmp_path / "target"
    os.mkfifo(folder.computation)
    assert computation.read(folder.computation) is None
    folder.computation.unlink()
    target.write_text("mine")
    folder.computation.symlink_to(target)
    computation.settle(folder, None, Ranks(), CPU)
    assert target.read_text() == "mine"
    assert not folder.computation.is_symlink()


def test_without_a_record_only_what_is_kept_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an evaluation of somebody else's checkpoint: what a stopwatch says once would not come again."""
    stopwatch(OTHER, monkeypatch)
    computation.take({}, None, Ranks())
    assert str(products.current()) == OTHER
    kept_choice.path().unlink()
    computation.take({}, None, Ranks())
    assert products.current() == products.Products()
    monkeypatch.setenv("FOURSTAGE_PRODUCTS", OTHER)
    computation.take({}, None, Ranks())
    assert str(products.current()) == OTHER


def test_all_processes_follow_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Second(Ranks):
        def gather(self, records: Any) -> Any:
            return {"0": ONE, **records}

    stopwatch(OTHER, monkeypatch)
    computation.settle(RunFolder(tmp_path), None, Second(1, 2), CPU)
    assert str(products.current()) == ONE
    assert not RunFolder(tmp_path).computation.exists()


def test_a_run_keeps_its_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "available_cores", lambda: 4)
    stopwatch(ONE, monkeypatch)
    folder, before = RunFolder(tmp_path), torch.get_num_threads()
    earlier: dict[str, Any] = {"conditions": {"products": ONE, "threads": 2}}
    try:
        torch.set_num_threads(4)
        computation.settle(folder, None, Ranks(), CPU, lambda: torch.set_num_threads(3))  # a new run measures
        assert Computation(products=ONE, threads=3) == computation.read(folder.computation)
        torch.set_num_threads(4)
        computation.settle(folder, None, Ranks(), CPU, lambda: pytest.fail("it has begun"))  # killed, no checkpoint yet
        assert torch.get_num_threads() == 3
        computation.settle(folder, earlier, Ranks(), CPU, lambda: pytest.fail("it has begun"))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_steps_that_are_measured_leave_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [
        "train",
        "digits_visformer",
        "length=2it",
        "batch_size=8",
        "warmup=0it",
        "workers=0",
        "log_every=1",
        "ema=0.5",
    ]
    measured: list[int] = []

    def choose(step: Callable[[], None]) -> str:
        for _ in range(2):
            step()
            measured.append(1)
        return "Other programs keep 1.0 of 2 cores busy."

    assert main([*words, "--out", str(tmp_path / "a")]) == 0
    monkeypatch.setattr(run_train, "choose_threads", choose)
    assert main([*words, "--out", str(tmp_path / "b")]) == 0
    assert len(measured) == 2
    assert any(name.endswith("running_mean") for name in weights(tmp_path / "a"))  # buffers that a step changes
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert main([*words, "--out", str(tmp_path / "b")]) == 0
    assert len(measured) == 2  # a run that has begun measures nothing
