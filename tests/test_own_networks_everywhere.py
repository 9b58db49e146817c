"""A network of one's own: each verb that takes the name of a network has the option that its message offers."""

from pathlib import Path

import pytest

import fourstage
from fourstage.cli import main

SOURCE = """
import fourstage
from torch import nn
from fourstage.backbones.layers import Level


class Stripes(nn.Module):
    levels = tuple(Level(4, 4 * 2**i) for i in range(4))

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(c, 4, s, s) for c, s in ((3, 4), (4, 2), (4, 2), (4, 2)))

    def forward(self, x):
        maps = []
        for layer in self.layers:
            x = layer(x)
            maps.append(x)
        return maps


@fourstage.register
def stripes(img_size=64):
    return Stripes()
"""
ARGUMENTS = {
    "bench": ["bench", "stripes", "--dense", "--img-size", "64", "--batch-size", "1", "--seconds", "0.01"],
    "bench of a method": [
        "bench",
        "semantic_fpn:stripes",
        "--img-size",
        "64",
        "--batch-size",
        "1",
        "--seconds",
        "0.01",
    ],
    "models": ["models", "stripes"],
    "erf": ["analyze", "erf", "stripes", "--data", "digits", "--size", "64", "--images", "1", "--out", "erf"],
}


@pytest.mark.parametrize("verb", ARGUMENTS)
def test_a_verb_that_takes_a_network_takes_the_file_of_a_users_own(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = tmp_path / "my_stripes.py"
    file.write_text(SOURCE)
    assert "stripes" not in fourstage.list_models()
    assert main(ARGUMENTS[verb]) in (1, 2)
    assert verb == "models" or "no model is called" in capsys.readouterr().err
    assert main([*ARGUMENTS[verb], "--imports", str(file)]) == 0, capsys.readouterr().err
    assert "peak memory is not known" not in capsys.readouterr().err  # another process measures it
