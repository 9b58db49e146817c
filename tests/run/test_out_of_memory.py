"""A network that needs more memory than there is ends each command with a sentence; so does a process that is gone."""

import time
from pathlib import Path

import pytest
from run.exact import start
from run.runs import logged, refused

from fourstage.cli import main

BACKBONE = """
import os, torch
import fourstage
from fourstage.backbones import swin

TINY = swin.Design(width=16, depths=(1, 1, 1, 1), heads=(1, 2, 4, 8), window=4)


def allocate(network, inputs):
    if os.environ.get("TOO_LARGE") == ("train" if network.training else "eval"):
        torch.empty(1 << 50)


@fourstage.register
def hungry(num_classes: int = 10, img_size: int = 32):
    network = swin.classifier(TINY, img_size=img_size, num_classes=num_classes)
    network.register_forward_pre_hook(allocate)
    return network
"""
PATIENCE = 30.0  # seconds; on an idle machine it is one
FAST = ["length=4it", "batch_size=32", "warmup=0it", "evaluate_every=2it", "log_every=1", "workers=0", "device=cpu"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hungry")
    (folder / "hungry.py").write_text(BACKBONE)
    (folder / "hungry.yaml").write_text("base: digits_visformer\nimports: [hungry.py]\nmodel: hungry\n")
    return folder / "hungry.yaml"


def test_each_command_says_what_to_type(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", str(recipe), "--out", str(tmp_path / "run"), *FAST]
    monkeypatch.setenv("TOO_LARGE", "train")
    refused(main(words), capsys, "the memory of this machine ran out", "optimisation.accumulation=2", "--fresh")
    monkeypatch.setenv("TOO_LARGE", "eval")
    refused(main(words), capsys, "the memory of this machine ran out", "TB more were needed", "grad_checkpointing=true")
    monkeypatch.setenv("TOO_LARGE", "")
    assert main(words) == 0
    monkeypatch.setenv("TOO_LARGE", "eval")
    run = str(tmp_path / "run")
    refused(main(["evaluate", run]), capsys, "the memory of this machine ran out", "evaluation_batch_size=1")
    picture = tmp_path / "a.png"
    from PIL import Image

    Image.new("RGB", (32, 32)).save(picture)
    out = str(tmp_path / "drawn")
    refused(main(["predict", run, str(picture), "--out", out]), capsys, "the memory of this machine ran out", "smaller")


# The first process also holds the store by which all others meet.
@pytest.mark.parametrize("lost", [1, pytest.param(0, marks=pytest.mark.torture)])
def test_processes_whose_neighbour_was_killed_end_with_one_line_each(lost: int, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["train", str(recipe), "--out", str(out), *FAST, "batch_size=24", "length=4000it", "evaluate_every=4000it"]
    processes = start(words, 3)
    try:
        while len(logged(out, "train")) < 3:
            assert all(process.poll() is None for process in processes)
            time.sleep(0.01)
        processes[lost].kill()
        killed = time.monotonic()
        for rank, process in enumerate(processes):
            _, errors = process.communicate(timeout=max(1.0, killed + PATIENCE - time.monotonic()))
            if rank == lost:
                continue
            assert process.returncode == 2, errors
            [line] = [line for line in errors.splitlines() if not line.startswith(("training", "reading"))]
            assert line.startswith("fourstage: another process of this run has ended ("), errors
    finally:
        for process in processes:
            process.kill()
