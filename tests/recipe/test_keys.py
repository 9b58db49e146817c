"""The reference of recipe keys is complete, and its page is the one that the schema gives."""

import subprocess
import sys
from pathlib import Path

import pytest

from fourstage.cli import main
from fourstage.recipe import TASKS, known_keys
from fourstage.recipe.keys import COMMAND, Key, keys_by_task, page

PAGE = Path(__file__).parents[2] / "docs" / "recipe-keys.md"


def of(task: str) -> dict[str, Key]:
    keys = keys_by_task()
    return {key.name: key for key in [*keys["every task"], *keys[task]]}


def test_the_page_is_the_one_of_the_schema() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), f"the schema has changed; write the page again: {COMMAND}"


@pytest.mark.parametrize("task", TASKS)
def test_every_key_is_described_once(task: str) -> None:
    keys = keys_by_task()
    names = [key.name for key in [*keys["every task"], *keys[task]]]
    assert sorted(names) == sorted(known_keys(TASKS[task]))
    for key in of(task).values():
        assert key.meaning.endswith("."), key
        assert key.type
        assert key.default


def test_types_defaults_and_limits_are_those_of_the_schema() -> None:
    keys = of("classification")
    assert keys["optimisation.length"].cells[:4] == ("optimisation.length", "length", "required", "")
    assert keys["optimisation.weight_decay_end"].cells[1:4] == ("float or null", "null", ">= 0")
    assert keys["augmentation.reprob"].allowed == ">= 0, <= 1"
    assert keys["optimisation.milestones"].type == "list of length"
    assert keys["seed"].allowed == ">= 0, < 2^63"
    assert keys["expect"].allowed == "top1, top5"
    assert keys["std"].cells[1:3] == ("[float, float, float]", "[0.229, 0.224, 0.225]")
    assert "mask_rcnn" in of("detection")["method"].allowed
    assert of("segmentation")["evaluation.window"].type == "[int, int] or null"


def test_the_command_prints_the_keys_of_one_task_or_of_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "--keys", "detection"]) == 0
    printed = capsys.readouterr().out
    assert "filter_empty" in printed
    assert "optimisation.lr_scaling" in printed
    assert "image_size" not in printed
    assert main(["recipes", "--keys"]) == 0
    everything = capsys.readouterr().out
    assert all(name in everything for name in ("filter_empty", "image_size", "evaluation.ratios_of"))
    assert "[int, int]" in everything  # brackets are no markup
    assert main(["recipes", "--keys", "detecting"]) == 2
    refused = capsys.readouterr().err
    assert "did you mean detection" in refused
    assert "classification, detection, segmentation" in refused
    assert main(["recipes", "*_in1k", "--keys"]) == 2
    assert "--keys takes no pattern of recipes; got '*_in1k'" in capsys.readouterr().err


def test_it_needs_no_torch() -> None:
    code = "import sys; from fourstage.recipe.keys import page; page(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
