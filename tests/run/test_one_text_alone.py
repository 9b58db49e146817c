"""One text where several are possible: it is taken as it is, not letter by letter."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

import fourstage
from fourstage.recipe import resolve
from fourstage.run.compare.compare import plan_comparison
from fourstage.run.convert import convert
from fourstage.run.show import show


def test_one_change_of_a_recipe_or_a_sheet(tmp_path: Path) -> None:
    assert resolve("digits_visformer", "seed=7").recipe.seed == 7
    assert show("digits", changes="augmentation.hflip=0", out=tmp_path / "sheet.png", progress=False).path.is_file()


def test_one_source_one_choice_and_one_change_of_a_comparison(tmp_path: Path) -> None:
    planned = plan_comparison(
        "digits_visformer", "optimisation.lr=1e-3,2e-3", 1, tmp_path / "grid", changes="optimisation.length=2ep"
    )
    assert len(planned.grid.cells) == 2
    assert {str(arm.recipe.optimisation.length) for arm in planned.grid.arms} == {"2ep"}


def test_arguments_of_numpy_are_converted(tmp_path: Path) -> None:
    torch.save(fourstage.create_model("visformer_digits", num_classes=3).state_dict(), tmp_path / "digits.pth")
    given: dict[str, Any] = {"drop_path_rate": np.float32(0.25)}
    convert(tmp_path / "digits.pth", "visformer_digits", tmp_path / "digits.safetensors", arguments=given)
    network: Any = fourstage.from_checkpoint(tmp_path / "digits.safetensors")
    assert network.num_classes == 3
