"""A recipe and the checkpoint that fills its network: which classes it has, which file is published for it."""

from pathlib import Path
from typing import Any

from fourstage import registry
from fourstage.build import StartingPoint
from fourstage.data.class_names import names_of
from fourstage.recipe import Recipe, list_recipes, resolve
from fourstage.weights import catalog
from fourstage.weights.catalog import Weight
from fourstage.weights.complete_checkpoints import count_classes, similar_networks
from fourstage.weights.reading.safe import Checkpoint, read_checkpoint


def classes_in(file: Checkpoint, recipe: Recipe) -> tuple[str, ...]:
    """Return the names of a file's classes: its own, else COCO's or ADE20K's by their number, else numbers.

    Raises:
        ValueError: neither the file nor the recipe shows how many there are.
    """
    if file.classes:
        return tuple(file.classes)
    count = count_classes(file.weights(), recipe.task) or getattr(recipe, "num_classes", None)
    if not count:
        raise ValueError(
            f"{file.path} does not say how many classes it has, and {recipe.name} does not either; give a recipe of "
            f"your own with num_classes"
        )
    return names_of(count, recipe.task)


def fitting_recipes(file: Checkpoint) -> list[str]:
    """Return the recipes for networks like the one in a file that does not describe itself."""
    method, models = similar_networks(file)
    if method is None:
        return []
    recipes = [(name, resolve(name).recipe) for name in list_recipes(f"{method.name}_*")]
    return [name for name, recipe in recipes if getattr(recipe, "backbone", None) in models]


def published_of(recipe: str) -> Weight:
    """Return the published file of the detector or segmentor that a recipe trains.

    Args:
        recipe: a name, or a file of the user's own, for which nothing is published.

    Raises:
        ValueError: there is none that a program can fetch; says what to give.
    """
    weight = catalog.of_recipe(recipe)
    if weight is None:
        raise ValueError(f"no weights of {recipe} are published; add --weights FILE, such as a checkpoint of yours")
    if weight.address is None:
        raise ValueError(catalog.no_address(weight, "predict"))
    return weight


def recipe_with_weights(source: str, weights: str | Path | None) -> tuple[Recipe, Checkpoint, dict[str, Any]]:
    """Return a recipe, the checkpoint that fills its network, and what the task must know of its data.

    Args:
        weights: the checkpoint; None: the published one, fetched where it is not in the cache.

    Raises:
        ValueError, OSError: an unknown recipe, or no checkpoint.
    """
    recipe = resolve(source).recipe
    if weights is None:
        weight = published_of(source)
        file = StartingPoint(registry.find(weight.model), weight, None, pretrained=True).read("predict")
        assert file is not None
    else:
        file = read_checkpoint(weights)
    about = file.content.get("about")
    if isinstance(about, dict):
        return recipe, file, about
    return recipe, file, {"masks": any("mask_head" in key for key in file.weights())}
