"""Layers of parameters, and frozen stages, which stay as they are, their norms too."""

from typing import Any

import pytest
import torch
from tiny_networks import tiny, tiny_dense
from torch import nn

import fourstage
from fourstage.engine.training import set_training_mode
from fourstage.run.layers import freeze, layers_of, recompute
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
    last_maps = Classification(tiny_dense("visformer", out_indices=(2,)), ["a", "b"])
    with pytest.raises(ValueError, match="frozen_stages=9, but the network has 3 stages"):
        freeze(last_maps, 9)
    with pytest.raises(ValueError, match="frozen_stages=3 freezes every parameter"):
        freeze(tiny_dense("smt", out_indices=(2,)), 3)


class OneGroup(nn.Sequential):
    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        return {"stem": "^0"}


def test_settings_that_a_network_does_not_know_get_a_sentence() -> None:
    with pytest.raises(ValueError, match="group_matcher"):
        layers_of(nn.Linear(2, 2), "blocks")
    with pytest.raises(ValueError, match=r"grad_checkpointing needs a network with set_grad_checkpointing\(enable\)"):
        recompute(nn.Linear(2, 2))
    network = OneGroup(nn.Conv2d(3, 4, 3))
    assert layers_of(network, "blocks") == {"0.weight": 0, "0.bias": 0}
    with pytest.raises(ValueError, match="write layer_groups=blocks"):
        layers_of(network, "convnext")


def test_groups_of_convnext_rise_from_the_image_to_the_head_however_deep_the_third_stage_is() -> None:
    with torch.device("meta"):
        network = fourstage.create_model("unified_pvt_base", num_classes=2)  # 45 blocks in the third stage
    layers = layers_of(Classification(network, ["a", "b"]), "convnext")
    order = ["stem.0", *(f"stages.2.blocks.{i}.norm1" for i in (0, 26, 27, 44)), "stages.3.blocks.0.norm1", "head"]
    assert [layers[f"network.{name}.weight"] for name in order] == [0, 3, 11, 11, 11, 12, 13]


TIMM = ("resnet10t", "swin_tiny_patch4_window7_224", "test_vit", "test_efficientnet")


@pytest.mark.parametrize("name", TIMM)
def test_networks_of_timm_have_the_layers_of_their_classifiers(name: str) -> None:
    timm = pytest.importorskip("timm")
    from timm.models import group_parameters

    classifier = timm.create_model(name)
    theirs = group_parameters(classifier, classifier.group_matcher(), reverse=True)
    backbone: Any = fourstage.create_backbone(f"timm/{name}")
    mine = layers_of(backbone, "blocks")
    spellings = {spelling: key for key in theirs for spelling in (key, key.replace(".", "_", 1))}
    names = {
        key: spellings[key.removeprefix("model.").removeprefix("model.")] for key, _ in backbone.named_parameters()
    }
    assert mine == {key: theirs[name] for key, name in names.items()}
    listed = getattr(classifier, "no_weight_decay", set)()
    assert backbone.no_weight_decay() == {key for key, name in names.items() if name in listed}


@pytest.mark.parametrize("form", ["backbone", "classifier"])
@pytest.mark.parametrize("name", [*TIMM, "test_convnext"])
def test_recomputed_activations_of_timm_change_nothing(name: str, form: str) -> None:
    timm = pytest.importorskip("timm")
    results = []
    for enable in (False, True):
        torch.manual_seed(3)
        words = {"img_size": 64} if "swin" in name else {}
        build = (
            timm.create_model
            if form == "classifier"
            else lambda name, **k: fourstage.create_backbone(f"timm/{name}", **k)
        )
        network: Any = build(name, drop_path_rate=0.5, **words).train()
        if enable:
            recompute(nn.ModuleDict({"network": network}))
        for _ in range(2):
            out = network(torch.randn(2, 3, 64, 64))
            loss = torch.stack([x.square().mean() for x in (out if isinstance(out, list) else [out])]).sum()
            loss.backward(retain_graph=True)
            loss.backward()  # computes the blocks once more
        gradients = {f"grad {key}": p.grad for key, p in network.named_parameters() if p.grad is not None}
        results.append({**network.state_dict(), **gradients})
    assert results[0].keys() == results[1].keys()
    assert [key for key, value in results[0].items() if not torch.equal(value, results[1][key])] == []


def test_a_classifier_of_timm_that_cannot_recompute_gets_a_sentence() -> None:
    timm = pytest.importorskip("timm")
    with pytest.raises(ValueError, match="CoaT cannot recompute activations in the backward pass; leave grad_check"):
        recompute(timm.create_model("coat_tiny", img_size=32))


@pytest.mark.parametrize("name", TIMM)
def test_networks_of_timm_are_frozen_and_recomputed(name: str) -> None:
    pytest.importorskip("timm")
    backbone: Any = fourstage.create_backbone(f"timm/{name}")
    task = nn.ModuleDict({"backbone": backbone})
    frozen = freeze(task, 1)
    assert all(key.startswith("backbone.model.") for key in frozen)
    recompute(task)
    set_training_mode(task)
    torch.stack([x_BCHW.mean() for x_BCHW in backbone(torch.randn(2, 3, 64, 64))]).sum().backward()
    moved = {key for key, parameter in task.named_parameters() if parameter.grad is not None}
    assert frozen
    assert moved == {key for key, _ in task.named_parameters()} - set(frozen)
