"""Values of configurations that have more than one name, or that apply where no name is written."""

from pathlib import Path

import pytest
from weights.openmmlab.config_files import write
from weights.openmmlab.source_configs import CONFIGS

from fourstage.recipe import Recipe
from fourstage.run.import_config import imported_recipe

MASK_RCNN, UPERNET = CONFIGS["mask_rcnn_smt_small_coco_1x"], CONFIGS["upernet_swin_tiny_ade20k_160k"]


def recipe_of(folder: Path, text: str) -> Recipe:
    return imported_recipe(write(folder, text)).recipe


@pytest.mark.parametrize("length", ["runner = dict(_delete_=True, max_epochs=12)", "runner = None\ntotal_epochs = 12"])
def test_steps_at_a_distance_end_with_the_training_however_its_length_is_written(length: str, tmp_path: Path) -> None:
    text = f"{MASK_RCNN}\nlr_config = dict(_delete_=True, policy='step', step=4)\n{length}\n"
    found = recipe_of(tmp_path, text).optimisation
    assert (found.length, found.schedule, found.milestones) == ("12ep", "step", ("4ep", "8ep"))


@pytest.mark.parametrize("name", ["update_interval", "cumulative_iters"])
def test_an_update_of_several_batches_has_all_of_their_images(name: str, tmp_path: Path) -> None:
    found = recipe_of(tmp_path, f"{MASK_RCNN}\noptimizer_config = dict(_delete_=True, {name}=2)\n").optimisation
    assert (found.accumulation, found.batch_size) == (2, 32)


def test_the_rate_of_heads_is_that_of_the_auxiliary_one_too(tmp_path: Path) -> None:
    rule = "custom_keys={'head': dict(lr_mult=10.), "
    found = recipe_of(tmp_path, UPERNET.replace("custom_keys={", rule)).optimisation
    assert found.lr_multipliers == {"network.decoder": 10.0, "network.auxiliary": 10.0}
    imported = imported_recipe(write(tmp_path, MASK_RCNN.replace("custom_keys={", rule)))
    assert not imported.recipe.optimisation.lr_multipliers
    assert [line for line in imported.left_out if "custom_keys.head.lr_mult = 10.0" in line]
