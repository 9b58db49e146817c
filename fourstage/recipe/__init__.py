"""A recipe: every value that can change a reported number, checked before anything heavy starts."""

from fourstage.recipe.resolve import Resolved, difference, flatten, from_mapping, list_recipes, read_yaml, resolve
from fourstage.recipe.schema import FREE, TASKS, Augmentation, Classification, Evaluation, Optimisation, Recipe, steps

__all__ = [
    "FREE",
    "TASKS",
    "Augmentation",
    "Classification",
    "Evaluation",
    "Optimisation",
    "Recipe",
    "Resolved",
    "difference",
    "flatten",
    "from_mapping",
    "list_recipes",
    "read_yaml",
    "resolve",
    "steps",
]
