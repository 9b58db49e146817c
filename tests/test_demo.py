"""The commands of `make demo` parse: a classifier, a detector and a segmentor from it, and one page of all runs."""

import re
import shlex
from pathlib import Path

import pytest

from fourstage import cli
from fourstage.progress import Stage
from fourstage.recipe import resolve

NETWORKS = ("model", "backbone", "backbone")  # the recipes' keys for it
MAKEFILE = (Path(__file__).parents[1] / "Makefile").read_text()


def typed() -> list[list[str]]:
    """Return the words after `fourstage` in each line of the demo."""
    demo = re.search(r"^demo: .*\n((?:\t.*\n)+)", MAKEFILE, flags=re.MULTILINE)
    variables = dict(re.findall(r"^(\w+) := (.*)$", MAKEFILE, flags=re.MULTILINE))
    assert demo, "the Makefile has no demo"
    lines = [line.partition("/fourstage ")[2] for line in demo[1].splitlines() if line.startswith("\t$(BIN)/fourstage")]
    return [shlex.split(re.sub(r"\$\((\w+)\)", lambda name: variables[name[1]], line)) for line in lines]


def test_the_demo_trains_one_backbone_for_three_tasks() -> None:
    *trainings, report = [cli.parse(words) for words in typed()]
    recipes = [resolve(args.recipe, args.changes).recipe for args in trainings]
    assert [recipe.task for recipe in recipes] == ["classification", "detection", "segmentation"]
    assert len({getattr(recipe, name) for recipe, name in zip(recipes, NETWORKS, strict=True)}) == 1
    best = Path(trainings[0].out, "checkpoints/best.pt").resolve()
    assert {recipe.weights for recipe in recipes[1:]} == {str(best)}
    assert report.verb == "report"
    assert report.runs == [args.out for args in trainings]


def test_each_training_of_the_demo_says_its_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    [shares] = re.findall(r"^SHARES := (.*)$", MAKEFILE, flags=re.MULTILINE)
    places = re.findall(r'export FOURSTAGE_STAGE="(.*)"; ', MAKEFILE)
    stages = []
    for place in places:
        monkeypatch.setenv("FOURSTAGE_STAGE", place.replace("$(SHARES)", shares))
        stages.append(Stage.here())
    assert [stage and stage.number for stage in stages] == [1, 2, 3]
    assert len(typed()) == 1 + len(stages)


def test_dense_trainings_of_the_demo_evaluate_once() -> None:
    for words in typed()[1:3]:
        args = cli.parse(words)
        assert isinstance(args.recipe, str)
        assert resolve(args.recipe, args.changes).recipe.evaluate_every is None
