from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fourstage.run.checks import check_same_classes, check_truth
from fourstage.weights.reading.safe import Checkpoint


def own(*classes: str) -> Checkpoint:
    return Checkpoint(Path("best.pt"), {"fourstage": "1.0", "classes": list(classes)})


def foreign(*classes: str) -> Checkpoint:
    return Checkpoint(Path("upernet.pth"), {"meta": {"CLASSES": classes}})


@pytest.mark.parametrize(
    "file",
    [own("cat", "traffic light"), foreign("cat", "traffic light"), foreign("Cat", "traffic_light"), foreign("0", "1")],
    ids=["own", "foreign", "spelt otherwise", "other names"],
)
def test_these_know_the_classes_of_the_data(file: Checkpoint) -> None:
    check_same_classes(file.path, file, ["cat", "traffic light"])


@pytest.mark.parametrize(
    ("file", "where"),
    [
        (own("traffic light", "cat"), "has 'traffic light' where the data has 'cat'"),
        (own("cat", "traffic_light"), "has 'traffic_light' where the data has 'traffic light'"),
        (own("cat", "traffic light", "dog"), "has 'dog' where the data has None"),
        (foreign("Traffic_light", "Cat"), "has 'Traffic_light' where the data has 'cat'"),
    ],
    ids=["own, another order", "own, another spelling", "own, another number", "foreign, another order"],
)
def test_these_do_not(file: Checkpoint, where: str) -> None:
    with pytest.raises(ValueError, match=where):
        check_same_classes(file.path, file, ["cat", "traffic light"])


def test_the_number_of_classes_of_a_recipe_may_be_that_of_the_data() -> None:
    recipe: Any = SimpleNamespace(name="r", data="pets", task="detection", num_classes=80)
    one: Any = SimpleNamespace(truths=("objects",), classes=("cat",))
    with pytest.raises(ValueError, match=r"pets has 1 class, .*=80; write num_classes=1, or num_classes=null for"):
        check_truth(recipe, one, "objects", "no boxes", "boxes")
