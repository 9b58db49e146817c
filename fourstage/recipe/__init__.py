"""Recipes: every value that can change a reported number, checked before anything heavy starts."""

from fourstage.recipe.begun import as_begun
from fourstage.recipe.resolve import (
    EMBEDDED,
    Resolved,
    data_path,
    difference,
    flatten,
    from_mapping,
    is_name_of_weights,
    list_recipes,
    read_yaml,
    resolve,
    resolve_run,
    resolve_stored,
)
from fourstage.recipe.schema import (
    FREE,
    TASKS,
    Augmentation,
    Classification,
    Detection,
    Evaluation,
    Optimisation,
    Recipe,
    Segmentation,
    steps,
)
from fourstage.recipe.suggestions import known_keys, unknown_option

__all__ = [
    "EMBEDDED",
    "FREE",
    "TASKS",
    "Augmentation",
    "Classification",
    "Detection",
    "Evaluation",
    "Optimisation",
    "Recipe",
    "Resolved",
    "Segmentation",
    "as_begun",
    "data_path",
    "difference",
    "flatten",
    "from_mapping",
    "is_name_of_weights",
    "known_keys",
    "list_recipes",
    "read_yaml",
    "resolve",
    "resolve_run",
    "resolve_stored",
    "steps",
    "unknown_option",
]
