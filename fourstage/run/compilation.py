"""Which modules of a task torch.compile compiles, and when their compiled form runs."""

from collections.abc import Generator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn

from fourstage.recipe import Recipe
from fourstage.tasks.detection.detector import Detector


def compiled(task: nn.Module) -> nn.Module:
    """Compile a task in place and return it; its parameters keep their names.

    Of a detector, the backbone and the neck are compiled. The rest matches boxes with objects, in numbers that change
    with every image, and draws by numpy's generators, which no graph holds.
    """
    detector = next((module for module in task.modules() if isinstance(module, Detector)), None)
    for module in (task,) if detector is None else (detector.backbone, detector.neck):
        module.compile()
    return task


def unchanged(task: nn.Module) -> nn.Module:
    """Return the task as it is, where nothing is compiled."""
    return task


@contextmanager
def plain_evaluation(recipe: Recipe) -> Generator[None]:
    """Let what is compiled for training run in its plain form, and by cuDNN's usual kernels, as in other commands.

    Images of a validation have many sizes, and for each one cuDNN would try its kernels, which takes seconds.
    """
    tried, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
    try:
        with torch.compiler.set_stance("force_eager") if recipe.compile else nullcontext():
            yield
    finally:
        torch.backends.cudnn.benchmark = tried
