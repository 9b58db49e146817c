"""From images to typed predictions: `fourstage.load` returns a `Predictor`, and it returns results."""

from fourstage.predict.predictor import Predictor
from fourstage.predict.results import ClassResult, LabelMapResult, ObjectResult, Result

__all__ = ["ClassResult", "LabelMapResult", "ObjectResult", "Predictor", "Result"]
