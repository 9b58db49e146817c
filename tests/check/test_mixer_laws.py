"""A good mixer keeps all laws, and a mixer with one fault fails the line of that fault and no other."""

import json

import pytest
import torch
from check import faults
from torch import Tensor, nn

from fourstage.backbones.layers import Level
from fourstage.check.candidates import Candidate
from fourstage.check.card import Card, Setting, check
from fourstage.check.text import render

LAWS_ALONE = Setting(seconds=0, stages=(1,), beside=False)


def card_of(build: type[nn.Module]) -> Card:
    return check(Candidate(build.__name__, "mixer", build), LAWS_ALONE)


def test_a_good_mixer_passes_all() -> None:
    card = card_of(faults.Good)
    assert [line.finding for line in card.lines if line.finding.status != "pass"] == []
    assert card.good


@pytest.mark.parametrize(
    ("line", "build", "words"), faults.FAULTS, ids=[f"{line}-{build.__name__}" for line, build, _ in faults.FAULTS]
)
def test_a_fault_fails_its_own_line_alone(line: str, build: type[nn.Module], words: str) -> None:
    card = card_of(build)
    failed = {one.name: one.finding for one in card.lines if one.finding.status == "fail"}
    assert set(failed) == {line}, failed
    assert words in failed[line].found
    assert failed[line].advice
    assert not card.good
    assert all(one.finding.status in ("pass", "skip") for one in card.lines if one.name != line)


def test_a_type_of_its_own_fails_both_half_precisions() -> None:
    card = card_of(faults.OneType)
    assert [line.name for line in card.lines if line.finding.status == "fail"] == ["bfloat16", "float16"]


def test_a_mixer_that_mixes_nothing_is_warned() -> None:
    card = card_of(faults.CellByCell)
    assert {line.name: line.finding.status for line in card.lines if line.finding.status != "pass"} == {"reach": "warn"}
    assert card.good


def test_what_forward_prints_stays_out_of_the_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    class Prints(faults.Good):
        def forward(self, x_BHWC: Tensor) -> Tensor:
            if not torch.compiler.is_compiling():
                print("hello")
            return super().forward(x_BHWC)

    assert card_of(Prints).good
    out, err = capsys.readouterr()
    assert out == ""
    assert "hello" in err


def test_the_text_fits_80_columns_and_says_what_to_do() -> None:
    card = card_of(faults.Raises)
    text = render(card)
    assert max(map(len, text.splitlines())) <= 80
    assert "FAIL" in text
    assert "->" in text
    assert "not tried: needs `shapes`" in text
    assert json.loads(json.dumps(card.as_dict()))["lines"][0]["status"] == "fail"


class Net(nn.Module):
    """Two convolutions. (B, 3, H, W) to maps at strides 4 and 8."""

    def __init__(self) -> None:
        super().__init__()
        self.levels = (Level(8, 4), Level(16, 8))
        self.first, self.second = nn.Conv2d(3, 8, 7, 4, 3), nn.Conv2d(8, 16, 3, 2, 1)

    def forward(self, image_BCHW: Tensor) -> list[Tensor]:
        x_BCHW = self.first(image_BCHW)
        return [x_BCHW, self.second(x_BCHW.relu())]


class NoLevels(Net):
    def __init__(self) -> None:
        super().__init__()
        self.levels = ()


class Lies(Net):
    def forward(self, image_BCHW: Tensor) -> list[Tensor]:
        return super().forward(image_BCHW)[::-1]


def test_a_backbone_passes_all() -> None:
    card = check(Candidate("Net", "backbone", Net), LAWS_ALONE)
    assert {line.finding.status for line in card.lines} == {"pass"}, render(card)


@pytest.mark.parametrize(("build", "words"), [(NoLevels, "no levels"), (Lies, "levels promise")])
def test_a_backbone_without_right_levels_fails_shapes(build: type[nn.Module], words: str) -> None:
    card = check(Candidate("Net", "backbone", build), LAWS_ALONE)
    [failed] = [line for line in card.lines if line.finding.status == "fail"]
    assert failed.name == "shapes"
    assert words in failed.finding.found
