"""benchmarks/backbones.py: its table, its arithmetic, and a run over networks so small that it takes seconds."""

import importlib.util
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

import pytest

from fourstage import registry
from fourstage.bench import memory
from fourstage.bench.count import Count
from fourstage.bench.options import Options
from fourstage.bench.results import Result, Speed

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "backbones.py"


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("benchmark_of_backbones", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def result(model: str, infer: Sequence[float], train: Sequence[float], peak: int = 100) -> Result:
    speeds = {"infer": Speed(8, tuple(infer), peak), "train": Speed(8, tuple(train), 3 * peak)}
    return Result(model, Count(1, 1, 1, 0, 1, (224, 224)), speeds, (0.1,))


def test_the_table_names_models_that_are_there(script: ModuleType) -> None:
    names = [row.model for row in script.ROWS]
    assert len(set(names)) == len(names) == 14
    for name in names:
        assert registry.find(name).name == name
    assert [row.peer for row in script.ROWS if row.peer] == [
        "timm/swin_tiny_patch4_window7_224",
        "timm/visformer_tiny",
        "timm/visformer_small",
    ]


def test_a_row_is_judged_by_the_yardstick_the_original_and_its_peer(script: ModuleType) -> None:
    row = script.Row("f", "ours", (2.0, 0.5), "timm/theirs", (1.0, 2.0))
    results = {
        one.model: one
        for one in (
            result(script.BASELINE, [10, 20, 30], [1, 2, 3]),
            result("ours", [30, 60, 90], [2, 4, 6], peak=80),
            result("timm/theirs", [20, 40, 60], [4, 8, 12]),
        )
    }
    verdict = script.judge(row, results, comparable=True)
    assert {mode: speed.median for mode, speed in verdict.baseline.items()} == {"infer": 3, "train": 2}
    assert verdict.original == {"infer": 1.5, "train": 4}
    assert {mode: speed.median for mode, speed in verdict.peer.items()} == {"infer": 1.5, "train": 0.5}
    assert verdict.memory == {"infer": 0.8, "train": 0.8}
    assert verdict.drift == {"infer": 2, "train": 2}
    assert script.cells(verdict, ["infer"]) == [
        "ours", "3.00 (3.00 to 3.00)", "1.50", "1.50 (1.50 to 1.50)", "0.80"
    ]  # fmt: skip
    assert script.judge(row, results, comparable=False).original == {}


def test_families_have_equal_weight_whatever_their_size(script: ModuleType) -> None:
    def verdict(family: str, value: float) -> object:
        row = script.Row(family, f"{family}_{value}", (1.0, 1.0))
        return script.Verdict(row, {}, {"infer": value}, {}, {}, {"infer": 0.5} if family == "b" else {})

    verdicts = [verdict("a", 1.0), verdict("a", 4.0), verdict("b", 8.0)]
    assert script.by_family(verdicts, "infer") == pytest.approx({"a": 2, "b": 8})
    speed, drift = script.summary(verdicts, ["infer", "train"])
    assert speed.startswith("infer: 4.00 times the original")
    assert "lowest a_1.0 1.00" in speed
    assert drift.endswith("None 0.50")
    assert "none to compare" in script.summary([], ["infer"])[0]


def test_the_originals_figures_hold_for_their_own_conditions_alone(script: ModuleType) -> None:
    assert script.comparable(Options(batch_size=8), "cpu")
    assert not script.comparable(Options(batch_size=8), "cuda")
    assert not script.comparable(Options(batch_size=16), "cpu")
    assert not script.comparable(Options(batch_size=8, dtype="bfloat16"), "cpu")
    assert not script.comparable(Options(batch_size=8, compile=True), "cpu")


def test_a_run(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = (
        script.Row("digits", "visformer_digits", (1.0, 1.0), "timm/test_vit"),
        script.Row("other", "visformer_tiny", (1.0, 1.0)),
    )
    monkeypatch.setattr(script, "ROWS", rows)
    monkeypatch.setattr(script, "BASELINE", "timm/test_convnext")
    monkeypatch.setattr(script, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(memory, "peaks_on_cpu", lambda name, options, modes, batch: dict.fromkeys(modes, len(name)))
    monkeypatch.setattr(script, "comparable", lambda options, device: True)
    words = ["--models", "*digits", "--seconds", "0.02", "--batch-size", "1", "--threads", "1", "--device", "cpu"]
    assert script.main(words) == 0
    [file] = (tmp_path / "results").iterdir()
    assert file.name.startswith("backbones-")
    assert file.name.endswith("-1-threads-float32.jsonl")
    [line] = [json.loads(text) for text in file.read_text().splitlines()]
    assert (line["model"], line["against"], line["peer"]) == ("visformer_digits", "timm/test_convnext", "timm/test_vit")
    assert set(line["over_original"]) == set(line["over_peer"]) == {"infer", "train"}
    assert line["over_original"]["infer"] == pytest.approx(line["ratio"]["infer"]["median"], abs=1e-3)
    printed = capsys.readouterr().out
    assert "visformer_digits" in printed
    assert "visformer_tiny" not in printed
    assert "times the original" in printed


@pytest.mark.parametrize(
    ("words", "said"), [(["--models", "zzz"], "none of the table"), (["--seconds", "0"], "above 0")]
)
def test_bad_input(script: ModuleType, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(words) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert "\n" not in error
