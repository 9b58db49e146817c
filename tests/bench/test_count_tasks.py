"""What detectors and segmentors cost: by hand, by published tables, and by each source's own way to count."""

import json
from functools import cache
from math import ceil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fourstage.api import create_detector, create_segmentor
from fourstage.backbones.mixers.scalable import InteractiveWindowAttention
from fourstage.bench.count import Count, count_module
from fourstage.bench.count_tasks import count_network, count_recipe, network_of_recipe, published_size
from fourstage.bench.networks import classifier_of_recipe
from fourstage.recipe import list_recipes

PUBLISHED = json.loads((Path(__file__).parents[1] / "golden" / "published_numbers.json").read_text())
ROWS = [
    row
    for row in PUBLISHED["detection"] + PUBLISHED["segmentation"]
    if row.get("gflops") and row["method"] != "dino"  # SMT's 309 G fit no way to count: 280 or 359 here
]
MISPRINTED = {367: 267}  # as the note beside it has it


def recipe_of(row: dict[str, Any]) -> str:
    """A recipe of the row's network, of its schedule if there is one, as a schedule may have its own proposals."""
    backbone = "swin_visformer_small" if row["backbone"] == "visformer_small" else row["backbone"]
    data = "ade20k" if "ADE20K" in row["dataset"] else "coco"
    names = sorted(list_recipes(f"{row['method']}_{backbone}_{data}_*"))
    return next((name for name in names if name.endswith(f"_{row['schedule']}")), names[0])


@cache
def cost_of(recipe: str) -> Count:
    return count_recipe(recipe)


def named(row: dict[str, Any]) -> str:
    return f"{row['method']}-{row['backbone']}-{row['schedule'].replace(' ', '')}"


@pytest.mark.parametrize("row", ROWS, ids=named)
def test_a_recipe_costs_what_its_source_publishes(row: dict[str, Any]) -> None:
    """It rounds to the published digits or lies within 1 %.

    SMT and ScalableViT count modules, which leaves out the products of attention. ScalableViT fills maps up to whole
    windows before it makes queries, keys and values; ours does that after.
    """
    cost, published = cost_of(recipe_of(row)), MISPRINTED.get(row["gflops"], row["gflops"])
    macs = cost.full_macs
    if row["source"] in ("SMT", "ScalableViT"):
        macs = cost.module_macs
    if row["source"] == "ScalableViT":
        macs += filled_up(recipe_of(row))
    assert round(macs / 1e9) == published or macs / 1e9 == pytest.approx(published, rel=0.01)


def filled_up(recipe: str) -> int:
    """MACs of linear layers for the cells that fill maps up to whole windows."""
    with torch.device("meta"):
        network = network_of_recipe(recipe)
    macs = 0
    sizes = published_size(network)
    backbone: Any = network.backbone
    for level, stage in zip(backbone.levels, backbone.stages, strict=True):
        height, width = (side // level.stride for side in sizes)
        for module in stage.modules():
            if isinstance(module, InteractiveWindowAttention):
                cells = ceil(height / module.window) * ceil(width / module.window) * module.window**2
                macs += (cells - height * width) * 3 * level.channels**2
    return macs


KNOWN = [  # method, its arguments, backbone, (H, W); million parameters; G MACs of modules, with attention
    ("mask_rcnn", {}, "swin_tiny", (1280, 800), 47.79, 263.8, 266.9),
    ("cascade_mask_rcnn", {"heads": "4conv1fc"}, "swin_tiny", (1280, 800), 85.63, 742.7, 745.8),
    ("cascade_mask_rcnn", {"heads": "4conv1fc"}, "timm/resnet50", (1280, 800), 82.23, 739.0, 739.0),
    ("mask_rcnn", {}, "timm/resnet50", (1280, 800), 44.40, 260.1, 260.1),
    ("retinanet", {}, "swin_tiny", (1280, 800), 38.46, 244.8, 247.9),
    ("upernet", {}, "swin_tiny", (512, 2048), 59.94, 941.7, 945.0),
    ("upernet", {}, "swin_tiny", (512, 512), 59.94, 236.1, 237.0),
    ("semantic_fpn", {}, "timm/resnet50c", (512, 512), 28.51, 45.8, 45.8),
]


@pytest.mark.parametrize("row", KNOWN, ids=lambda row: f"{row[0]}-{row[2]}")
def test_modules_and_attention_as_openmmlabs_counter_has_them(row: tuple[Any, ...]) -> None:
    """With a Swin 0.4 % less: its last linear layer is spared the cells that fill windows up."""
    method, arguments, backbone, size, millions, modules, full = row
    cost = count_network(on_meta(method, backbone, **arguments), size)
    near, digits = (0.004 if "swin" in backbone else 0.0), 0.055  # of a table with one digit
    assert cost.parameters / 1e6 == pytest.approx(millions, abs=0.006)
    assert cost.module_macs / 1e9 == pytest.approx(modules, rel=near, abs=digits)
    assert cost.full_macs / 1e9 == pytest.approx(full, rel=near, abs=digits)
    assert cost.size == size


def on_meta(method: str, backbone: str, **arguments: Any) -> nn.Module:
    segments = method in ("upernet", "semantic_fpn")
    with torch.device("meta"):
        build = create_segmentor if segments else create_detector
        return build(method, backbone, 150 if segments else 80, **arguments)


def test_dino_costs_what_its_paper_says() -> None:
    """47 M and 279 G over a ResNet-50. The original computes a box for every cell, ours for chosen ones."""
    cost = count_network(on_meta("dino", "timm/resnet50", neck_bias=True), (1280, 800))
    cells = 160 * 100 + 80 * 50 + 40 * 25 + 20 * 13 - 900
    every_box = cells * (2 * 256 * 256 + 256 * 4)
    assert cost.parameters / 1e6 == pytest.approx(47.7, abs=0.1)
    assert (cost.full_macs + every_box) / 1e9 == pytest.approx(279, rel=0.01)


def test_regions_go_through_every_head() -> None:
    """One mask head is 1,000 / 100 of nothing but itself: masks off costs what it did."""
    small = {"channels": 8, "fc_channels": 16, "mask_channels": 8}
    with_masks = count_network(on_meta("mask_rcnn", "visformer_digits", **small), (64, 64))
    without = count_network(on_meta("mask_rcnn", "visformer_digits", masks=False, **small), (64, 64))
    mask_head = 100 * (4 * 14**2 * 8 * 8 * 9 + 14**2 * 8 * 8 * 4 + 28**2 * 8 * 80)
    assert with_masks.macs - without.macs == mask_head
    cascade = {"channels": 8, "fc_channels": 16, "masks": False}
    three = count_network(on_meta("cascade_mask_rcnn", "visformer_digits", **cascade), (64, 64))
    box_head = 1000 * (8 * 49 * 16 + 16 * 16 + 16 * 81)
    assert three.macs == without.macs - 1000 * 16 * 320 + 2 * box_head + 3 * 1000 * 16 * 4


class Elements(nn.Module):
    """What is no product, on a (1, 8, 6, 6) image."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layer = {
            "biases": nn.Conv2d(8, 4, 1),
            "biases, transposed": nn.ConvTranspose2d(8, 4, 2, stride=2),
            "no bias": nn.Conv2d(8, 4, 1, bias=False),
            "linear": nn.Linear(6, 3),
            "batch norm": nn.BatchNorm2d(8),
            "group norm": nn.GroupNorm(2, 8),
            "layer norm": nn.LayerNorm(6),
            "relu": nn.ReLU(inplace=True),
            "gelu": nn.GELU(),
            "adaptive pool": nn.AdaptiveAvgPool2d(2),
        }[kind]

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        return self.layer(x_BCHW)


BY_HAND = {
    "biases": 4 * 36,
    "biases, transposed": 4 * 144,
    "no bias": 0,
    "linear": 0,
    "batch norm": 2 * 8 * 36,
    "group norm": 2 * 8 * 36,
    "layer norm": 2 * 8 * 36,
    "relu": 8 * 36,
    "gelu": 0,
    "adaptive pool": 8 * 36,
}


@pytest.mark.parametrize("kind", BY_HAND)
def test_what_modules_do_beside_products(kind: str) -> None:
    cost = count_module(Elements(kind), (8, 6, 6))
    assert cost.element_macs == BY_HAND[kind]
    assert (cost.module_macs, cost.full_macs) == (cost.layer_macs + BY_HAND[kind], cost.macs + BY_HAND[kind])


def test_counting_needs_a_detector_or_a_segmentor() -> None:
    with pytest.raises(ValueError, match="needs a detector or a segmentor; got Conv2d"):
        count_network(nn.Conv2d(3, 3, 1), (64, 64))
    [classifier] = list_recipes("smt_tiny_in1k")
    with pytest.raises(ValueError, match="trains a classifier"):
        count_recipe(classifier)


def test_published_costs_are_for_one_size_of_image() -> None:
    assert cost_of("mask_rcnn_swin_tiny_coco_1x").size == (1280, 800)
    assert cost_of("upernet_swin_tiny_ade20k_160k").size == (512, 2048)
    assert count_recipe("upernet_swin_tiny_ade20k_160k", (64, 64)).size == (64, 64)


def test_what_follows_from_the_data_is_left_to_the_network_and_the_rest_is_kept() -> None:
    by_data: Any = network_of_recipe("digit_scenes_upernet")
    assert not by_data.decoder.classify.bias.any()
    given: Any = network_of_recipe("digit_scenes_dino")
    assert given.queries == 100


@pytest.mark.parametrize(
    ("recipe", "classes"),
    [
        ("digit_scenes_upernet", 11),  # the digits and the background
        ("digit_scenes_semantic_fpn", 11),
        ("digit_scenes_dino", 10),
        ("upernet_swin_tiny_ade20k_160k", 150),
        ("mask_rcnn_swin_tiny_coco_1x", 80),
    ],
)
def test_networks_have_the_classes_of_the_recipe_or_of_its_data(recipe: str, classes: int) -> None:
    with torch.device("meta"):
        network: Any = network_of_recipe(recipe)
    assert network.num_classes == classes


def test_a_classifier_of_digits_has_ten_classes(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("base: digits_visformer\nmodel: swin_tiny\nmodel_args: {}\n")
    with torch.device("meta"):
        network: Any = classifier_of_recipe(str(tmp_path / "mine.yaml"), (224, 224), dense=False)
    assert network.num_classes == 10
