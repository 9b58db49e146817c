"""Layers of parameters, and frozen stages, which stay as they are, their norms too."""

from typing import Any

import pytest
import torch
from tiny_networks import tiny
from torch import nn

import fourstage
from fourstage.engine.training import set_training_mode
from fourstage.run.layers import freeze, layers_of
from fourstage.tasks.classification import Classification


def test_frozen_stages_keep_weights_and_statistics() -> None:
    task = Classification(tiny("visformer", num_classes=4, drop_path_rate=0.5), ["a", "b", "c", "d"])
    frozen = freeze(task, 1)
    assert {name.split(".")[1] for name in frozen} == {"stem", "stages"}
    assert not any(name.startswith(("network.stages.1", "network.stages.2", "network.head")) for name in frozen)
    set_training_mode(task)
    network: Any = task.network
    before = {name: value.clone() for name, value in network.stages[0].state_dict().items()}
    images = torch.randn(4, 3, 64, 64)
    assert torch.equal(network.stages[0](network.stem(images)), network.stages[0](network.stem(images)))
    network(images).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in network.stages[0].state_dict().items())
    norms = [module for module in network.stages[1].modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert all(norm.training for norm in norms)


def test_too_many_stages_get_a_sentence() -> None:
    task = Classification(tiny("visformer", num_classes=4), ["a", "b", "c", "d"])
    with pytest.raises(ValueError, match="frozen_stages=9, but the network has 3 stages"):
        freeze(task, 9)
    with pytest.raises(ValueError, match="group_matcher"):
        layers_of(nn.Linear(2, 2), "blocks")


def test_groups_of_convnext_rise_from_the_image_to_the_head_however_deep_the_third_stage_is() -> None:
    with torch.device("meta"):
        network = fourstage.create_model("unified_pvt_base", num_classes=2)  # 45 blocks in the third stage
    layers = layers_of(Classification(network, ["a", "b"]), "convnext")
    order = ["stem.0", *(f"stages.2.blocks.{i}.norm1" for i in (0, 26, 27, 44)), "stages.3.blocks.0.norm1", "head"]
    assert [layers[f"network.{name}.weight"] for name in order] == [0, 3, 11, 11, 11, 12, 13]
