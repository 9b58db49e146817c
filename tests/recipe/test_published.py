"""Every number that the sources publish has a recipe, every recipe builds, and each kind of recipe takes steps."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from backbones.forms import CLASSIFIERS
from torch import nn

from fourstage.api import list_models
from fourstage.data.sample import Batch
from fourstage.engine.devices import Ranks
from fourstage.engine.optim import set_lr
from fourstage.engine.step import Halt, train_step
from fourstage.recipe import list_recipes, resolve
from fourstage.run import build
from fourstage.run.task_protocol import protocol_of
from fourstage.tasks.classification import Classification
from fourstage.weights.catalog import WEIGHTS

GOLDEN = Path(__file__).parents[1] / "golden"
PUBLISHED = json.loads((GOLDEN / "published_numbers.json").read_text())["classification"]
CPU = torch.device("cpu")


def recipe_of(row: dict[str, Any]) -> str:
    size = "" if row["image_size"] == 224 else f"_{row['image_size']}"
    return f"{row['model']}{size}_{'in22k_ft_in1k' if row['pretrain'] == 'imagenet22k' else 'in1k'}"


@pytest.mark.parametrize("row", PUBLISHED, ids=recipe_of)
def test_every_published_accuracy_has_its_recipe(row: dict[str, Any]) -> None:
    recipe = resolve(recipe_of(row)).recipe
    assert recipe.expect == {key: row[key] for key in ("top1", "top5") if row.get(key) is not None}
    assert (recipe.network_name, recipe.model_dump()["image_size"]) == (row["model"], row["image_size"])


def test_what_recipes_expect_is_what_the_catalogue_says() -> None:
    """Of Swin too, whose accuracies are in no table of the other sources."""
    known = {(weight.model, weight.tag, weight.img_size): weight.metrics for weight in WEIGHTS if not weight.method}
    checked = 0
    for name in list_recipes("*_in1k"):
        recipe = resolve(name).recipe
        tag = "in22k_ft_in1k" if name.endswith("in22k_ft_in1k") else "in1k"
        if metrics := known.get((recipe.network_name, tag, recipe.model_dump()["image_size"])):
            assert recipe.expect == {key: value for key, value in metrics.items() if key in recipe.expect}, name
            checked += 1
    assert checked > 30


@pytest.mark.parametrize(
    "weight", [one for one in WEIGHTS if not one.method and one.metrics], ids=lambda weight: weight.name
)
def test_every_published_classifier_with_an_accuracy_has_its_recipe(weight: Any) -> None:
    """Also where the source publishes weights and an accuracy, but no command."""
    size = f"_{weight.img_size}" if weight.tag.endswith(f"_{weight.img_size}") else ""
    model = weight.model.replace("_patch4_window12", "")
    recipe = resolve(f"{model}{size}_{weight.tag.removesuffix(size)}").recipe
    assert {name: weight.metrics.get(name) for name in recipe.expect} == recipe.expect
    assert recipe.expect
    assert recipe.model_dump()["image_size"] == weight.img_size
    arguments = recipe.model_dump()["model_args"]
    assert {name: arguments.get(name) for name in weight.arguments} == weight.arguments


@pytest.mark.parametrize("name", list_recipes("*_in*k*"))
def test_every_recipe_builds(name: str) -> None:
    recipe = resolve(name).recipe
    assert recipe.network_name in list_models()
    classes = tuple(str(i) for i in range(getattr(recipe, "num_classes", None) or 1000))
    with torch.device("meta"):
        task = protocol_of(recipe).build_task(classes)
    optimizer = build.optimizer(task, recipe)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(task.parameters()))
    build.schedule(recipe, 1_281_167 // recipe.optimisation.batch_size)


KINDS = {
    "smt": "smt_tiny_in1k",
    "scalablevit": "scalable_vit_small_in1k",
    "swin": "swin_tiny_in1k",
    "visformer": "visformer_tiny_in1k",
    "swin_visformer": "swin_visformer_tiny_v2_in1k",
    "unified_swin": "unified_swin_tiny_in1k",
    "unified_halo": "unified_halo_tiny_in1k",
    "unified_pvt": "unified_pvt_tiny_in1k",
    "unified_convnext": "unified_convnext_tiny_in1k",
    "unified_dcn_v3": "unified_dcn_v3_tiny_in1k",
}


@pytest.mark.parametrize("family", KINDS)
def test_each_family_takes_two_steps_by_its_recipe(family: str) -> None:
    """At a tiny width, in the recipe's precision: weights that the schedule lets move do move."""
    recipe = resolve(KINDS[family]).recipe
    torch.manual_seed(0)
    task = Classification(CLASSIFIERS[family](num_classes=10), [str(i) for i in range(10)], smoothing=0.1)
    build.prepare(task, recipe, Ranks(), CPU)
    optimizer, schedule = build.optimizer(task, recipe), build.schedule(recipe, 2)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=recipe.precision == "float16")
    batch = Batch(("a", "b"), torch.randn(2, 3, 64, 64), ((64, 64),) * 2, ((64, 64),) * 2, torch.tensor([1, 2]))
    before = {name: p.detach().clone() for name, p in task.named_parameters()}
    late = schedule.total // 2
    for step in (late, late + 1):
        set_lr(optimizer, schedule.lr(step))
        logged = train_step(
            task.train(), [batch], optimizer, scaler, autocast=build.autocast(recipe, CPU),
            grad_clip=recipe.optimisation.grad_clip, halt=Halt(CPU, step),
        )  # fmt: skip
        assert logged["total"].isfinite()
    still = [name for name, p in task.named_parameters() if torch.equal(p, before[name])]
    assert not still
    assert moved(task, before) < 0.1


def moved(task: nn.Module, before: dict[str, torch.Tensor]) -> float:
    """The largest change of a weight."""
    return max(float((p.detach() - before[name]).abs().max()) for name, p in task.named_parameters())
