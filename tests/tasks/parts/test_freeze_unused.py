"""Every parameter that has a gradient at all has one in every step, whatever maps of the backbone are read."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from tiny_networks import tiny_dense
from torch import Tensor, nn

from fourstage.backbones.layers import Level
from fourstage.bench.task_workloads import label_maps, scene
from fourstage.tasks.detection.detector import Detector
from fourstage.tasks.detection.mask_rcnn import MaskRCNN
from fourstage.tasks.detection.retinanet import RetinaNet
from fourstage.tasks.segmentation.segmentor import Segmentor
from fourstage.tasks.segmentation.upernet import upernet

BACKBONES = {name: partial(tiny_dense, name) for name in ("scalablevit", "smt", "swin", "unified_swin", "visformer")}
DETECTORS: dict[str, Callable[..., Detector]] = {"retinanet": RetinaNet, "mask_rcnn": MaskRCNN}


def without_gradient(network: nn.Module, losses: dict[str, Tensor]) -> set[str]:
    torch.stack([*losses.values()]).sum().backward()
    return {name for name, p in network.named_parameters() if p.requires_grad and p.grad is None}


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("method", ["retinanet", "mask_rcnn"])
def test_detectors(method: str, backbone: str) -> None:
    detector = DETECTORS[method](BACKBONES[backbone](), 3, channels=8).train()
    assert not without_gradient(detector, detector.losses(scene(torch.randn(1, 3, 64, 64))))
    assert not detector.find_unused_parameters
    frozen = {name.split(".")[1] for name, p in detector.named_parameters() if not p.requires_grad}
    assert frozen <= ({"norms"} if method == "retinanet" else set())


@pytest.mark.parametrize("maps", [None, (1, 2), (0, 1)])
@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("auxiliary", [0, 0.4])
def test_segmentors(backbone: str, maps: Any, auxiliary: float) -> None:
    """The auxiliary decoder reads the map at stride 16, whatever the other one reads."""
    own = BACKBONES[backbone]()
    segmentor = upernet(own, 3, channels=8, auxiliary_channels=4, auxiliary_weight=auxiliary, maps=maps).train()
    images_BCHW = torch.randn(2, 3, 64, 64)
    assert not without_gradient(segmentor, segmentor.losses(images_BCHW, label_maps(images_BCHW, 3)))
    assert not segmentor.find_unused_parameters


def test_backbones_of_another_kind_are_not_known() -> None:
    """Then processes look for what got no gradient, at each step."""

    class Own(nn.Module):
        levels = (Level(4, 4), Level(6, 8))

    assert not Segmentor(Own(), nn.Identity(), 3).find_unused_parameters
    assert Segmentor(Own(), nn.Identity(), 3, reads=[0]).find_unused_parameters
    assert not Segmentor(Own(), nn.Identity(), 3, auxiliary=nn.Identity(), reads=[0]).find_unused_parameters
