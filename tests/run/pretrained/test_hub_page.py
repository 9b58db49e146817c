"""The Python lines of docs/hub.md run, in the order of the page."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from pages.lines import python_of
from predict.hub_server import pushing
from run.test_predict_weights import run_folder

import fourstage


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of Hugging Face's library itself
def test_the_lines_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_folder(Path("runs") / "mine")
    blocks = python_of("docs/hub.md")
    assert len(blocks) == 2
    names: dict[str, Any] = {}
    with pushing(monkeypatch) as hub:
        for block in blocks:
            exec(compile(block, "docs/hub.md", "exec"), names)
        assert set(hub.repositories) == {"user/name"}
    assert isinstance(names["again"].network, type(names["network"].network))
    shutil.copytree("shared", "copied")
    assert fourstage.from_checkpoint("copied")
