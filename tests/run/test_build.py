"""What a recipe says reaches the objects."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fourstage.data.sample import Sample
from fourstage.engine.devices import Ranks
from fourstage.recipe import Classification as ClassificationRecipe
from fourstage.recipe import Recipe, resolve
from fourstage.run import build
from fourstage.run.folder import RunFolder
from fourstage.run.task_protocol import protocol_of
from fourstage.run.tasks.classification import ClassificationProtocol


def recipe(*changes: str) -> ClassificationRecipe:
    resolved = resolve("digits_visformer", changes).recipe
    assert isinstance(resolved, ClassificationRecipe)
    return resolved


def protocol(*changes: str) -> ClassificationProtocol:
    return ClassificationProtocol(recipe(*changes))


def build_task(recipe: Recipe, classes: tuple[str, ...]) -> Any:
    return protocol_of(recipe).build_task(classes)


def test_decay_spares_vectors_and_what_the_network_names() -> None:
    swin = recipe("model=swin_tiny", "image_size=32")
    optimizer = build.optimizer(build_task(swin, ("a", "b")), swin)
    decay = {name: group["weight_decay"] for group in optimizer.param_groups for name in group["names"]}
    assert decay["network.stages.0.blocks.0.attn.table"] == 0
    assert decay["network.stages.0.blocks.0.attn.qkv.bias"] == 0
    assert decay["network.stages.0.blocks.0.norm1.weight"] == 0
    assert decay["network.stages.0.blocks.0.attn.qkv.weight"] == swin.optimisation.weight_decay
    everything = recipe("model=swin_tiny", "image_size=32", "decay_norms_and_biases=true", "no_decay=[qkv]")
    optimizer = build.optimizer(build_task(everything, ("a", "b")), everything)
    decay = {name: group["weight_decay"] for group in optimizer.param_groups for name in group["names"]}
    assert decay["network.stages.0.blocks.0.norm1.weight"] > 0
    assert decay["network.stages.0.blocks.0.attn.qkv.weight"] == 0


def test_detectors_and_segmentors_keep_plain_norms_in_their_backbones() -> None:
    """As published: SyncBN in decoders and box heads, and BN in the backbone; classifiers have the first everywhere."""
    classes = tuple("abcdefghijk")
    for name, *changes in (
        ("digits_visformer",),
        ("digit_scenes_upernet",),
        ("digit_scenes_cascade_mask_rcnn", "method_args={channels: 16, heads: 4conv1fc}"),
    ):
        own = resolve(name, ["sync_batchnorm=true", *changes]).recipe
        task = build_task(own, classes)
        build.prepare(task, own, Ranks(0, 2), torch.device("cpu"))
        norms = {key: type(norm) for key, norm in task.named_modules() if isinstance(norm, nn.BatchNorm2d)}
        inner = {kind for key, kind in norms.items() if key.startswith("network.backbone.")}
        outer = {kind for key, kind in norms.items() if not key.startswith("network.backbone.")}
        assert nn.BatchNorm2d not in outer
        assert len(outer) == 1
        assert inner == (set() if name == "digits_visformer" else {nn.BatchNorm2d})


@pytest.mark.parametrize("precision", ["bfloat16", "float16", "float32"])
def test_narrow_maps_are_widened_for_bfloat16_on_a_cpu_alone(precision: str) -> None:
    for device in ("cpu", "meta"):  # the second stands for any other device
        own = recipe(f"precision={precision}")
        task = build_task(own, ("a", "b"))
        build.prepare(task, own, Ranks(0, 1), torch.device(device))
        hooks = {bool(conv._forward_pre_hooks) for conv in task.modules() if isinstance(conv, nn.Conv2d)}
        assert (True in hooks) == (precision == "bfloat16" and device == "cpu")


@pytest.mark.parametrize(
    ("name", "changes", "tried"),
    [
        ("digits_visformer", (), True),
        ("digits_visformer", ("deterministic=true",), False),
        ("digit_scenes_upernet", (), True),
        ("digit_scenes_mask_rcnn", (), False),
    ],
)
def test_cudnn_tries_its_kernels_where_batches_have_few_sizes(
    name: str, changes: tuple[str, ...], tried: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda mode: None)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    build.set_numerics(resolve(name, changes).recipe, torch.device("cuda"))
    assert torch.backends.cudnn.benchmark == tried


def test_sgd_and_adamw_are_what_they_are_called() -> None:
    for name, kind in (("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)):
        chosen = recipe(f"optimizer={name}", "momentum=0.7")
        assert isinstance(build.optimizer(build_task(chosen, ("a", "b")), chosen), kind)


@pytest.mark.parametrize(("precision", "dtype"), [("bfloat16", torch.bfloat16), ("float16", torch.float16)])
def test_precision_is_that_of_products(precision: str, dtype: torch.dtype) -> None:
    weight = torch.ones(2, 2)
    with build.autocast(recipe(f"precision={precision}"), torch.device("cpu")):
        assert (weight @ weight).dtype == dtype
    with build.autocast(recipe(), torch.device("cpu")):
        assert (weight @ weight).dtype == torch.float32


def test_smoothing_reaches_the_loss_and_mixing_is_only_there_when_asked_for() -> None:
    assert build_task(recipe("smoothing=0.25"), ("a", "b")).smoothing == 0.25
    assert protocol("mixup=0", "cutmix=0").mixing(2, 3) is None
    assert protocol().mixing(2, 4) is not None
    with pytest.raises(ValueError, match="each process has a batch of 3, an odd number"):
        protocol().mixing(2, 3)


def test_evaluation_prepares_images_as_the_recipe_says() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (50, 70, 3)).astype(np.uint8)
    sample = Sample("a", noise, (50, 70), label=0)

    def transformed(*changes: str) -> torch.Tensor:
        image = protocol(*changes).evaluation_transform()(sample).image
        assert isinstance(image, torch.Tensor)
        return image

    plain = transformed()
    assert plain.shape == (3, 32, 32)
    for change in (
        "interpolation=bilinear",
        "crop_pct=0.5",
        "crop_mode=squash",
        "mean=[0.1, 0.1, 0.1]",
        "std=[1, 1, 1]",
    ):
        assert not torch.equal(plain, transformed(change)), change
    assert transformed("image_size=64").shape == (3, 64, 64)


def test_the_seed_is_that_of_the_first_weights() -> None:
    one, same, other = (build_task(recipe(f"seed={seed}"), ("a", "b")).state_dict() for seed in (1, 1, 2))
    key = "network.stages.0.blocks.0.mlp.expand.weight"
    assert torch.equal(one[key], same[key])
    assert not torch.equal(one[key], other[key])


def test_a_run_folder_knows_its_recipe_again(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    resolved = resolve("digits_visformer", ["lr=0.01"])
    folder.begin(resolved, {})
    assert folder.recipe() == resolved.recipe
    folder.check_same(resolve("digits_visformer", ["lr=0.01", "workers=7"]).recipe)
    with pytest.raises(ValueError, match=r"optimisation\.lr 0\.01 there and 0\.02 here"):
        folder.check_same(resolve("digits_visformer", ["lr=0.02"]).recipe)
    folder.release()


def test_a_rate_changes_at_most_once_a_step() -> None:
    schedule = build.schedule(recipe("optimisation.schedule_every=0.1ep", "length=4ep", "warmup=0it"), 2)
    assert schedule.every == 1
    assert schedule.lr(0) > schedule.lr(1)
