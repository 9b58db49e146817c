"""`fourstage demo`: what the page shows, its errors, and the page itself in a browser."""

import os
import signal
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import chromium
import numpy as np
import pytest
from PIL import Image
from predict.networks import TASKS, predictor

from fourstage import demo
from fourstage.cli import main
from fourstage.predict.results import Result

ROOT = Path(__file__).parents[1]
SERVER = """\
import sys
from predict.networks import predictor
from fourstage import demo
demo.launch(demo.page(predictor(sys.argv[1]), "runs/mine"), "127.0.0.1", int(sys.argv[2]))
"""


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)).save(path)
    return path


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.mark.parametrize("task", TASKS)
def test_a_result_becomes_a_picture_a_line_and_a_table(task: str, photo: Path) -> None:
    network = predictor(task)
    head = demo.HEADS[demo.task_of(network)]
    found = demo.predict_file(network, str(photo))
    assert isinstance(found, Result)
    for lowest in (demo.LOWEST, 0.5):
        picture, text, table = demo.show(found, lowest, head)
        assert picture is not None
        assert text
        assert table["headers"] == head
        assert {len(row) for row in table["data"]} <= {len(head)}
        assert all(row[0] in network.class_names for row in table["data"])
    if task in ("classification", "segmentation"):
        assert sum(row[1] for row in table["data"]) == pytest.approx(1, abs=0.01)


def test_the_slider_shows_fewer_objects_without_another_prediction(photo: Path) -> None:
    network = predictor("detection")
    head = demo.HEADS[demo.task_of(network)]
    found = demo.predict_file(network, str(photo))
    assert isinstance(found, Result)
    scores = [row[1] for row in demo.show(found, demo.LOWEST, head)[2]["data"]]
    middle = sorted(scores)[len(scores) // 2] + 0.001
    assert scores == sorted(scores, reverse=True)
    shown = demo.show(found, middle, head)[2]["data"]
    assert 0 < len(shown) < len(scores)
    assert all(row[1] >= middle - 0.001 for row in shown)


def test_a_picture_that_is_no_picture_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "notes.jpg"
    path.write_text("no picture")
    found = demo.predict_file(predictor("classification"), str(path))
    assert found == "notes.jpg cannot be read as an image: PIL does not recognise the image format"
    assert demo.show(found, 0.3, ["class"])[:2] == (None, found)
    assert demo.show(demo.predict_file(predictor("classification"), None), 0.3, ["class"])[:2] == (None, "")


def test_without_gradio_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["demo", "runs/missing"]) == 2
    error = capsys.readouterr().err
    assert "the library gradio, which is missing; type: " in error
    assert "[gradio]" in error


def test_a_port_in_use_and_impossible_addresses_are_sentences(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "_gradio", lambda: None)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["demo", "runs/missing", "--port", str(port)]) == 2
        assert f"127.0.0.1:{port} cannot be used (address already in use)" in capsys.readouterr().err
    assert main(["demo", "runs/missing", "--port", "0"]) == 2
    assert "--port 0 is not a port" in capsys.readouterr().err
    assert main(["demo", "runs/missing", "--host", "no.such.host.invalid"]) == 2
    assert "--host no.such.host.invalid is not an address" in capsys.readouterr().err
    assert main(["demo", "runs/missing", "--port", str(free_port())]) == 2
    assert "runs/missing" in capsys.readouterr().err  # the address is free, and the run does not exist


@pytest.mark.skipif(
    find_spec("gradio") is None or chromium.PROGRAM is None, reason="needs the extra gradio and a Chromium"
)
@pytest.mark.parametrize("task", ["classification", "detection", "segmentation"])
def test_an_image_dropped_in_a_browser_is_predicted(task: str, photo: Path, tmp_path: Path) -> None:
    port = free_port()
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", SERVER, task, str(port)]
    environment = {**os.environ, "PYTHONPATH": paths}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            assert f"http://127.0.0.1:{port}" in server.stdout.readline()
            with chromium.Browser(tmp_path / "profile") as browser:
                _drop(browser, port, photo, Path(os.environ.get("SCREENSHOTS", tmp_path)) / f"{task}.png")
                notes = tmp_path / "notes.jpg"
                notes.write_text("no picture")
                browser("Page.reload")
                browser.wait_for("document.querySelector('#image input[type=file]') !== null")
                browser.choose_file("#image input[type=file]", notes)
                browser.wait_for(
                    "document.querySelector('#text textarea').value.includes('cannot be read as an image')"
                )
                hosts = {urlsplit(address).hostname for address in browser.addresses if address.startswith("http")}
                assert hosts == {"127.0.0.1"}  # no fonts, scripts or counters of other servers
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(30)


def _drop(browser: chromium.Browser, port: int, photo: Path, screenshot: Path) -> None:
    browser("Page.navigate", url=f"http://127.0.0.1:{port}")
    browser.wait_for("document.querySelector('#image input[type=file]') !== null")
    browser.choose_file("#image input[type=file]", photo)
    browser.wait_for("document.querySelector('#text textarea').value !== ''")
    browser.wait_for("(document.querySelector('#picture img') || {naturalWidth: 0}).naturalWidth > 40")
    time.sleep(1)
    browser.screenshot(screenshot)
    assert any(name in browser.evaluate("document.body.innerText") for name in ("cat", "dog", "owl"))
