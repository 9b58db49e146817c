"""The help of every command ends in examples that run as they are printed, and fits a terminal of 80 columns."""

import argparse
import os
import pty
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from pages.lines import python_of
from PIL import Image
from predict.hub_server import USER, pushing
from weights.openmmlab.config_files import write
from weights.openmmlab.source_configs import CONFIGS

import fourstage
from fourstage import demo
from fourstage.check import entrants
from fourstage.cli import main
from fourstage.cli.entry import parser
from fourstage.cli.parsing import verbs_of
from fourstage.data.embedded.digits import Digits
from fourstage.recipe import list_recipes

SHORT = ["length=2it", "batch_size=8", "warmup=0it", "workers=0"]


def verbs(top: argparse.ArgumentParser, before: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the words of every verb that does something, and its help."""
    for name, verb in verbs_of(top).items():
        if verbs_of(verb):
            yield from verbs(verb, (*before, name))
        else:
            yield (*before, name), verb.format_help()


def examples(text: str) -> list[str]:
    _, _, below = text.partition("\nexample")
    return [line.strip() for line in below.splitlines() if line.startswith("  ")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the examples name: a folder of images, a photo, a checkpoint, a configuration and two runs."""
    root = write(tmp_path_factory.mktemp("help"), CONFIGS["mask_rcnn_smt_small_coco_3x"]).parent
    digits = Digits("train")
    for split, numbers in (("train", range(40)), ("val", range(40, 60))):
        for index in numbers:
            sample = digits.sample(index)
            path = root / "images" / split / f"digit {sample.label}" / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.asarray(sample.image)).save(path)
    Image.fromarray(np.asarray(digits.sample(0).image)).save(root / "photo.png")
    torch.save({"model": fourstage.create_model("visformer_digits").state_dict()}, root / "mine.pth")
    (root / "my_mixer.py").write_text(python_of("docs/mixers.md")[0])
    for name in ("mine", "other"):
        words = [
            "train",
            "digits_visformer",
            "--data",
            str(root / "images"),
            "--out",
            str(root / "runs" / name),
            *SHORT,
        ]
        assert main(words) == 0
    return root


ALL = [(words, example) for words, text in verbs(parser()) for example in examples(text)]


def test_every_verb_has_an_example() -> None:
    for words, text in verbs(parser()):
        assert examples(text), words
        assert all(example.startswith(f"fourstage {' '.join(words)}") for example in examples(text))


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of Hugging Face's library itself
@pytest.mark.parametrize("example", [example for _, example in ALL])
def test_an_example_runs(example: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    words = shlex.split(example)[1:]
    if "robustness" in words:
        pytest.importorskip("imagecorruptions")  # an extra that `make test` does not install
    if words[0] == "train" and "--dry-run" not in words:
        words = [word if word != "runs/mine" else "runs/third" for word in words] + ["workers=0"]
        words = [word if word != "length=2ep" else "length=2it" for word in words] + ["warmup=0it"]
    if words[0] == "check":  # beside two of the five, and without the training; tests/check has it
        monkeypatch.setattr(entrants, "FIVE", ("convnext", "swin"))
        words += ["--seconds", "0"]
    if words[0] == "demo":  # without its server and library; tests/test_demo_page.py has them
        for name in ("_gradio", "check_address", "page", "launch"):
            monkeypatch.setattr(demo, name, lambda *_: None)
    if words[0] == "push":  # to a hub on this machine
        with pushing(monkeypatch):
            assert main(["push", words[1], f"{USER}/digits", *words[3:]]) == 0
        return
    if words[0] == "doctor":  # 1: there is something to say of this machine
        assert main(words) in (0, 1)
        return
    assert main(words) == 0


def test_help_fits_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    texts = [parser().format_help(), *(text for _, text in verbs(parser()))]
    for line in "\n".join(texts).splitlines():
        assert len(line) <= 80, line


@pytest.mark.parametrize("command", ["models", "recipes"])
def test_tables_fit_a_terminal_of_80_columns(command: str) -> None:
    """In a terminal, where a name must stay in one line to be copied."""
    main_end, terminal = pty.openpty()
    environment = os.environ | {"COLUMNS": "80", "TERM": "xterm"}
    process = subprocess.Popen([sys.executable, "-m", "fourstage", command], stdout=terminal, env=environment)
    os.close(terminal)
    content = b""
    try:
        while chunk := os.read(main_end, 65536):
            content += chunk
    except OSError:
        pass  # the other end is closed
    os.close(main_end)
    assert process.wait() == 0
    lines = re.sub(r"\x1b\[[0-9;]*m", "", content.decode()).splitlines()
    assert max(map(len, lines)) <= 80
    program = "import fourstage; print(*fourstage.list_models())"  # without the networks that other tests register
    models = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    known = models if command == "models" else list_recipes()
    words = {word for line in lines for word in line.split()}
    assert set(known) <= words


def test_only_the_verb_that_is_typed_gets_its_options() -> None:
    assert parser(()).format_help() == parser().format_help()
    built = dict(verbs(parser(["report", "runs/mine"])))
    assert built[("report",)] == dict(verbs(parser()))[("report",)]
