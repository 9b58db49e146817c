"""Dense recipes decay what the configurations of the sources decay, which choose parameters by the original names."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from golden.fill import read_manifest
from torch import nn

from fourstage.recipe import list_recipes, resolve
from fourstage.run import build
from fourstage.run.task_protocol import protocol_of
from fourstage.weights import smt, swin, unified, visformer
from fourstage.weights.rules import Rule, matching_rules

FOLDER = Path(__file__).parents[1] / "golden" / "backbones"
THREE = ("absolute_pos_embed", "relative_position_bias_table", "norm")  # keys of the configurations, with decay_mult=0
CASES: dict[str, tuple[str, str, Sequence[Rule]]] = {  # golden file, recipe, names
    "smt/smt_t_det_backbone": ("mask_rcnn_smt_small_coco_1x", "smt_tiny", smt.RULES),
    "swin/swin_tiny_det_backbone": ("mask_rcnn_swin_tiny_coco_1x", "swin_tiny", swin.RULES),
    "visformer/swin_visformer_tiny_v2_det_backbone": (
        "mask_rcnn_swin_visformer_small_v2_coco_1x",
        "swin_visformer_tiny_v2",
        visformer.SWIN_RULES,
    ),
    **{
        f"stm/unified_{mixer}_micro_det_backbone": (
            f"mask_rcnn_unified_{mixer}_micro_coco_1x",
            f"unified_{mixer}_micro",
            unified.RULES,
        )
        for mixer in ("convnext", "dcn_v3", "halo", "pvt", "swin")
    },
}


def task_and_groups(name: str, **changes: object) -> tuple[nn.Module, dict[str, float]]:
    """Return a recipe's task, without memory, and the weight decay of each of its parameters."""
    recipe: Any = resolve(name, (), changes).recipe
    with torch.device("meta"):
        task = protocol_of(recipe).build_task(tuple(map(str, range(recipe.num_classes))))
    groups = build.optimizer(task, recipe).param_groups
    return task, {name: group["weight_decay"] for group in groups for name in group["names"]}


@pytest.mark.parametrize("file", CASES)
def test_a_backbone_decays_where_the_configuration_does(file: str) -> None:
    recipe, backbone, rules = CASES[file]
    wanted: dict[str, bool] = {}
    for key in read_manifest(FOLDER / f"{file}.json.gz")["params"]:
        [(rule, match)] = matching_rules(rules, key)
        wanted[f"network.backbone.{rule.ours(match)}"] = not any(word in key for word in THREE)
    _, decay = task_and_groups(recipe, backbone=backbone)
    assert {name: value > 0 for name, value in decay.items() if ".backbone." in name} == wanted
    assert all(value > 0 for name, value in decay.items() if ".backbone." not in name)


def with_rules() -> list[str]:
    """Return the dense recipes whose source has a configuration in which some parameters do not decay."""
    found = ("mask_rcnn_*_coco_*", "cascade_mask_rcnn_swin*", "upernet_swin*")
    return [name for one in found for name in list_recipes(one) if not resolve(name).recipe.reconstructed]


@pytest.mark.parametrize("name", with_rules())
def test_recipes_of_one_source_spare_the_same_parameters(name: str) -> None:
    """All recipes over one family and from one source have the same rules, whatever the size and the schedule."""
    recipe: Any = resolve(name).recipe
    o = recipe.optimisation
    rules = {
        "swin_visformer": (("attn.table",), ("stem.1",)),
        "swin": (("attn.table",), ()),
        "smt": ((), ("stem.1", "attn.norm")),
        "unified_swin": (("mixer.table",), ("stem", "embed.1")),
        "unified": ((), ("stem", "embed.1")),
    }
    family = next(family for family in rules if recipe.backbone.startswith(family))
    assert not o.decay_backbone_norms
    assert (o.no_decay, o.decayed_norms) == rules[family]


@pytest.mark.parametrize("name", ["dino_swin_tiny_coco_4scale_12ep", "dino_smt_small_coco_4scale"])
def test_no_norm_of_dino_decays(name: str) -> None:
    """In detrex a norm is known by its class."""
    task, decay = task_and_groups(name)
    norms = {
        f"{path}.{own}"
        for path, module in task.named_modules()
        if "norm" in type(module).__name__.lower()
        for own, _ in module.named_parameters(recurse=False)
    }
    assert {parameter for parameter, value in decay.items() if value == 0} == norms


def test_decayed_norms_come_before_a_word_of_no_decay_that_is_for_heads() -> None:
    _, decay = task_and_groups("dino_smt_small_coco_4scale", **{"optimisation.decayed_norms": ("attn.norm", "stem.1")})
    inside = {name: value for name, value in decay.items() if ".attn.norm." in name or ".stem.1." in name}
    assert len(inside) == 2 * 16 + 2  # of all modulations, and of the stem
    assert all(value > 0 for value in inside.values())
    assert decay["network.backbone.stages.0.blocks.0.norm1.weight"] == 0
    assert not any(value for name, value in decay.items() if "norm" in name and ".backbone." not in name)


def test_another_backbone_takes_the_recipe() -> None:
    """Which has no norms of the names that the recipe's own backbone lets decay."""
    _, decay = task_and_groups("mask_rcnn_smt_small_coco_1x", backbone="swin_tiny")
    norms = {name: value for name, value in decay.items() if ".backbone." in name and "norm" in name}
    assert norms
    assert not any(norms.values())
