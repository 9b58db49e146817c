"""`fourstage.load`: of a run, a file, a name and a repository of the hub; quickly, and with one sentence where not."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from predict.hub_server import serving
from run.test_predict_weights import run_folder

import fourstage
from fourstage.cli import main
from fourstage.predict import ClassResult, Predictor
from fourstage.weights.reading import hub

PHOTO = np.random.default_rng(0).integers(0, 255, (40, 48, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose network says class b of any image, and the average of its weights class c."""
    return run_folder(tmp_path_factory.mktemp("runs") / "run", "ema=0.9")


def best(network: Predictor) -> str:
    result = network(PHOTO)
    assert isinstance(result, ClassResult)
    return result.names[0]


def test_a_run_a_checkpoint_and_a_name(run: Path, tmp_path: Path) -> None:
    last = run / "checkpoints" / "last.pt"
    assert best(fourstage.load(run)) == best(fourstage.load(str(last))) == "b"
    assert best(fourstage.load(run, which="ema")) == best(fourstage.load(run, weights=last, which="ema")) == "c"
    state = fourstage.create_model("visformer_digits").state_dict() | {"head.bias": 50 * torch.eye(10)[3]}
    torch.save(state, tmp_path / "w.pth")
    network = fourstage.load("visformer_digits", weights=tmp_path / "w.pth", batch_size=4, precision="bfloat16")
    assert best(network) == "class 3"
    assert (network.batch_size, network.precision) == (4, "bfloat16")


def test_predict_on_the_command_line_is_the_same_object(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(3):
        Image.fromarray(np.roll(PHOTO, i)).save(tmp_path / f"{i}.png")
    words = ["predict", str(run), str(tmp_path), "--out", str(tmp_path / "out"), "--json", "--batch", "2"]
    assert main(words) == 0
    printed = json.loads(capsys.readouterr().out)
    results: Any = fourstage.load(run)([tmp_path / f"{i}.png" for i in range(3)])
    for one, result in zip(printed, results, strict=True):
        assert [row["class"] for row in one["top"]] == result.names
        assert [row["probability"] for row in one["top"]] == pytest.approx(result.scores.tolist(), abs=1e-5)
        with Image.open(one["picture"]) as picture:
            np.testing.assert_array_equal(np.asarray(picture), np.asarray(result.picture()))


def test_what_does_not_fit_is_refused_before_anything_is_loaded(run: Path) -> None:
    with pytest.raises(ValueError, match="choose auto, cpu or cuda"):
        fourstage.load("absent", device="gpu")
    with pytest.raises(ValueError, match="no run folder, checkpoint, model or recipe 'absent'"):
        fourstage.load("absent")
    with pytest.raises(ValueError, match="this network does not detect objects; leave it out"):
        fourstage.load(run, threshold=0.5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"batch_size": "3"}, "batch_size is a number of images from 1 on; got '3'"),
        ({"tile": 64, "overlap": "a"}, "overlap is the share of a tile that the next one shows too"),
        ({"threshold": "0.3"}, "threshold is a score from 0 to 1; got '0.3'"),
        ({"imports": "absent.py"}, "there is no Python file absent.py to import"),
        ({"source": ""}, "the name of the network is empty; give a run folder"),
    ],
)
def test_arguments_of_a_wrong_type_get_one_sentence(run: Path, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises((ValueError, OSError), match=re.escape(words)):
        fourstage.load(**{"source": run, **arguments})


def test_no_slow_library_is_imported_for_a_small_network(run: Path) -> None:
    code = (
        f"import sys, numpy, fourstage\nnetwork = fourstage.load({str(run)!r})\n"
        "network(numpy.zeros((40, 40, 3), numpy.uint8))\nprint(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"timm", "torchvision", "torch._dynamo", "sympy", "matplotlib"} & set(done.stdout.split())


# ----------------------------------------------------------------------------------------------------------------- hub


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "WAIT", 2.0)


@pytest.mark.parametrize("name", ["best.pt", "checkpoints/best.pt", "mine.pth"])
def test_a_checkpoint_of_a_repository(
    name: str, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = run / "checkpoints" / "best.pt"
    with serving("someone/digits", {"README.md": run / "recipe.yaml", name: file}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        assert best(fourstage.load("hf-hub:someone/digits")) == "b"
        asked = len(server.asked)
        assert best(fourstage.load("hf-hub:someone/digits@main")) == "b"
        assert asked < len(server.asked) < 2 * asked  # the file is not fetched again
        Image.fromarray(PHOTO).save(tmp_path / "a.png")
        assert main(["predict", "hf-hub:someone/digits", str(tmp_path / "a.png"), "--out", str(tmp_path / "out")]) == 0
        with pytest.raises(ValueError, match="there is no hf-hub:someone/absent on the hub, or it is private"):
            fourstage.load("hf-hub:someone/absent")
    if name in hub.CHECKPOINTS:
        assert best(fourstage.load("hf-hub:someone/digits")) == "b"  # the server is gone, and the cache is there
    capsys.readouterr()


def test_a_repository_of_timm_names_its_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import save_file

    state = fourstage.create_model("visformer_digits").state_dict() | {"head.bias": 50 * torch.eye(10)[6]}
    save_file(state, tmp_path / "m.safetensors")
    (tmp_path / "c.json").write_text(json.dumps({"architecture": "visformer_digits"}))
    files = {"model.safetensors": tmp_path / "m.safetensors", "config.json": tmp_path / "c.json"}
    with serving("someone/named", files) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        assert best(fourstage.load("hf-hub:someone/named")) == "class 6"
    (tmp_path / "local").mkdir()
    for name, path in files.items():
        path.rename(tmp_path / "local" / name)
    assert best(fourstage.load(tmp_path / "local")) == "class 6"


@pytest.mark.parametrize(
    ("names", "message"),
    [(["README.md"], "has no checkpoint"), (["a.pth", "b.pth"], r"has 2 checkpoints, such as a\.pth")],
)
def test_a_repository_without_one_checkpoint(
    names: list[str], message: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving("someone/odd", dict.fromkeys(names, run / "recipe.yaml")) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        with pytest.raises(ValueError, match=message):
            fourstage.load("hf-hub:someone/odd")


def test_a_hub_that_does_not_answer_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    Image.fromarray(PHOTO).save(tmp_path / "a.png")
    assert main(["predict", "hf-hub:someone/digits", str(tmp_path / "a.png")]) == 2
    line = capsys.readouterr().err.strip()
    assert line.startswith("fourstage: hf-hub:someone/digits could not be fetched (")
    assert "\n" not in line
    for name in ("hf-hub:digits", "hf-hub:a/b/c", "hf-hub:"):
        with pytest.raises(ValueError, match="is not the name of a repository; write hf-hub:USER/NAME"):
            fourstage.load(name)
    with pytest.raises(ValueError, match="has its own weights; leave the other ones out"):
        fourstage.load("hf-hub:someone/digits", weights=tmp_path / "a.png")
