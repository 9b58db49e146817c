"""Any network may be chosen in any recipe: what the recipe says of its own network alone is left out."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fourstage.methods import list_methods
from fourstage.recipe import Resolved, list_recipes, resolve
from fourstage.run import build
from fourstage.run.task_protocol import protocol_of

OTHERS = ["smt_tiny", "unified_swin_micro", "visformer_tiny"]


def built(resolved: Resolved) -> nn.Module:
    recipe: Any = resolved.recipe
    with torch.device("meta"):
        return protocol_of(recipe).build_task(tuple(map(str, range(recipe.num_classes or 11))))


def one_of_each_kind() -> list[str]:
    """Return the first recipe of each method, family and list of what does not decay."""
    kinds: dict[tuple[Any, ...], str] = {}
    for name in list_recipes():
        recipe: Any = resolve(name).recipe
        method = getattr(recipe, "method", None)
        network = recipe.model if method is None else recipe.backbone
        kinds.setdefault((method, network.split("_")[0], recipe.optimisation.no_decay), name)
    return list(kinds.values())


@pytest.mark.parametrize("name", one_of_each_kind())
def test_every_network_takes_the_recipe(name: str) -> None:
    key = "model" if resolve(name).recipe.task == "classification" else "backbone"
    for other in OTHERS:
        maps = {"backbone_args.out_indices": None} if name.startswith("dino_") else {}  # Visformer has no finest map
        resolved = resolve(name, (), {key: other, **maps})
        task = built(resolved)
        build.optimizer(task, resolved.recipe)
        notes = build.unmatched_names(task, resolved.recipe, resolved.given)
        assert all(
            re.match(r"(no_decay|decayed_norms): this network has no (parameter|backbone norm) ", n) for n in notes
        )


def test_what_is_left_out_is_among_the_changes() -> None:
    resolved = resolve("mask_rcnn_swin_visformer_small_coco_1x", ["backbone=smt_tiny"])
    assert resolved.changes == {
        "backbone": ("swin_visformer_small", "smt_tiny"),
        "backbone_args.qk_scale_factor": (-0.5, None),
        "expect.box_map": (43.0, None),
        "expect.mask_map": (39.6, None),
    }
    same = resolve("mask_rcnn_swin_visformer_small_coco_1x", ["backbone=swin_visformer_tiny_v2"])
    assert [key for key in same.changes if not key.startswith("expect.")] == ["backbone"]


def test_a_published_number_is_not_that_of_another_network() -> None:
    name = "mask_rcnn_swin_tiny_coco_1x"
    assert resolve(name, ["lr=1e-3"]).recipe.expect
    assert not resolve(name, ["backbone=smt_tiny"]).recipe.expect
    assert not resolve(name, ["method=cascade_mask_rcnn"]).recipe.expect
    assert not resolve("swin_tiny_in1k", ["model=smt_tiny"]).recipe.expect
    assert resolve(name, ["backbone=smt_tiny", "expect.box_map=46.0"]).recipe.expect["box_map"] == 46.0


@pytest.mark.parametrize("other", ["timm/resnet18", "of_my_own"])
def test_networks_that_are_not_ours(other: str) -> None:
    """Those of timm take what all networks take; those of a file that is imported later may take anything."""
    recipe: Any = resolve("mask_rcnn_swin_visformer_small_coco_1x", [f"backbone={other}"]).recipe
    assert set(recipe.backbone_args) == {"drop_path_rate"} | ({"qk_scale_factor"} if other == "of_my_own" else set())


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ("backbone_args.qk_scale_factor=-1", "smt_tiny has no argument qk_scale_factor"),
        ("backbone_args={qk_scale_factor: -1}", "smt_tiny has no argument qk_scale_factor"),
        ("no_decay=[attn.table]", "no_decay has 'attn.table', but no parameter has such a name"),
        ("decayed_norms=[stem.99]", "decayed_norms has 'stem.99', but no backbone norm has such a name"),
    ],
)
def test_what_the_user_typed_is_not_left_out(change: str, wanted: str) -> None:
    resolved = resolve("mask_rcnn_swin_visformer_small_coco_1x", ["backbone=smt_tiny", change])
    with pytest.raises(ValueError, match=wanted):
        build.unmatched_names(built(resolved), resolved.recipe, resolved.given)


def test_a_file_may_choose_another_network_for_its_base(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("base: mask_rcnn_swin_visformer_small_coco_1x\nbackbone: smt_tiny\n")
    recipe: Any = resolve(file).recipe
    assert recipe.backbone_args == {"drop_path_rate": 0.1}
    file.write_text(f"{file.read_text()}backbone_args: {{qk_scale_factor: -1}}\n")
    with pytest.raises(ValueError, match="smt_tiny has no argument qk_scale_factor"):
        built(resolve(file))


def test_what_a_file_leaves_out_of_its_base_is_among_the_changes(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("base: mask_rcnn_swin_visformer_small_coco_1x\nbackbone: smt_tiny\n")
    left_out = {"backbone_args.qk_scale_factor": (-0.5, None), "expect.box_map": (43.0, None)}
    assert resolve(file).changes == left_out | {"expect.mask_map": (39.6, None)}
    assert resolve(file, ["expect.box_map=1"]).changes["expect.box_map"] == (43.0, 1.0)


OWN_NETWORK = """
import fourstage


@fourstage.register
def {name}(drop_path_rate: float = 0.0): ...
"""


def test_a_network_of_ones_own_takes_what_it_has(tmp_path: Path) -> None:
    name = "mask_rcnn_swin_visformer_small_coco_1x"
    code, recipe = tmp_path / "code.py", tmp_path / "mine.yaml"
    code.write_text(OWN_NETWORK.format(name="of_a_file_that_is_imported"))
    recipe.write_text(f"base: {name}\nbackbone: of_a_file_that_is_imported\n")
    typed: Any = resolve(name, ["backbone=of_a_file_that_is_imported"], imports=[code]).recipe
    beside: Any = resolve(recipe, imports=[code]).recipe
    recipe.write_text(f"{recipe.read_text()}imports: code.py\n")
    named: Any = resolve(recipe).recipe
    assert typed.backbone_args == beside.backbone_args == named.backbone_args == {"drop_path_rate": 0.1}


def test_a_recipe_of_a_run_does_not_run_its_files(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text("raise SystemError")
    (tmp_path / "log.jsonl").touch()
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "base: mask_rcnn_swin_visformer_small_coco_1x\nbackbone: of_a_file_that_does_not_run\nimports: code.py\n"
    )
    with pytest.raises(ValueError, match="if you trust them"):
        resolve(recipe)


def test_a_section_in_an_argument_of_the_user_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "base: mask_rcnn_swin_visformer_small_coco_1x\nbackbone: smt_tiny\nbackbone_args: {mixer: {kernel: 3}}\n"
    )
    with pytest.raises(ValueError, match="smt_tiny has no argument mixer"):
        built(resolve(file))


def test_another_name_of_the_same_network_is_no_other_network() -> None:
    resolved = resolve("mask_rcnn_swin_tiny_coco_1x", ["backbone=swin_tiny_patch4_window7_224"])
    assert set(resolved.changes) == {"backbone"}


def one_of_each_method() -> list[str]:
    """Return the first recipe of each method and its arguments."""
    first: dict[str, str] = {}
    for name in list_recipes():
        recipe: Any = resolve(name).recipe
        if recipe.task != "classification":
            first.setdefault(f"{recipe.method} {recipe.method_args}", name)
    return list(first.values())


@pytest.mark.parametrize("name", one_of_each_method())
def test_every_method_takes_the_recipe(name: str) -> None:
    for method in list_methods(resolve(name).recipe.task):
        maps = {} if method == "dino" else {"backbone_args.out_indices": None}
        built(resolve(name, (), {"method": method, **maps}))


def test_arguments_of_another_method_are_left_out_and_those_of_the_user_kept() -> None:
    resolved = resolve("digit_scenes_sparse_rcnn", ["method=cascade_mask_rcnn"])
    assert resolved.changes["method_args.stages"] == (3, None)  # a number there, and a list of stages here
    assert "method_args.channels" not in resolved.changes
    with pytest.raises(ValueError, match="retinanet has no argument 'regions'"):
        built(resolve("digit_scenes_mask_rcnn", ["method=retinanet", "method_args.regions=8"]))


def test_a_detector_of_four_maps_says_which_maps_there_are() -> None:
    with pytest.raises(ValueError, match=r"out_indices=\[0, 1, 2\] are all"):
        built(resolve("dino_swin_tiny_coco_4scale_12ep", ["backbone=visformer_tiny"]))
