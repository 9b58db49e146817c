"""Messages and pages that name an extra give a line that works: no package index has this package."""

import json
import re
import sys
from pathlib import Path

import pytest

from fourstage import extras
from fourstage.extras import install

ROOT = Path(__file__).parents[1]
FROM_AN_INDEX = re.compile(r"pip install[^\n]*?[\s\"'=]fourstage(?![\w./-])")
TEXTS = [
    *(path for folder in ("fourstage", "docs", "benchmarks") for path in (ROOT / folder).rglob("*")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "Makefile")),
]


class Installed:
    """A distribution whose origin is `direct_url.json`."""

    def __init__(self, direct: dict[str, object]) -> None:
        self.direct = direct

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return json.dumps(self.direct) if self.direct else None


def test_no_message_or_page_installs_from_an_index() -> None:
    """docs/log.md tells what was typed on its days."""
    texts = [path for path in TEXTS if path.suffix in (".py", ".md", "") and path.is_file() and path.name != "log.md"]
    assert len(texts) > 200
    found = [path for path in texts if path.name != "extras.py" and FROM_AN_INDEX.search(path.read_text("utf-8"))]
    assert found == []
    assert FROM_AN_INDEX.search('pip install "fourstage[wandb]"')
    assert FROM_AN_INDEX.search("pip install fourstage")


@pytest.mark.parametrize(
    "extra", ["train", "data", "wandb", "trackio", "export", "onnx", "demo", "gradio", "supervision"]
)
def test_extras_that_are_named_exist(extra: str) -> None:
    import tomllib

    assert extra in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def test_an_editable_installation_is_named_by_its_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout = tmp_path / "my checkout"
    pip = checkout / ".venv" / "bin" / "pip"
    pip.parent.mkdir(parents=True)
    pip.touch()
    monkeypatch.setattr(sys, "executable", str(pip.with_name("python")))
    direct = {"url": checkout.as_uri(), "dir_info": {"editable": True}}
    monkeypatch.setattr(extras, "distribution", lambda name: Installed(direct))
    monkeypatch.chdir(checkout)
    assert install("wandb") == '.venv/bin/pip install -e ".[wandb]"'
    assert install() == '.venv/bin/pip install -e "."'
    monkeypatch.chdir(tmp_path)
    assert install("train", "demo") == f"'my checkout/.venv/bin/pip' install -e \"{'my checkout'}[train,demo]\""
    monkeypatch.chdir("/")
    assert f'install -e "{str(checkout)[1:]}[wandb]"' in install("wandb")
    pip.unlink()
    assert install("wandb").startswith("'" + str(checkout)[1:] + "/.venv/bin/python' -m pip install")


def test_another_installation_is_named_by_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    git = {"url": "https://host/f.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}}
    monkeypatch.setattr(extras, "distribution", lambda name: Installed(git))
    assert install("wandb").endswith('install "fourstage[wandb] @ git+https://host/f.git@abc"')
    wheel = {"url": "file:///tmp/fourstage-0.1.0-py3-none-any.whl", "archive_info": {}}
    monkeypatch.setattr(extras, "distribution", lambda name: Installed(wheel))
    assert install("wandb").endswith('install "fourstage[wandb] @ file:///tmp/fourstage-0.1.0-py3-none-any.whl"')


def test_code_without_an_installation_is_named_by_its_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "distribution", lambda name: Installed({}))
    monkeypatch.chdir(ROOT)
    assert install("wandb").endswith('pip install -e ".[wandb]"')


def test_the_line_that_installs_one_library() -> None:
    assert re.fullmatch(r".*pip.* install onnxruntime", extras.install_package("onnxruntime"))


def test_environments_without_pip_are_those_of_uv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "bin" / "python"
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    assert extras.install_package("onnxruntime") == f"uv pip install --python {python} onnxruntime"
