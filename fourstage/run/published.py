"""The published weights that a recipe or a command names: `pretrained`, `smt_tiny.in1k`, or a tag such as `in22k`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fourstage import registry
from fourstage.build import fetched
from fourstage.recipe import Recipe, Resolved, is_name_of_weights, list_recipes, resolve
from fourstage.weights import catalog
from fourstage.weights.catalog import Weight

PRETRAINED = "pretrained"
OTHERWISE = {  # the command -> what to type where there are no such weights
    "train": "give a file, weights=FILE, or type weights=none to train from scratch",
    "evaluate": "give a file, --weights FILE",
}


def settled_weights(resolved: Resolved) -> tuple[Resolved, tuple[str, ...]]:
    """Return a recipe with the full name of the published weights that it starts from, and lines about them.

    The name replaces `pretrained` and tags, and the network gets the arguments that the weights need, unless the recipe
    has these.

    Raises:
        ValueError: no such weights are published.
    """
    recipe = resolved.recipe
    if recipe.weights is None:
        alone = recipe.sizing == "fine_tuning"
        return resolved, ("weights none: the network starts from random numbers",) if alone else ()
    if not is_name_of_weights(recipe.weights):
        return resolved, ()
    if _of_timm(recipe, recipe.weights):
        return resolved, (f"weights {PRETRAINED}: those that timm publishes for {_model(recipe)}",)
    weight = row_of(recipe, recipe.weights, "train")
    return resolved.fit({"weights": weight.name, **needed_arguments(recipe, weight)}), (_line(weight),)


def published_weights(resolved: Resolved, weights: str | Path) -> tuple[Resolved, Path]:
    """Return the checkpoint of an evaluation, and the recipe with the arguments that published weights need.

    Raises:
        ValueError, OSError: there are no such weights, or they could not be fetched; says what to type.
    """
    if not _is_name(weights):
        return resolved, Path(weights)
    weight = row_of(resolved.recipe, str(weights), "evaluate")
    return resolved.fit(needed_arguments(resolved.recipe, weight)), fetched(weight, "evaluate")


def needed_arguments(recipe: Recipe, weight: Weight) -> dict[str, Any]:
    """Return what the network must be built with for these weights and the recipe does not say, by dotted key."""
    if weight.model != _own_name(recipe):
        return {}
    needed = {"model_args" if recipe.task == "classification" else "backbone_args": weight.arguments}
    if weight.method is not None and weight.method == getattr(recipe, "method", None):
        needed |= {"method_args": _method_args(weight)}
    return {
        f"{section}.{name}": [*value] if isinstance(value, tuple) else value  # as YAML has it
        for section, arguments in needed.items()
        for name, value in arguments.items()
        if name not in getattr(recipe, section)
    }


def _method_args(weight: Weight) -> Mapping[str, Any]:
    """Return the settings of the recipe that trains a published detector or segmentor."""
    known = weight.recipe in list_recipes()
    return getattr(resolve(str(weight.recipe)).recipe, "method_args", {}) if known else {}


def row_of(recipe: Recipe, name: str, call: str) -> Weight:
    """Return the row of the catalogue that `name` means for the network of a recipe.

    Args:
        call: "train" or "evaluate", for messages.

    Raises:
        ValueError: there is no such row.
    """
    method = getattr(recipe, "method", None)
    bare, tag = catalog.split(_model(recipe))
    try:
        if name == PRETRAINED:
            return catalog.of_task(registry.find(bare).name, method, tag)
        model, dot, named = name.partition(".")
        if dot:
            return catalog.find(registry.find(model).name, named)
        return catalog.find(registry.find(bare).name, name)
    except ValueError as error:
        raise ValueError(f"weights={name}: {_first_words(error)}; {OTHERWISE[call]}") from None


def weights_file(recipe: Recipe, weights: str) -> Path:
    """Return the checkpoint that a training starts from: a file as it is, published weights from the cache or fetched.

    Raises:
        ValueError, OSError: there are no such weights, or they could not be fetched; says what to type.
    """
    return fetched(row_of(recipe, weights, "train"), "train") if _is_name(weights) else Path(weights)


def _is_name(weights: str | Path) -> bool:
    return isinstance(weights, str) and is_name_of_weights(weights) and not Path(weights).exists()


def takes_those_of_timm(recipe: Recipe) -> bool:
    """Return whether a recipe starts from the weights that timm itself publishes for its backbone."""
    return recipe.weights is not None and _of_timm(recipe, recipe.weights)


def _of_timm(recipe: Recipe, weights: str) -> bool:
    return weights == PRETRAINED and _model(recipe).startswith("timm/")


def _model(recipe: Recipe) -> str:
    """Return the network of a recipe: the classifier, or the backbone of a detector or segmentor."""
    return str(getattr(recipe, "model", None) or getattr(recipe, "backbone", None))


def _own_name(recipe: Recipe) -> str:
    return registry.find(catalog.split(_model(recipe))[0]).name


def _line(weight: Weight) -> str:
    metrics = ", ".join(f"{name} {value:g} %" for name, value in weight.metrics.items())
    return f"weights {weight.name}: {metrics or weight.file}"


def _first_words(error: ValueError) -> str:
    """Return the sentence of the catalogue or registry without its advice for Python where it has some."""
    text = str(error)
    return text.partition("; build it with")[0]
