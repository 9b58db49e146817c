"""Configurations of the sources give the recipes of the package, field by field."""

from pathlib import Path
from typing import Any

import pytest
import torch
from weights.openmmlab.config_files import CASCADE_TRAIN, write
from weights.openmmlab.source_configs import (
    BOXES,
    CONFIGS,
    DET,
    ENGINE_DINO,
    ENGINE_MASK_RCNN,
    ENGINE_UPERNET,
    NORM,
    adamw,
    smt,
)

from fourstage.cli import main
from fourstage.recipe import difference, resolve
from fourstage.run import build
from fourstage.run.import_config import imported_recipe, write_recipe
from fourstage.run.task_protocol import protocol_of

OWN = ("weight", "bias")

CHECKPOINTS = {
    "checkpoint_every": ("16000it", "8000it")
}  # ours are also what a run continues from; no effect on results
LIMITS = {"evaluation.limits": ([100, 300, 1000], [1, 10, 100])}  # MMDetection's evaluator counts up to 300 per image
WARM_UP = {  # MMEngine's warm-up has the peak in its last step, and the curve begins behind it
    "optimisation.schedule_spans": ("rest", "whole"),
    "optimisation.warmup_inclusive": (True, False),
}
DIFFERENT: dict[str, dict[str, Any]] = {  # recipe -> what is different in the configuration, for the reasons above
    **{name: CHECKPOINTS for name in CONFIGS if name.startswith("upernet")},
    # 300 proposals are the method's default, which the recipe writes out
    "sparse_rcnn_smt_small_coco_3x": {**LIMITS, "method_args.proposals": (None, 300)},
}
ENGINE: list[tuple[str, str, dict[str, Any]]] = [
    ("mask_rcnn_swin_tiny_coco_1x", ENGINE_MASK_RCNN, WARM_UP),
    (
        "upernet_swin_tiny_ade20k_160k",
        ENGINE_UPERNET,
        # version 1 of MMSegmentation multiplies the size of the image by the ratios of its multi-scale test
        {**WARM_UP, **CHECKPOINTS, "evaluation.ratios_of": ("image", "scale")},
    ),
    (
        "dino_swin_tiny_coco_4scale_12ep",
        ENGINE_DINO,
        {
            **LIMITS,
            "evaluate_every": ("7500it", "1ep"),  # an epoch is 7,392 steps; detrex evaluates by steps
            "workers": (None, 4),  # no effect on results
        },
    ),
]


def resolved(folder: Path, text: str, name: str) -> dict[str, tuple[Any, Any]]:
    """Import a configuration, write the recipe, and return how the recipe of the file differs from a built-in one."""
    imported = imported_recipe(write(folder, text))
    path = write_recipe(imported, folder / "mine.yaml")
    found = resolve(path).recipe
    assert not difference(found, imported.recipe)
    return difference(found, resolve(name).recipe, ignore=frozenset({"name", "expect", "reconstructed"}))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_of_version_2_gives_its_recipe(name: str, tmp_path: Path) -> None:
    assert resolved(tmp_path, CONFIGS[name], name) == DIFFERENT.get(name, {})


@pytest.mark.parametrize(("name", "text", "different"), ENGINE, ids=[name for name, *_ in ENGINE])
def test_a_configuration_of_version_3_gives_its_recipe(
    name: str, text: str, different: dict[str, Any], tmp_path: Path
) -> None:
    found = resolved(tmp_path, text, name)
    assert {key: value for key, value in found.items() if key != "workers"} == {
        key: value for key, value in different.items() if key != "workers"
    }


def test_the_rule_for_norms_of_dino_is_noted(tmp_path: Path) -> None:
    imported = imported_recipe(write(tmp_path, ENGINE_DINO))
    [line] = [one for one in imported.left_out if "norms of the neck" in one]
    assert "custom_keys.norm.decay_mult = 0.0" in line


def test_a_rule_for_norms_by_their_class_reaches_those_of_other_names_too(tmp_path: Path) -> None:
    text = CONFIGS["mask_rcnn_smt_small_coco_1x"]
    by_name = imported_recipe(write(tmp_path, text)).recipe.optimisation
    changed = text.replace("paramwise_cfg=dict(", "paramwise_cfg=dict(norm_decay_mult=0., ")
    assert changed != text
    by_class = imported_recipe(write(tmp_path, changed)).recipe.optimisation
    assert (by_name.decayed_norms, by_class.decayed_norms) == (("stem.1", "attn.norm"), ())
    assert by_name.decay_backbone_norms is by_class.decay_backbone_norms is False


def decaying(folder: Path, text: str) -> dict[str, bool]:
    """Return the names of a configuration's parameters, and whether they decay."""
    recipe = imported_recipe(write(folder, text)).recipe
    with torch.device("meta"):
        task = protocol_of(recipe).build_task(tuple(map(str, range(80))))
    groups = build.optimizer(task, recipe).param_groups
    return {name: group["weight_decay"] > 0 for group in groups for name in group["names"]}


def test_the_key_for_norms_spares_those_of_a_dyhead_and_no_group_norm_of_atss(tmp_path: Path) -> None:
    neck = "dict(type='FPN', in_channels=[64, 128, 256, 512], out_channels=256, start_level=1, num_outs=5, "
    neck += "add_extra_convs='on_output'), dict(type='DyHead', in_channels=256, out_channels=256, num_blocks=1)"
    decays = decaying(
        tmp_path, smt("atss", BOXES, f"model = dict(neck=[{neck}])\n", adamw("0.0001", keys=NORM), ms=False)
    )
    assert {name: decays[name] for name in decays if "norm" in name and "backbone" not in name} == {
        **{f"network.neck.1.blocks.0.{one}.norm.{own}": False for one in ("coarser", "same", "finer") for own in OWN},
        **{
            f"network.dense_head.{tower}_tower.{i}.norm.{own}": True
            for tower in ("class", "box")
            for i in range(4)
            for own in OWN
        },
    }


def test_norms_by_their_class_are_spared_whatever_their_names(tmp_path: Path) -> None:
    text = smt("mask_rcnn", DET, "", adamw("0.0002", keys=NORM, delete=False), ms=False)
    decays = decaying(tmp_path, text.replace("custom_keys={'norm': dict(decay_mult=0.)}", "norm_decay_mult=0.0"))
    assert not decays["network.backbone.stem.1.weight"]
    assert not decays["network.backbone.stages.0.blocks.0.attn.norm.bias"]
    assert decays["network.backbone.stem.0.weight"]


def test_what_has_no_counterpart_is_listed(tmp_path: Path) -> None:
    text = CONFIGS["mask_rcnn_smt_base_coco_3x"] + (
        "custom_hooks = [dict(type='MyHook', power=3)]\n"
        "import os\n"
        "data['train']['seed'] = os.environ['SEED']\n"
        "model['train_cfg'] = dict(rpn=dict(assigner=dict(pos_iou_thr=0.6)))\n"
    )
    lines = imported_recipe(write(tmp_path, text)).left_out
    assert "model.backbone.groups_mode = 1" in lines
    assert "optimizer.momentum = 0.9" in lines
    assert "custom_hooks.0.power = 3" in lines
    assert "model.train_cfg.rpn.assigner.pos_iou_thr = 0.6" in lines
    assert any(line.startswith("data.train.seed = os.environ['SEED']") for line in lines)
    assert "code that was not run: config.py, line" in " ".join(lines)
    assert not any(line.startswith("model.rpn_head") for line in lines)  # all of that is as here


def test_another_lower_overlap_of_a_cascade_is_listed(tmp_path: Path) -> None:
    stages = ", ".join(CASCADE_TRAIN.replace("IOU", one) for one in ("0.5", "0.6", "0.7"))
    changed = stages.replace("neg_iou_thr=0.6", "neg_iou_thr=0.55")
    assert changed != stages
    text = CONFIGS["cascade_mask_rcnn_swin_tiny_coco_1x_ms"]
    text = text.replace("model = dict(", f"model = dict(train_cfg=dict(rcnn=[{changed}]), ")
    assert (
        "model.train_cfg.rcnn.1.assigner.neg_iou_thr = 0.55  (0.6 here)"
        in imported_recipe(write(tmp_path, text)).left_out
    )


def test_a_value_that_is_needed_and_is_code_is_refused(tmp_path: Path) -> None:
    text = CONFIGS["mask_rcnn_smt_small_coco_1x"] + "lr_config = dict(step=[int(x) for x in open('/etc/passwd')])\n"
    with pytest.raises(ValueError, match=r"lr_config\.step is code, .*open\('/etc/passwd'\).* write its value instead"):
        imported_recipe(write(tmp_path, text))


@pytest.mark.parametrize("count", [2, 4])
def test_a_cascade_that_trains_other_stages_is_refused(count: int, tmp_path: Path) -> None:
    """The first three would otherwise be taken without a word."""
    stages = ", ".join([CASCADE_TRAIN.replace("IOU", "0.5")] * count)
    text = CONFIGS["cascade_mask_rcnn_swin_tiny_coco_1x_ms"]
    assert text.count("model = dict(") == 1
    changed = text.replace("model = dict(", f"model = dict(train_cfg=dict(rcnn=[{stages}]), ")
    with pytest.raises(ValueError, match=r"another number of stages in bbox_head, train_cfg .* than three"):
        imported_recipe(write(tmp_path, changed))


def test_the_command_writes_a_recipe_that_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write(tmp_path, CONFIGS["upernet_swin_tiny_ade20k_160k"])
    out = tmp_path / "mine.yaml"
    assert main(["import-config", str(config), "--out", str(out), "--gpus", "4"]) == 0
    printed = capsys.readouterr().out
    assert "no counterpart: data.workers_per_gpu = 4  (as many as the cores allow)" in printed
    assert resolve(out).recipe.optimisation.batch_size == 8
    assert main(["import-config", str(config), "--out", str(out)]) == 2
    assert "--force to replace it" in capsys.readouterr().err
    assert main(["import-config", str(config)]) == 0
    assert "base: upernet_swin_tiny_ade20k_160k" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["atss_smt_small_coco_3x", "semantic_fpn_scalable_vit_small_ade20k_80k"])
def test_a_recipe_that_is_near_to_no_other_one_is_read_as_one_of_its_task(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fourstage.run.import_config.named_recipes", list)
    imported = imported_recipe(write(tmp_path, CONFIGS[name]))
    assert imported.base is None
    assert not difference(resolve(write_recipe(imported, tmp_path / "mine.yaml")).recipe, imported.recipe)


SMALL = {
    "mask_rcnn_unified_convnext_micro_coco_1x": (1333, 800),
    "retinanet_smt_small_coco_3x": (1333, 800),
    "upernet_smt_small_ade20k_160k": None,
}


@pytest.mark.parametrize("name", SMALL)
def test_an_imported_recipe_starts_a_training(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = write_recipe(imported_recipe(write(tmp_path, CONFIGS[name])), tmp_path / "mine.yaml")
    words = ["batch_size=2", "warmup=0it", "num_classes=null", "workers=0", "device=cpu", "sync_batchnorm=false"]
    if SMALL[name]:
        words += ["augmentation.scale=[128,128]", "augmentation.policy=resize", "evaluation.scale=[128,128]"]
    else:
        words += ["augmentation.scale=null", "augmentation.crop=[128,128]", "evaluation.scale=null"]
        words += ["length=20it", "evaluate_every=null"]
    assert main(["train", str(out), "--data", "digit_scenes", "--dry-run", *words]) == 0, capsys.readouterr().err
