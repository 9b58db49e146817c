"""`push_to_hub` and `fourstage push`: to a hub on this machine, from which load, from_checkpoint and timm read."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from predict.hub_server import TOKEN, Hub, serving
from run.test_predict_weights import run_folder

import fourstage
from fourstage.cli import main
from fourstage.weights.reading import hub

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the library itself
PHOTO = np.random.default_rng(0).integers(0, 255, (40, 48, 3), dtype=np.uint8)
NAME = "someone/digits"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # a protocol of the real hub's own storage
    monkeypatch.setattr(hub, "WAIT", 2.0)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(NAME, {}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        yield server


def equal(a: Any, b: Any) -> bool:
    return all(torch.equal(value, b.state_dict()[key]) for key, value in a.state_dict().items())


def test_a_run_is_pushed_and_loaded_again(
    server: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_folder(tmp_path / "run", "ema=0.9")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert main(["push", str(run), NAME, "--private", "--licence", "MIT"]) == 0
    assert f"wrote {server.address}/{NAME}; in Python:" in capsys.readouterr().out
    files = server.repositories[NAME]
    assert set(files) == {".gitattributes", "README.md", "config.json", "model.safetensors"}
    assert server.private == {NAME}
    card = files["README.md"].decode()
    assert "license: mit" in card
    assert f'fourstage.load("hf-hub:{NAME}")' in card
    assert f'timm.create_model("hf-hub:{NAME}", pretrained=True)' in card
    assert json.loads(files["config.json"])["architecture"] == "visformer_digits"
    before, after = fourstage.load(run), fourstage.load(f"hf-hub:{NAME}")
    assert equal(before.network, after.network)
    assert json.dumps(after(PHOTO).to_dict()) == json.dumps(before(PHOTO).to_dict())  # pyright: ignore
    assert main(["push", str(run), NAME, "--which", "ema"]) == 2
    assert "exists already; choose another name" in capsys.readouterr().err
    assert main(["push", str(run), NAME, "--which", "ema", "--update"]) == 0
    assert [name for name, _ in server.commits] == [NAME, NAME]
    assert equal(fourstage.load(run, which="ema").network, fourstage.from_checkpoint(f"hf-hub:{NAME}"))


def test_every_function_reads_what_was_pushed(server: Hub) -> None:
    detector: Any = fourstage.create_detector("retinanet", "visformer_digits", 3, channels=16, convs=1)
    address = fourstage.push_to_hub(detector, NAME, class_names=("a", "b", "c"), token=TOKEN)
    assert address == f"{server.address}/{NAME}"
    again: Any = fourstage.from_checkpoint(f"hf-hub:{NAME}")
    assert again.class_names == ("a", "b", "c")
    assert equal(detector, again)
    assert equal(detector.backbone, fourstage.create_backbone("visformer_digits", checkpoint_path=f"hf-hub:{NAME}"))
    loaded: Any = fourstage.load(f"hf-hub:{NAME}@main")
    assert loaded.push_to_hub("someone/copy", token=TOKEN) == f"{server.address}/someone/copy"
    assert equal(detector, fourstage.from_checkpoint("hf-hub:someone/copy"))


def test_timm_reads_what_was_pushed(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm")
    from huggingface_hub import constants

    import fourstage.timm

    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    network = fourstage.create_model("unified_swin_micro", num_classes=4, drop_path_rate=0.1).eval()
    fourstage.push_to_hub(network, NAME, token=TOKEN, class_names=[*"abcd"])
    model: Any = timm.create_model(f"hf-hub:{NAME}", pretrained=True).eval()
    assert equal(network, model)
    assert model.pretrained_cfg["label_names"] == [*"abcd"]
    images = torch.randn(1, 3, 224, 224)
    torch.testing.assert_close(model(images), network(images), rtol=0, atol=0)


def test_an_upload_that_failed_is_repeated(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi

    network = fourstage.create_model("visformer_digits")

    def fail(*_: object, **__: object) -> None:
        try:
            raise ConnectionError("the line is dead")
        except ConnectionError as error:
            raise RuntimeError("Error while uploading") from error  # as the library does for a large file

    with monkeypatch.context() as patch:
        patch.setattr(HfApi, "upload_folder", fail)
        with pytest.raises(OSError, match=r"someone/digits could not be uploaded \(the line is dead\); check the"):
            fourstage.push_to_hub(network, NAME, token=TOKEN)
    assert set(server.repositories[NAME]) == {".gitattributes"}
    fourstage.push_to_hub(network, NAME, token=TOKEN)
    assert equal(network, fourstage.from_checkpoint(f"hf-hub:{NAME}"))


@pytest.mark.parametrize(
    ("repository", "token", "message"),
    [
        ("digits", TOKEN, "'digits' is not the name of a repository; write USER/NAME"),
        ("a/b/c", TOKEN, "'a/b/c' is not the name of a repository"),
        ("../up", TOKEN, "is not the name of a repository"),
        (NAME, None, "there is no token to write to someone/digits with; log in with `hf auth login`"),
        (NAME, "hf_wrong", "the hub does not let this token write to someone/digits"),
        ("else/digits", TOKEN, "the hub does not let this token write to else/digits; check the name of the user"),
    ],
)
def test_mistakes_are_one_sentence(repository: str, token: str | None, message: str, server: Hub) -> None:
    network = fourstage.create_model("visformer_digits")
    with pytest.raises(ValueError, match=message):
        fourstage.push_to_hub(network, repository, token=token)
    assert server.repositories == {}


def test_a_hub_that_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    run = run_folder(tmp_path / "run")
    for more in ([], ["--update"]):
        assert main(["push", str(run), NAME, *more]) == 2
        line = capsys.readouterr().err.strip()
        assert line.startswith("fourstage: someone/digits could not be uploaded (")
        assert "\n" not in line
    assert main(["push", str(run), "digits"]) == 2
    assert main(["push", str(tmp_path / "absent"), NAME]) == 2
    assert "there is no run" in capsys.readouterr().err
