"""The tasks that a recipe can name, and the values that each of them has."""

from fourstage.recipe.classification import Augmentation, Classification, Evaluation
from fourstage.recipe.common import FREE, Optimisation, Recipe, steps
from fourstage.recipe.segmentation import Segmentation

__all__ = [
    "FREE", "TASKS", "Augmentation", "Classification", "Evaluation", "Optimisation", "Recipe", "Segmentation", "steps",
]  # fmt: skip

TASKS: dict[str, type[Recipe]] = {"classification": Classification}
