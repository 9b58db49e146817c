"""Recipe -> objects -> loop. `train`, `evaluate` and `predict` are what the command line calls, and you may too.

The names are imported when they are first used: predictions of an exported file need no torch.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fourstage.run.evaluate import Evaluated, evaluate
    from fourstage.run.predict import Prediction, predict
    from fourstage.run.train import Trained, train

__all__ = ["Evaluated", "Prediction", "Trained", "evaluate", "predict", "train"]

_HOMES = {"Evaluated": "evaluate", "Prediction": "predict", "Trained": "train"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fourstage.run' has no attribute {name!r}")
    return getattr(import_module(f"fourstage.run.{_HOMES[name]}"), name)


def _function(name: str) -> property:
    """Return an attribute of the package that is a function, where Python would set the module of the same name."""

    def function(self: ModuleType) -> Any:
        return getattr(import_module(f"fourstage.run.{name}"), name)

    def keep(self: ModuleType, module: ModuleType) -> None:
        pass

    return property(function, keep)


class _Package(ModuleType):
    evaluate, predict, train = _function("evaluate"), _function("predict"), _function("train")


sys.modules[__name__].__class__ = _Package
