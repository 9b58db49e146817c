"""Training with compile=true: a detector's backbone and neck are compiled, and evaluation is that of other commands."""

import json
from collections.abc import Generator
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from run.runs import losses, run_train
from torch import _dynamo as dynamo
from torch import nn

from fourstage.cli import main
from fourstage.data.embedded.digit_scenes import write_digit_scenes
from fourstage.recipe import resolve
from fourstage.run.compilation import compiled, plain_evaluation
from fourstage.run.evaluate import Evaluator
from fourstage.run.task_protocol import protocol_of

SIZE = ["augmentation.scale=[64,64]", "evaluation.scale=[64,64]"]
SHORT = ["length=2it", "batch_size=2", "warmup=0it", "workers=0", "log_every=1", "evaluate_every=2it", *SIZE]
DINO = "{queries: 40, channels: 8, encoder_layers: 1, decoder_layers: 2, heads: 2, hidden: 8, scales: 3}"


@pytest.fixture(autouse=True)
def recorded_only(monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """Graphs are made as for a compiler, and none compiles them."""
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))
    dynamo.reset()
    dynamo.utils.counters.clear()
    yield
    dynamo.reset()


def is_compiled(module: nn.Module) -> bool:
    return module._compiled_call_impl is not None


def test_a_detector_without_its_heads_is_compiled() -> None:
    for recipe in ("digit_scenes_mask_rcnn", "digit_scenes_dino", "digit_scenes_upernet", "digits_visformer"):
        resolved = resolve(recipe, ["method_args.prior=null"] if "upernet" in recipe else [], {"data": "x"}).recipe
        task: Any = compiled(protocol_of(resolved).build_task(("a", "b")))
        names = [name for name, module in task.named_modules() if is_compiled(module)]
        assert names == (["network.backbone", "network.neck"] if "rcnn" in recipe or "dino" in recipe else [""])


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch, about what enters a compiled neck
def test_a_compiled_detector_learns_as_the_plain_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_digit_scenes(tmp_path / "data", train=4, val=2, size=64)
    for name in ("plain", "compiled"):
        words = ["train", "digit_scenes_dino", "--data", str(data), "--out", str(tmp_path / name), *SHORT]
        more = [f"method_args={DINO}", f"compile={str(name == 'compiled').lower()}"]
        assert main([*words, *more]) == 0, capsys.readouterr().err
        assert bool(dynamo.utils.counters["stats"]["unique_graphs"]) is (name == "compiled")
    for (_, plain), (_, ours) in zip(losses(tmp_path / "plain"), losses(tmp_path / "compiled"), strict=True):
        assert ours == pytest.approx(plain, rel=1e-3)
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "compiled"), "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    in_training = json.loads((tmp_path / "compiled" / "evaluation.json").read_text())["metrics"]
    assert {name: metrics[name] for name in in_training} == in_training


def test_evaluation_compiles_nothing() -> None:
    recipe = resolve("digits_visformer", ["compile=true"], {}).recipe
    layer = nn.Linear(2, 2)
    layer.compile()
    dynamo.utils.counters.clear()
    with plain_evaluation(recipe):
        layer(torch.zeros(1, 2))
    assert not dynamo.utils.counters["stats"]["unique_graphs"]
    layer(torch.zeros(1, 2))
    assert dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_evaluation_computes_by_the_kernels_of_other_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the many sizes of a validation's images, cuDNN tries none; for the training it does so again."""
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    with plain_evaluation(resolve("digit_scenes_upernet", [], {}).recipe):
        assert not torch.backends.cudnn.benchmark
    assert torch.backends.cudnn.benchmark


def test_all_evaluation_of_a_compiled_training_is_plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """That after each epoch, and that of the report."""
    probe = torch.compile(lambda x: x + int(torch.compiler.is_compiling()), backend="eager")
    seen = []

    def recorded(name: str, real: Any) -> Any:
        def call(*args: Any, **named: Any) -> Any:
            seen.append((name, int(probe(torch.zeros(1, dtype=torch.int64)))))
            return real(*args, **named)

        return call

    monkeypatch.setattr(Evaluator, "metrics", recorded("metrics", Evaluator.metrics))
    monkeypatch.setattr(run_train, "finish", recorded("finish", run_train.finish))
    words = ["length=2it", "batch_size=2", "warmup=0it", "workers=0", "evaluate_every=1it", "compile=true"]
    assert main(["train", "digits_visformer", "--out", str(tmp_path / "run"), *words]) == 0
    assert set(seen) == {("metrics", 0), ("finish", 0)}
    assert int(probe(torch.zeros(1, dtype=torch.int64))) == 1


def test_a_compiled_segmentor_recomputes_activations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_digit_scenes(tmp_path / "data", train=4, val=2, size=64)
    for name in ("plain", "compiled"):
        words = ["train", "digit_scenes_semantic_fpn", "--data", str(data), "--out", str(tmp_path / name), *SHORT[:-2]]
        more = ["method_args={neck_channels: 16, channels: 16}", "augmentation.crop=[64,64]"]
        more += ["compile=true", "grad_checkpointing=true"] if name == "compiled" else []
        assert main([*words, *more]) == 0, capsys.readouterr().err
    for (_, plain), (_, ours) in zip(losses(tmp_path / "plain"), losses(tmp_path / "compiled"), strict=True):
        assert ours == pytest.approx(plain, rel=1e-3)
