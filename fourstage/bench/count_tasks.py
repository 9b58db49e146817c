"""Count what detectors and segmentors cost, by the conventions of published tables.

Detectors get one image of 1280 x 800 pixels (height, width), with 1,000 regions through each box head and 100 through
each mask head. Segmentors get one of 512 x 2048, without their auxiliary heads. B images, C channels, H x W pixels.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fourstage.api import create_detector, create_segmentor
from fourstage.bench.count import Count, count_module
from fourstage.data.embedded.digits import CLASSES as DIGITS
from fourstage.methods import AUTO, BY_DATA, list_methods
from fourstage.tasks.detection.detector import Detector
from fourstage.tasks.detection.padding import padded
from fourstage.tasks.segmentation.segmentor import Segmentor
from fourstage.user_files import import_files

DETECTION_SIZE, SEGMENTATION_SIZE = (1280, 800), (512, 2048)  # (H, W) in pixels
COCO, ADE20K = 80, 150  # default numbers of classes
EMBEDDED_CLASSES = {"digits": len(DIGITS), "digit_scenes": len(DIGITS)}


def count_recipe(name: str, img_size: tuple[int, int] | None = None) -> Count:
    """Return what the network of a detection or segmentation recipe costs.

    Most tables publish `full_macs`; those of SMT, and RetinaNet's, publish `module_macs`.

    Args:
        name: the recipe's name, as for `fourstage train`.
        img_size: (H, W) in pixels; None: the size of published tables.

    Raises:
        ValueError: no such recipe, or one of classification.
    """
    with torch.device("meta"):
        network = network_of_recipe(name)
    return count_network(network, img_size or published_size(network))


def network_of_recipe(name: str) -> nn.Module:
    """Build the network of a detection or segmentation recipe, without weights.

    Raises:
        ValueError: no such recipe, or one of classification.
    """
    from fourstage.recipe import Detection, Segmentation, resolve  # needs pydantic, and a model by its name does not

    recipe = resolve(name).recipe
    import_files(recipe.imports)
    if isinstance(recipe, Detection):
        build, classes = create_detector, recipe.num_classes or embedded_classes(recipe) or COCO
    elif isinstance(recipe, Segmentation):
        prior = recipe.method_args.get("prior")  # a share for each class
        by_prior = len(prior) if isinstance(prior, list) else None
        build, classes = create_segmentor, recipe.num_classes or by_prior or embedded_classes(recipe) or ADE20K
    else:
        raise ValueError(f"{name} trains a classifier; name its model, {recipe.network_name}")
    arguments = {name: value for name, value in recipe.method_args.items() if name not in BY_DATA or value != AUTO}
    return build(recipe.method, recipe.backbone, classes, backbone_args=recipe.backbone_args, **arguments)


def embedded_classes(recipe: Any) -> int | None:
    """Return the number of classes of a recipe's data where the package has this data; None for other data."""
    if recipe.data not in EMBEDDED_CLASSES:
        return None
    return EMBEDDED_CLASSES[recipe.data] + (recipe.task == "segmentation")  # the background of label maps


def network_of_method(name: str) -> nn.Module:
    """Build `METHOD:BACKBONE` with COCO's or ADE20K's number of classes and the method's defaults."""
    method, _, backbone = name.partition(":")
    if method in list_methods("detection"):
        return create_detector(method, backbone, COCO)
    return create_segmentor(method, backbone, ADE20K)


def published_size(network: nn.Module) -> tuple[int, int]:
    """Return (H, W) of the image for which costs of such a network are published."""
    return DETECTION_SIZE if isinstance(network, Detector) else SEGMENTATION_SIZE


def count_network(network: nn.Module, img_size: Sequence[int]) -> Count:
    """Return what a detector or segmentor costs for one image of this (H, W). The network stays as it was.

    Raises:
        ValueError: the network is neither of the two.
    """
    if not isinstance(network, Detector | Segmentor):
        raise ValueError(f"count_network needs a detector or a segmentor; got {type(network).__name__}")
    return count_module(_CountedForward(network), (3, *img_size))


class _CountedForward(nn.Module):
    """The counted work as a forward pass."""

    def __init__(self, network: Detector | Segmentor) -> None:
        super().__init__()
        self.network = network

    def forward(self, images_BCHW: Tensor) -> None:
        if isinstance(self.network, Detector):
            self.network.forward_for_counting(padded(images_BCHW))
        else:
            self.network.coarse(images_BCHW)
