"""Runs on small data: fitted values are printed and recorded, and a run that continues has the same ones."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run.runs import refused, stop_before

from fourstage import create_model, registry
from fourstage.cli import main
from fourstage.data.embedded.digits import Digits
from fourstage.engine.state import load_state
from fourstage.recipe import resolve
from fourstage.run import train
from fourstage.run.folder import RunFolder
from fourstage.run.published import settled_weights
from fourstage.weights import catalog
from fourstage.weights.reading import download

SHORT = ["length=2ep", "evaluate_every=2ep", "workers=0", "device=cpu"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty images of two classes to train on, eight to validate on."""
    from PIL import Image

    root, digits = tmp_path_factory.mktemp("data") / "photos", Digits("train")
    for index in range(48):
        folder = root / ("train" if index < 40 else "val") / ("cat", "dog")[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(digits.sample(index).image)).save(folder / f"{index}.png")
    return root


@pytest.fixture(autouse=True)
def _no_other_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(download, "TRIES", 1)


def publish(monkeypatch: pytest.MonkeyPatch, **arguments: Any) -> Path:
    """Publish weights of the digits' network, as `visformer_digits.in1k`; return their file in torch's cache."""
    row = catalog.find("visformer_small")
    mine = replace(row, model="visformer_digits", file="mine.pth", address="http://127.0.0.1:9/mine.pth")
    monkeypatch.setattr(catalog, "WEIGHTS", (*catalog.WEIGHTS, replace(mine, arguments=arguments)))
    file = download.folder() / "mine.pth"
    file.parent.mkdir(parents=True)
    torch.save(
        {"model": create_model("visformer_digits", num_classes=1000, img_size=32, **arguments).state_dict()}, file
    )
    return file


def test_a_recipe_for_more_data_runs_on_forty_images_and_says_what_it_fitted(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    command = ["train", "digits_visformer", "--data", str(photos), "--out", str(out), *SHORT]
    assert main([*command, "--dry-run"]) == 0
    assert "batch size 8: 40 training images, 5 updates an epoch (recipe: 64)" in capsys.readouterr().out
    assert not out.exists()
    assert main(command) == 0
    assert "batch size 8: 40 training images, 5 updates an epoch (recipe: 64)" in capsys.readouterr().out
    assert RunFolder(out).recipe().optimisation.batch_size == 8
    assert json.loads((out / "changes.json").read_text())["changes"]["optimisation.batch_size"] == [64, 8]
    assert main(command) == 0
    assert "is finished" in capsys.readouterr().out
    refused(main([*command, "lr=1e-3"]), capsys, "holds a run of another recipe (optimisation.lr")


def test_a_run_that_continues_has_its_fitted_values_and_ends_with_the_same_bits(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch)
    changes = ["model=visformer_digits", "image_size=32", *SHORT]
    complete = train("finetune", data=photos, out=tmp_path / "a", changes=changes, show=False)
    with monkeypatch.context() as patch:
        stop_before(3, patch)
        assert train("finetune", data=photos, out=tmp_path / "b", changes=changes, show=False).stopped_by == "SIGTERM"
    before = (tmp_path / "b" / "changes.json").read_bytes()
    shutil.rmtree(tmp_path / "torch")  # weights to start from are read once
    continued = train("finetune", data=photos, out=tmp_path / "b", changes=changes, show=False)
    assert continued.step == complete.step == 10
    assert (tmp_path / "b" / "changes.json").read_bytes() == before
    assert RunFolder(tmp_path / "a").recipe() == RunFolder(tmp_path / "b").recipe()
    one, other = (load_state(tmp_path / name / "checkpoints" / "last.pt")["model"] for name in "ab")
    assert all(torch.equal(value, other[key]) for key, value in one.items())


def test_a_run_that_continues_with_other_data_is_refused(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train("digits_visformer", data=photos, out=out, changes=SHORT, show=False)
    (out / "report.html").unlink()
    fewer = tmp_path / "fewer"
    shutil.copytree(photos, fewer)
    for path in sorted(fewer.glob("train/*/*.png"))[::2]:
        path.unlink()
    with pytest.raises(ValueError, match="holds other images"):
        train("digits_visformer", data=fewer, out=out, changes=SHORT, show=False)


def test_values_of_the_user_that_do_not_fit_are_one_message(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed = ["train", "digits_visformer", "--data", str(photos), "--dry-run", *SHORT]
    words = "fewer than one batch of 64, and warmup=3ep is 15 steps"
    command = f"type: fourstage {' '.join(typed)} batch_size=8 warmup=1it"
    refused(main([*typed, "batch_size=64", "warmup=3ep"]), capsys, words, command)


@pytest.mark.parametrize("weights", ["pretrained", "in1k", "visformer_digits.in1k"])
def test_a_training_starts_from_published_weights(
    weights: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(monkeypatch)
    out = tmp_path / "run"
    changes = ["model=visformer_digits", f"weights={weights}", "image_size=32", "lr=1e-12", "warmup_lr=0", "min_lr=0"]
    assert main(["train", "finetune", "--data", str(photos), "--out", str(out), *changes, *SHORT]) == 0
    assert "weights visformer_digits.in1k: top1 82.2 %" in capsys.readouterr().out
    assert RunFolder(out).recipe().weights == "visformer_digits.in1k"
    trained = load_state(out / "checkpoints" / "last.pt")["model"]
    published = torch.load(tmp_path / "torch" / "hub" / "checkpoints" / "mine.pth")["model"]
    name = next(name for name in published if name.endswith("weight") and published[name].dim() == 4)
    torch.testing.assert_close(trained[f"network.{name}"], published[name])


def test_the_network_gets_the_arguments_that_its_weights_need(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, drop_rate=0.25)
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    out = tmp_path / "run"
    train("finetune", data=photos, out=out, changes=["model=visformer_digits", *SHORT, "image_size=32"], show=False)
    recipe: Any = RunFolder(out).recipe()
    assert recipe.model_args == {"drop_rate": 0.25}


def test_a_published_detector_is_built_with_the_settings_of_its_recipe() -> None:
    settled, lines = settled_weights(resolve("finetune_detection", ["method=dino"]))
    recipe: Any = settled.recipe
    published: Any = resolve("dino_swin_tiny_coco_4scale_12ep").recipe
    assert recipe.weights == "swin_tiny.dino_coco_4scale_12ep"
    assert recipe.method_args == published.method_args
    assert recipe.backbone_args == {"out_indices": [1, 2, 3]}
    assert lines == ("weights swin_tiny.dino_coco_4scale_12ep: box_map 51.3 %",)
    own, _ = settled_weights(resolve("finetune_detection", ["method=dino", "method_args={pad_to: 32}"]))
    assert own.recipe.model_dump()["method_args"]["pad_to"] == 32


@pytest.mark.parametrize(
    ("recipe", "changes", "weights"),
    [
        ("finetune", [], "smt_tiny.in1k"),
        ("finetune", ["model=swin_tiny"], "swin_tiny.in1k"),
        ("finetune", ["model=smt_large.in22k"], "smt_large.in22k"),
        ("finetune_detection", [], "swin_tiny.mask_rcnn_coco_1x"),
        ("finetune_detection", ["method=retinanet"], "swin_tiny.in1k"),
        ("finetune_detection", ["backbone=smt_small"], "smt_small.in1k"),
        ("finetune_segmentation", ["backbone=swin_tiny"], "swin_tiny.in1k"),
        ("finetune_segmentation", ["backbone=timm/resnet18"], "pretrained"),
    ],
)
def test_pretrained_means_the_nearest_published_weights(recipe: str, changes: list[str], weights: str) -> None:
    settled, lines = settled_weights(resolve(recipe, changes))
    assert settled.recipe.weights == weights
    assert len(lines) == 1
    assert len(lines[0]) <= 80


def test_weights_that_cannot_be_had_are_one_sentence(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed = ["train", "finetune", "--data", str(photos), "--dry-run"]
    words = ["smt_tiny.pth could not be fetched", "type weights=smt_tiny.pth, or weights=none to train from scratch"]
    with pytest.MonkeyPatch.context() as patch:
        row = replace(catalog.find("smt_tiny"), address="http://127.0.0.1:9/smt_tiny.pth")
        patch.setattr(catalog, "WEIGHTS", (row,))
        refused(main(typed), capsys, *words)
    refused(
        main([*typed, "model=visformer_digits"]),
        capsys,
        "no weights of visformer_digits are published; give a file, weights=FILE, or type weights=none",
    )
    refused(main([*typed, "weights=in2k"]), capsys, "no published weights called 'in2k'; did you mean smt_tiny.in1k?")
    refused(main([*typed, "weights=missing.pth"]), capsys, "missing.pth")
    refused(main([*typed, "model=visformer_tiny"]), capsys, "no file of visformer_tiny.in1k is published")
    evaluation = ["evaluate", "smt_tiny_in1k", "--data", str(photos)]
    refused(main(evaluation), capsys, "--weights pretrained for the published ones")
    refused(main([*evaluation, "--weights", "in2k"]), capsys, "give a file, --weights FILE")


def test_published_weights_are_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    from fourstage.data.labels.imagenet_variants import wnids

    publish(monkeypatch)
    for label in range(3):
        folder = tmp_path / "few" / wnids()[label]
        folder.mkdir(parents=True)
        Image.new("RGB", (40, 40), (80 * label,) * 3).save(folder / "0.png")
    typed = ["evaluate", "digits_visformer", "--data", str(tmp_path / "few"), "--json", "device=cpu", "workers=0"]
    assert main([*typed, "--weights", "pretrained"]) == 0
    named = json.loads(capsys.readouterr().out)
    assert main([*typed, "weights=visformer_digits.in1k"]) == 0
    assert json.loads(capsys.readouterr().out) == named
    assert named["images"] == 3


def test_from_scratch_is_said(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = ["weights=none", "model=visformer_digits", "image_size=32", "device=cpu", "workers=0"]
    assert main(["train", "finetune", "--data", str(photos), "--dry-run", *changes]) == 0
    printed = capsys.readouterr().out
    assert "weights none: the network starts from random numbers" in printed
    assert "500 x" not in printed
    assert "length 50 epochs: 40 images, 250 updates" in printed


def test_a_comparison_whose_values_were_fitted_is_continued(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = [
        "length=1it",
        "batch_size=8",
        "workers=0",
        "ema=null",
        "device=cpu",
        "--seconds",
        "0",
        "--analyses",
        "none",
    ]
    command = ["compare", "digits_visformer", "--vary", "mixer=convnext,pvt", "--seeds", "1", *short]
    assert main([*command, "--out", str(tmp_path / "before")]) == 0
    assert RunFolder(tmp_path / "before" / "pvt" / "seed-0").recipe().optimisation.warmup == "0it"
    (tmp_path / "before").rename(tmp_path / "moved")
    shutil.rmtree(tmp_path / "moved" / "pvt" / "seed-0")
    capsys.readouterr()
    assert main([*command, "--out", str(tmp_path / "moved")]) == 0
    printed = capsys.readouterr().out
    assert "2 of 2: pvt, seed 0" in printed
    assert "1 of 2" not in printed  # it has ended
    refused(main([*command, "warmup=1it", "--out", str(tmp_path / "moved")]), capsys, "optimisation.warmup 0it there")


def test_a_job_continues_a_run_whose_values_were_fitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    short = ["length=4it", "batch_size=8", "ema=null", "device=cpu", "workers=0"]
    with monkeypatch.context() as patch:
        stop_before(2, patch)
        assert train("digits_visformer", changes=short, show=False).stopped_by == "SIGTERM"
    assert RunFolder(tmp_path / "runs" / "digits_visformer").recipe().optimisation.warmup == "0it"
    job = ["slurm", "train", "digits_visformer", "--partition", "gpu", "--gpus", "1", "--dry-run", *short]
    assert main(job) == 0
    refused(main([*job, "warmup=1it"]), capsys, "optimisation.warmup 0it there")
