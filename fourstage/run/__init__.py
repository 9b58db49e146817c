"""Recipe -> objects -> loop. `train`, `evaluate` and `predict` are what the command line calls, and you may too."""

from fourstage.run.evaluate import Evaluated, evaluate
from fourstage.run.predict import Prediction, predict
from fourstage.run.train import Trained, train

__all__ = ["Evaluated", "Prediction", "Trained", "evaluate", "predict", "train"]
