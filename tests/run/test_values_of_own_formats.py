"""A user's format may have numpy's texts and numbers, and what it may not have is one sentence before a training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fourstage
from fourstage.data import formats
from fourstage.data.formats import open_dataset
from fourstage.data.sample import Sample, Truth
from fourstage.recipe import resolve
from fourstage.run import evaluate, train
from fourstage.run.task_protocol import protocol_of

IMAGES = np.random.default_rng(0).integers(0, 255, (12, 64, 64, 3), dtype=np.uint8)
STEPS = ["optimisation.length=1it", "optimisation.warmup=0it", "optimisation.batch_size=4", "device=cpu", "workers=0"]


class Flat:
    classes: Any = tuple(np.unique(["b", "a"]))
    truths: tuple[str, ...] = ("label",)
    palette: Any = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)
    category_ids: Any = np.array([7, 9])

    def __init__(self, root: Path, split: str) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(IMAGES)

    def id(self, index: int) -> Any:
        return np.str_(f"{self.split}/{index}")

    def sample(self, index: int) -> Sample:
        size: Any = tuple(np.array(IMAGES[index].shape[:2]))
        label: Any = np.int64(index % 2)
        map_HW = torch.from_numpy(IMAGES[index, ..., 0] % 2) if "label_map_HW" in self.truths else None
        return Sample(self.id(index), IMAGES[index], size, None if map_HW is not None else label, None, map_HW)


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Register a format with some other attributes; return its folder."""
    monkeypatch.setattr(formats, "_registered", {})
    (tmp_path / "data").mkdir()

    def register(truth: Truth = "label", **attributes: Any) -> Path:
        own = type("Own", (Flat,), {"truths": (truth,), **attributes})
        fourstage.register_format("flat", layout="", fits=lambda root: root.name == "data", truth=truth)(own)
        return tmp_path / "data"

    return register


@pytest.mark.parametrize("classes", [Flat.classes, np.array(["a", "b"]), ["a", "b"]], ids=["texts", "array", "list"])
def test_a_training_keeps_names_of_numpy(classes: Any, opened: Callable[..., Path], tmp_path: Path) -> None:
    data = opened(classes=classes)
    trained = train("digits_visformer", data=data, out=tmp_path / "run", changes=STEPS, show=False)
    assert trained.metrics is not None
    again = evaluate(tmp_path / "run", changes="evaluation_batch_size=4", show=False)  # one change, given alone
    assert again.metrics == pytest.approx(trained.metrics)
    assert fourstage.load(tmp_path / "run", show=False).class_names == ("a", "b")


@pytest.mark.parametrize(
    ("recipe", "key", "value"),
    [
        ("digit_scenes_semantic_fpn", "palette", [[1, 2, 3], [4, 5, 6]]),
        ("digit_scenes_retinanet", "category_ids", [7, 9]),
    ],
)
def test_what_a_checkpoint_keeps_of_the_data_is_plain(
    recipe: str, key: str, value: Any, opened: Callable[..., Path]
) -> None:
    dataset = open_dataset(opened("label_map_HW"), "train")
    known = protocol_of(resolve(recipe).recipe).dataset_metadata(dataset)
    assert known[key] == value
    flat = [one for row in known[key] for one in (row if isinstance(row, list) else [row])]
    assert {type(one) for one in flat} == {int}


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"classes": (0, 1)}, "the class 0; make it a text, such as '0'"),
        ({"id": lambda self, index: index}, "the id 0; make it a text, such as '0'"),
        ({"id": lambda self, index: Path(f"{index}.png")}, "make it a text, such as '0.png'"),
    ],
)
def test_names_that_are_no_texts_are_one_sentence(
    attributes: dict[str, Any], words: str, opened: Callable[..., Path], tmp_path: Path
) -> None:
    data = opened(**attributes)
    with pytest.raises(ValueError, match=f"the format 'flat' has .*{words}"):
        train("digits_visformer", data=data, out=tmp_path / "run", changes=STEPS, show=False)


def test_one_change_may_be_given_alone(opened: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'seed' is not a change"):
        train("digits_visformer", data=opened(), out=tmp_path / "run", changes="seed", show=False)
