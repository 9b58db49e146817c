"""Whole detectors and segmentors out of one file: which classes it tells apart, and that nothing stays untrained."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fourstage import registry
from fourstage.api import Start
from fourstage.data.class_names import names_of
from fourstage.methods import all_methods, load_address, recognise
from fourstage.recipe import Recipe, list_recipes, resolve
from fourstage.weights import catalog
from fourstage.weights.catalog import Weight
from fourstage.weights.complete_checkpoints import AUXILIARY, BACKBONE, load_dense_state
from fourstage.weights.load import Report, which_models
from fourstage.weights.reading.safe import Checkpoint, read_checkpoint


def fill_whole(network: nn.Module, file: Checkpoint, which: str = "model") -> Report:
    """Fill a detector or segmentor from a file that must hold all of it.

    Raises:
        ValueError: it holds another network, or a backbone alone.
    """
    method = getattr(network, "method", None)
    if method is None:
        raise ValueError(f"{type(network).__name__} has no method, by which the names in {file.path} could be known")
    report = load_dense_state(network, file.weights(which), method=method, source=file.path.name)
    fresh = [key for key in report.fresh if not key.startswith(AUXILIARY)]  # which predicts nothing
    if fresh:
        raise ValueError(
            f"{file.path} holds a backbone without the heads of a {method} ({fresh[0]} and {len(fresh) - 1} more); "
            f"give the checkpoint of a trained {method}"
        )
    return report


def classes_in(file: Checkpoint, recipe: Recipe) -> tuple[str, ...]:
    """Names of the classes that a file tells apart: its own, else COCO's or ADE20K's by their number, else numbers.

    Raises:
        ValueError: there is no telling how many there are.
    """
    if file.classes:
        return tuple(file.classes)
    count = _count_classes(file.weights(), recipe.task) or getattr(recipe, "num_classes", None)
    if not count:
        raise ValueError(
            f"{file.path} does not say how many classes it tells apart, and {recipe.name} does not either; give a "
            f"recipe of your own with num_classes"
        )
    return names_of(count, recipe.task)


def _count_classes(state: Mapping[str, Tensor], task: str) -> int | None:
    state = {re.sub(r"^(module\.|network\.)+", "", key): value for key, value in state.items()}
    counters = dict.fromkeys(method.count_classes for method in all_methods(task) if method.count_classes is not None)
    counts = (load_address(counter)(state) for counter in counters)
    return next((count for count in counts if count is not None), None)


def fitting_recipes(file: Checkpoint) -> list[str]:
    """Recipes for networks like the one in a file that does not say what it is, by the names and shapes in it."""
    try:
        state = {re.sub(r"^(module\.)+", "", key): value for key, value in file.weights().items()}
    except ValueError:
        return []
    method = recognise(state)
    inner = {key.removeprefix(BACKBONE): value for key, value in state.items() if key.startswith(BACKBONE)}
    if method is None or not inner:
        return []
    backbones = set(which_models(inner))
    recipes = [(name, resolve(name).recipe) for name in list_recipes(f"{method.name}_*")]
    return [name for name, recipe in recipes if getattr(recipe, "backbone", None) in backbones]


def published_of(recipe: str) -> Weight:
    """The published file of the detector or segmentor that a recipe trains, one that a program can fetch.

    Args:
        recipe: a name, or a file, of which nothing is published.

    Raises:
        ValueError: there is none; says what to give.
    """
    weight = catalog.of_recipe(recipe)
    if weight is None:
        raise ValueError(f"nobody has published weights of {recipe}; add --weights FILE, such as a checkpoint of yours")
    if weight.address is None:
        raise ValueError(catalog.no_address(weight, "predict"))
    return weight


def recipe_with_weights(source: str, weights: str | Path | None) -> tuple[Recipe, Checkpoint, dict[str, Any]]:
    """A recipe by name or file, the checkpoint that fills its network, and what the task must know of its data.

    Args:
        weights: the checkpoint; None: the published one, fetched where it is not in the cache.

    Raises:
        ValueError, OSError: an unknown recipe, or no checkpoint.
    """
    recipe = resolve(source).recipe
    if weights is None:
        weight = published_of(source)
        file = Start(registry.find(weight.model), weight, None, pretrained=True).read("predict")
        assert file is not None
    else:
        file = read_checkpoint(weights)
    about = file.content.get("about")
    if isinstance(about, dict):
        return recipe, file, about
    return recipe, file, {"masks": any("mask_head" in key for key in file.weights())}
