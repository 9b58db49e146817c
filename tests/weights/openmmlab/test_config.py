"""Configurations of checkpoints are read as text; what is no plain value is refused, and nothing is run."""

import math
from pathlib import Path
from typing import Any

import pytest

from fourstage.weights.openmmlab.config import config_of, parse_config
from fourstage.weights.reading.safe import read_checkpoint

CHECKPOINTS = Path(__file__).parents[2] / "golden" / "checkpoints"


def test_what_the_frameworks_write_is_read() -> None:
    mmengine, mmcv, published = (
        config_of(read_checkpoint(CHECKPOINTS / f"{name}.pth").content, name)
        for name in ("mmengine_tiny", "mmcv1_tiny", "mmengine_tiny_published")
    )
    assert published is None
    assert mmcv == {"model": {"type": "Tiny"}, "optimizer": {"type": "AdamW", "lr": 1e-4}}
    assert mmengine is not None
    assert mmengine["model"] == {"type": "Tiny"}
    assert mmengine["optim_wrapper"]["optimizer"]["betas"] == (0.9, 0.999)
    assert mmengine["param_scheduler"][1] == {
        "begin": 0, "by_epoch": True, "end": 2, "gamma": 0.1, "milestones": [1], "type": "MultiStepLR"
    }  # fmt: skip


def test_plain_values_of_every_kind() -> None:
    text = (
        "# a comment\n"
        "a = dict(\n    lr=-1e-4,\n    keys=dict({'norm.1': dict(decay_mult=0.0), 'x': None}, y=True),\n"
        "    steps=[8, 11, ])\n"
        "b = (1333, 800)\nc = ()\nd = {}\ne = 'one ' 'two'\nf = -inf\n"
        "g = dict(dict=r'\\d')\nh = [dict(type='A'), ['\\q']]\n"
    )
    found = parse_config(text, "x.pth")
    assert found["a"] == {"lr": -1e-4, "keys": {"norm.1": {"decay_mult": 0.0}, "x": None, "y": True}, "steps": [8, 11]}
    assert (found["b"], found["c"], found["d"], found["e"], found["f"]) == ((1333, 800), (), {}, "one two", -math.inf)
    assert (found["g"], found["h"]) == ({"dict": r"\d"}, [{"type": "A"}, ["\\q"]])
    assert parse_config("", "x.pth") == {}


MARK = "open('MARK', 'w')"
HOSTILE = {
    "call": f"a = {MARK}",
    "import": "import os",
    "from": "from os import system",
    "dunder": "a = __import__('os').system('touch MARK')",
    "method": "a = 'x'.upper()",
    "attribute": "a = dict.mro",
    "called dict": "a = dict(a=1)(b=2)",
    "f-string": f"a = f'{{{MARK!r}}}'",
    "nested f-string": f"a = dict(b=[rf'{{{MARK}}}'])",
    "comprehension": f"a = [{MARK} for i in [1]]",
    "lambda": f"a = lambda: {MARK}",
    "condition": f"a = 1 if {MARK} else 2",
    "walrus": f"a = (b := {MARK})",
    "second statement": f"a = 1; {MARK}",
    "statement": f"a = 1\n{MARK}\n",
    "function": f"def f():\n    {MARK}\n",
    "decorator": "@print\ndef f(): pass",
    "class": "class A: pass",
    "other name": "a = 1\nb = a",
    "subscript": "a = [1][0]",
    "target": "a.b = 1",
    "several targets": "a, b = 1, 2",
    "annotation": f"a: {MARK} = 1",
    "default": "a = dict(**{})",
    "star": "a = [*[1]]",
    "sum": "a = 1 + 1",
    "power": "a = 9 ** 9 ** 9",
    "many": "a = 'x' * 9",
    "long sum": "a = 1" + " + 1" * 50_000,
    "brackets": "a = " + "[" * 50_000 + "]" * 50_000,
    "dicts": "a = " + "dict(a=" * 5000 + "1" + ")" * 5000,
    "signs": "a = " + "-" * 50_000 + "1",
    "calls": "a = dict" + "()" * 50_000,
    "size": "a = '" + "x" * 600_000 + "'",
    "lines": "a = '''" + "\n" * 400_000,
    "digits": "a = " + "9" * 6000,
    "null byte": "a = '\x00'",
    "surrogate": "a = '\ud800'\nb = ",
    "cut": "a = dict(b=(1,",
    "indent": "a = 1\n  b = 2",
    "unhashable": "a = {[]: 1}",
    "needs others": "_base_ = ['../base.py']",
    "web page": "<html><body>404</body></html>",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_what_is_no_plain_value_is_refused(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"x\.pth contains a configuration .*nothing in it was run.*--weights") as e:
        config_of({"meta": {"config": text}}, "x.pth")
    assert "\n" not in str(e.value)
    assert len(str(e.value)) < 300
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"meta": None},
        {"meta": {"cfg": ""}},
        {"meta": {"config": 3}},
        {"meta": [1]},
        {"message_hub": {"runtime_info": 1}},
    ],
)
def test_a_checkpoint_without_a_configuration_says_so(content: dict[str, Any]) -> None:
    assert config_of(content, "x.pth") is None


def test_a_running_mmengine_keeps_it_elsewhere_too() -> None:
    content = {"meta": {}, "message_hub": {"runtime_info": {"cfg": "model = dict(type='A')"}}}
    assert config_of(content, "x.pth") == {"model": {"type": "A"}}
