"""Small untrained networks of the three tasks, ready to predict."""

from typing import Any

import torch
from torch import nn

import fourstage
from fourstage.data.transforms import classification, detection, segmentation
from fourstage.predict.predictor import Predictor
from fourstage.predict.tasks import image_predictor
from fourstage.tasks.classification import Classification
from fourstage.tasks.detection.task import Detection
from fourstage.tasks.segmentation.protocol import Protocol
from fourstage.tasks.segmentation.task import Segmentation

MEAN, STD = (0.5, 0.4, 0.6), (0.2, 0.25, 0.3)
CLASSES = ("cat", "dog", "owl")
TASKS = ("classification", "detection", "masks", "segmentation")


def predictor(task: str, *, threshold: float | None = None, **options: Any) -> Predictor:
    """A network with noise as weights, so that its predictions depend on every pixel."""
    torch.manual_seed(0)
    module, transform = _built(task)
    wide: Any = {"threshold": threshold} if task in ("detection", "masks") else {}
    return Predictor(image_predictor(module.eval(), transform, **wide), **options)


def _built(task: str) -> Any:
    if task == "classification":
        network = _noisy(fourstage.create_model("visformer_digits", num_classes=3, img_size=32))
        return Classification(network, CLASSES), classification.eval_transform(32, mean=MEAN, std=STD)
    if task == "segmentation":
        segmentor: Any = fourstage.create_segmentor(
            "upernet", "visformer_digits", 3, channels=16, auxiliary_channels=16
        )
        single = Protocol((96, 64))
        return Segmentation(
            _noisy(segmentor), CLASSES, mean=MEAN, std=STD, single=single
        ), segmentation.evaluation_transform()
    method = "mask_rcnn" if task == "masks" else "retinanet"
    small: Any = {"fc_channels": 32, "mask_channels": 16} if task == "masks" else {"convs": 1, "score_threshold": 0.0}
    detector: Any = fourstage.create_detector(method, "visformer_digits", 3, channels=16, **small)
    return Detection(_noisy(detector), CLASSES), detection.evaluation_transform((96, 64), mean=MEAN, std=STD)


def _noisy(network: nn.Module) -> Any:
    for parameter in network.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.04)
    if (head := getattr(network, "dense_head", None)) is not None:
        nn.init.zeros_(head.classify.bias)
    return network
