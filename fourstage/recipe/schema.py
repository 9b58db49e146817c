"""The schema of each task's recipes."""

from fourstage.recipe.classification import Augmentation, Classification, Evaluation
from fourstage.recipe.common import FREE, Optimisation, Recipe, steps
from fourstage.recipe.detection import Detection
from fourstage.recipe.segmentation import Segmentation

__all__ = [
    "FREE",
    "TASKS",
    "Augmentation",
    "Classification",
    "Detection",
    "Evaluation",
    "Optimisation",
    "Recipe",
    "Segmentation",
    "steps",
]

TASKS: dict[str, type[Recipe]] = {
    "classification": Classification,
    "detection": Detection,
    "segmentation": Segmentation,
}
