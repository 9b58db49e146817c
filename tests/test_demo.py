"""The commands of `make demo` parse: a classifier, a detector and a segmentor from it, and one page of all runs."""

import re
import shlex
from pathlib import Path

from fourstage import cli
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
