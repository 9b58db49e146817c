"""Figures beside the built-in mixers, the training on digits, and the command. B images, H x W cells, C channels."""

import json
from pathlib import Path

import pytest
import torch
from check import faults
from torch import Tensor, nn

from fourstage.backbones.layers import Level
from fourstage.check import card as card_module
from fourstage.check import entrants, figures, learning
from fourstage.check.candidates import Candidate
from fourstage.check.card import Card, Setting, check
from fourstage.check.figures import Figures
from fourstage.check.findings import Finding
from fourstage.check.text import render
from fourstage.cli import main

MIXER = """\
from torch import nn


class MyMixer(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.mean = nn.AvgPool2d(3, stride=1, padding=1)
        self.out = nn.Linear(dim, dim)

    def forward(self, x):
        return self.out(self.mean(x.movedim(-1, 1)).movedim(1, -1))
"""
BESIDE = ("parameters, MACs", "speed", "memory", "receptive field", "learns digits", "translation")


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two small networks beside the user's, and no laws."""
    monkeypatch.setattr(entrants, "FIVE", ("convnext", "swin"))
    monkeypatch.setattr(entrants, "WIDTHS", (32, 32, 32, 32))
    monkeypatch.setattr(figures, "ROUNDS", 2)
    monkeypatch.setattr(learning, "SHIFTED_IMAGES", 6)
    monkeypatch.setattr(learning, "FEWEST", 2)
    monkeypatch.setattr(learning, "BATCH", 16)
    monkeypatch.setattr(card_module, "LAWS", tuple(law for law in card_module.LAWS if law.name == "shapes"))
    monkeypatch.setattr(card_module, "RUN_FIRST", ("shapes",))


def card_of(build: type[nn.Module], seconds: float = 0.5, kind: str = "mixer") -> Card:
    return check(Candidate(build.__name__, "mixer" if kind == "mixer" else "backbone", build), Setting(seconds, (1,)))


def findings(card: Card) -> dict[str, Finding]:
    return {line.name: line.finding for line in card.lines}


@pytest.mark.usefixtures("_small")
def test_figures_of_all_networks_are_measured() -> None:
    card = card_of(faults.Good, seconds=1.5)
    assert list(findings(card))[-6:] == list(BESIDE)
    by_count = ("parameters, MACs", "memory", "receptive field")  # the others follow the load of the machine
    assert {findings(card)[name].status for name in by_count} == {"pass"}, render(card)
    assert not card.count("fail"), render(card)
    assert list(card.table) == ["Good", "convnext", "swin"]
    for row in card.table.values():
        assert None not in (
            row.parameters,
            row.macs,
            row.infer_ms,
            row.kept_mib,
            row.field_px,
            row.consistent,
            row.top1,
        )
        assert row.infer_ms is not None
        assert row.train_ms is not None
        assert row.infer_ms > 0
        assert row.train_ms > 0
    assert max(map(len, render(card).splitlines())) <= 80


class Wide(faults.Good):
    """Many times the parameters that a mixer needs."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.more = nn.ModuleList(nn.Linear(dim, dim) for _ in range(150))

    def forward(self, x_BHWC: Tensor) -> Tensor:
        for layer in self.more:
            x_BHWC = x_BHWC + layer(x_BHWC)
        return super().forward(x_BHWC)


class OnTheCpu(faults.Good):
    """A table that is computed on the CPU, whatever device its input is on."""

    def forward(self, x_BHWC: Tensor) -> Tensor:
        return super().forward(x_BHWC) * torch.linspace(1, 2, x_BHWC.shape[-1])


class Dead(faults.Good):
    """Destroys what the residual carries."""

    def forward(self, x_BHWC: Tensor) -> Tensor:
        return super().forward(x_BHWC) * 0 + torch.randn(x_BHWC.shape) * 1e4


@pytest.mark.usefixtures("_small")
def test_unmatched_cost_and_memory_are_warned() -> None:
    found = findings(card_of(Wide, seconds=0))
    assert found["parameters, MACs"].status == "warn"
    assert "of the five" in found["parameters, MACs"].found
    assert found["memory"].status == "warn"
    assert "learns digits" not in found


@pytest.mark.usefixtures("_small")
def test_a_tensor_of_the_cpu_is_warned_and_the_others_are_counted() -> None:
    card = card_of(OnTheCpu, seconds=0)
    assert findings(card)["parameters, MACs"].status == "warn"
    assert "device=x.device" in findings(card)["parameters, MACs"].advice
    assert card.table["swin"].macs
    assert card.table["OnTheCpu"].macs is None


@pytest.mark.usefixtures("_small")
def test_a_mixer_that_learns_nothing_fails() -> None:
    found = findings(card_of(Dead, seconds=6))
    assert found["learns digits"].status == "fail", found["learns digits"]
    assert found["translation"].status == "skip"


@pytest.mark.usefixtures("_small")
def test_few_steps_decide_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "FEWEST", 1000)
    finding = findings(card_of(faults.Good, seconds=0.1))["learns digits"]
    assert finding.status == "warn"
    assert "--seconds" in finding.advice


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.levels = (Level(16, 4), Level(48, 16))
        self.first, self.second = nn.Conv2d(3, 16, 7, 4, 3), nn.Conv2d(16, 48, 5, 4, 2)

    def forward(self, image_BCHW: Tensor) -> list[Tensor]:
        x_BCHW = self.first(image_BCHW)
        return [x_BCHW, self.second(x_BCHW.relu())]


@pytest.mark.usefixtures("_small")
def test_a_backbone_is_compared_too() -> None:
    card = card_of(Net, seconds=0.3, kind="backbone")
    assert not card.count("fail"), render(card)
    assert card.table["Net"].top1 is not None


@pytest.mark.usefixtures("_small")
def test_a_mixer_called_as_a_built_in_one_keeps_its_row() -> None:
    swin = type("swin", (faults.Good,), {})
    assert list(card_of(swin, seconds=0).table) == ["swin (yours)", "convnext", "swin"]


def test_parameters_keep_no_memory_twice() -> None:
    """A linear layer keeps its input, 8 x 4 floats, and not its weights."""
    assert figures._kept_bytes(nn.Linear(4, 2), torch.randn(8, 4)) == 8 * 4 * 4


def test_a_missing_figure_is_a_dash() -> None:
    card = Card("a", "mixer", table={"a": Figures("a", parameters=1_000_000)})
    assert "1.00      -" in render(card)


@pytest.mark.usefixtures("_small")
def test_the_command_prints_json_and_ends_by_the_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = tmp_path / "good.py", tmp_path / "bad.py"
    good.write_text(MIXER)
    bad.write_text(MIXER.replace("return self", "return x[0] + self"))
    assert main(["check", str(good), "--seconds", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "MyMixer"
    bad.write_text(MIXER.replace("movedim(1, -1)", "movedim(1, -1)[:, 1:]"))
    assert main(["check", f"{bad}:MyMixer", "--seconds", "0"]) == 1
    assert "FAIL" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["none.py"], ["good.py:Other"], ["good.py", "--seconds", "-1"]])
def test_wrong_use_is_one_sentence(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("good.py").write_text(MIXER)
    assert main(["check", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
