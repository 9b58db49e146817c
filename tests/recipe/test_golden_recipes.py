"""Learning rates and decay groups are those that the original code printed, by the recipes as they stand."""

import gzip
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tiny_networks import SCALABLE_VIT, SMT, SWIN, SWIN_VISFORMER
from torch import nn

from fourstage.backbones import scalablevit, smt, swin, swin_visformer, unified
from fourstage.recipe import Recipe, resolve
from fourstage.run import build
from fourstage.run.layers import layers_of
from fourstage.tasks.classification import Classification
from fourstage.weights import scalablevit as scalablevit_keys
from fourstage.weights import smt as smt_keys
from fourstage.weights import swin as swin_keys
from fourstage.weights import unified as unified_keys
from fourstage.weights import visformer as visformer_keys
from fourstage.weights.rules import Rule, matching_rules

FOLDER = Path(__file__).parents[1] / "golden" / "recipes"
TINY_UNIFIED = {"widths": (8, 16, 32, 64), "depths": (1, 1, 2, 1)}


@cache
def golden(source: str) -> dict[str, Any]:
    return json.loads(gzip.decompress((FOLDER / f"{source}.json.gz").read_bytes()))


def recipe(name: str, **optimisation: object) -> Recipe:
    """A recipe as it stands, with the lengths and rates of the toy that the original code was asked for."""
    return resolve(name, (), {f"optimisation.{key}": value for key, value in optimisation.items()}).recipe


@pytest.mark.parametrize(
    ("source", "key", "name", "steps_per_epoch"),
    [
        ("scalable", "lr_deit_style_timm0.3.2_30ep_warm5", "scalable_vit_small_in1k", 7),
        ("visformer", "lr_deit_style_timm0.6.7_30ep_warm5", "visformer_small_in1k", 7),
        ("smt", "lr_swin_style_30ep_10it_warm5_prefix", "smt_tiny_in1k", 10),
        ("smt", "lr_swin_style_30ep_10it_warm5_prefix", "swin_tiny_in1k", 10),
        ("stm", "lr_stm_cosine_30ep_10it_warm5", "unified_halo_tiny_in1k", 10),
    ],
)
def test_rates_are_those_of_the_original_loop(source: str, key: str, name: str, steps_per_epoch: int) -> None:
    wanted = golden(source)[key]
    toy = {"length": "30ep", "warmup": "5ep", "lr": wanted["base"], "min_lr": wanted["min"]}
    schedule = build.schedule(recipe(name, **toy, warmup_lr=wanted["warmup"]), steps_per_epoch)
    every = 30 * steps_per_epoch // len(wanted["lr"])  # the DeiT loops print one rate an epoch
    rates = [schedule.lr(step) for step in range(30 * steps_per_epoch)]
    assert rates[::every] == pytest.approx(wanted["lr"], rel=1e-9)
    assert all(len(set(rates[i : i + every])) == 1 for i in range(0, len(rates), every))


def test_weight_decay_rises_as_in_the_original_loop() -> None:
    wanted = golden("stm")["wd_stm_cosine_0.05_to_0.2_30ep_10it"]["v"]
    decay = build.weight_decay(recipe("unified_halo_tiny_in1k", weight_decay_end=0.2), 300)
    assert decay is not None
    assert [decay(step) for step in range(300)] == pytest.approx(wanted, rel=1e-9)


def tiny_unified(name: str) -> nn.Module:
    design = unified.DESIGNS[f"unified_{name}_micro"]
    return unified.classifier(replace(design, **TINY_UNIFIED, heads=(1, 2, 4, 8)))


def tiny_scalable() -> nn.Module:
    return scalablevit.classifier(replace(SCALABLE_VIT, depths=(2, 2, 2, 2), hidden=16))


def tiny_smt() -> nn.Module:
    return smt.classifier(replace(SMT, depths=(1, 1, 2, 1)), init_values=1e-4)


def tiny_swin() -> nn.Module:
    return swin.classifier(replace(SWIN, depths=(2, 2, 2, 2)), ape=True)


def tiny_swin_visformer() -> nn.Module:
    return swin_visformer.classifier(replace(SWIN_VISFORMER, depths=(1, 1, 2, 2)))


GROUPS: list[tuple[str, str, str, Callable[[], nn.Module], Sequence[Rule]]] = [
    ("scalable", "scalablevit", "scalable_vit_small_in1k", tiny_scalable, scalablevit_keys.RULES),
    ("smt", "smt", "smt_tiny_in1k", tiny_smt, smt_keys.RULES),
    ("smt", "swin", "swin_tiny_in1k", tiny_swin, swin_keys.RULES),
    ("visformer", "swinvisformer", "swin_visformer_tiny_v2_in1k", tiny_swin_visformer, visformer_keys.SWIN_RULES),
    *(
        ("stm", f"u{name}(", f"unified_{name}_tiny_in1k", lambda name=name: tiny_unified(name), unified_keys.RULES)
        for name in ("swin", "pvt", "halo", "convnext", "dcn_v3")
    ),
]


def ours(rules: Sequence[Rule], key: str) -> str:
    [(rule, match)] = matching_rules(rules, key)
    return f"network.{rule.ours(match)}"


@pytest.mark.parametrize(
    ("source", "key", "name", "network", "rules"), GROUPS, ids=[f"{group[0]}-{group[2]}" for group in GROUPS]
)
def test_decay_groups_are_those_of_the_original_builder(
    source: str, key: str, name: str, network: Callable[[], nn.Module], rules: Sequence[Rule]
) -> None:
    [wanted] = [value for k, value in golden(source).items() if k.startswith(f"param_groups_{key}")]
    optimizer = build.optimizer(Classification(network(), ["a", "b"]), recipe(name))
    found: dict[str, set[str]] = {"decay": set(), "no_decay": set()}
    for group in optimizer.param_groups:
        assert group["weight_decay"] in (0.0, 0.05)
        found["decay" if group["weight_decay"] else "no_decay"] |= set(group["names"])
    assert found == {part: {ours(rules, key) for key in wanted[part]} for part in ("decay", "no_decay")}


def test_layers_are_the_twelve_groups_of_convnext() -> None:
    wanted = golden("stm")["layer_decay_ids_convnext_assigner"]
    found = layers_of(Classification(tiny_unified("dcn_v3"), ["a", "b"]), "convnext")
    assert found == {ours(unified_keys.RULES, key): layer for key, layer in wanted.items()}


def test_layer_decay_scales_rates_by_distance_from_the_head() -> None:
    task = Classification(tiny_unified("swin"), ["a", "b"])
    for groups, stem in (("convnext", 0.5**13), ("blocks", None)):
        optimizer = build.optimizer(task, recipe("unified_swin_tiny_in1k", layer_decay=0.5, layer_groups=groups))
        scales = {name: group["lr_scale"] for group in optimizer.param_groups for name in group["names"]}
        assert scales["network.head.weight"] == 1
        assert scales["network.stem.0.weight"] == stem or stem is None
        order = ["stem.0", "stages.0.blocks.0.norm1", "stages.2.blocks.0.norm1", "stages.3.blocks.0.norm1", "head"]
        rising = [scales[f"network.{name}.weight"] for name in order]
        assert rising == sorted(set(rising))
