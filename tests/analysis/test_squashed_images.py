"""Networks of 384 pixels are evaluated on images that were resized straight to the square, in every place."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_from_checkpoint import run_checkpoint

import fourstage
from fourstage.analysis.images import evaluated
from fourstage.analysis.invariance import Protocol, standard_view
from fourstage.analysis.networks import load_network, preparation_of
from fourstage.data.sample import Sample
from fourstage.data.transforms.classification import eval_transform
from fourstage.run.tasks import classification
from fourstage.run.tasks.classification import ClassificationProtocol

PHOTO = np.random.default_rng(0).integers(0, 256, (90, 150, 3), dtype=np.uint8)
CASES: list[tuple[str, dict[str, Any], str]] = [
    ("smt_large_384", {}, "squash"),
    ("smt_tiny", {"img_size": 384}, "squash"),
    ("swin_base_patch4_window12_384", {}, "squash"),
    ("unified_swin_micro", {"img_size": 448}, "squash"),
    ("unified_swin_micro", {"img_size": 352}, "center"),
    ("swin_tiny", {}, "center"),
    ("visformer_tiny", {"img_size": 384}, "center"),  # these two sources crop at every size
    ("scalable_vit_small", {"img_size": 384}, "center"),
]


@pytest.mark.parametrize(("name", "arguments", "mode"), CASES)
def test_a_network_says_how_its_source_evaluates(name: str, arguments: dict[str, Any], mode: str) -> None:
    with torch.device("meta"):
        network: Any = fourstage.create_model(name, **arguments)
    assert network.default_cfg["crop_mode"] == mode
    assert network.default_cfg["crop_pct"] == (1.0 if mode == "squash" else 0.875)
    found = preparation_of(network)
    assert (found.crop_mode, found.crop_pct) == (mode, 0.875)


def test_timm_prepares_images_for_such_a_network_as_we_do() -> None:
    timm_data = pytest.importorskip("timm.data")
    from PIL import Image

    with torch.device("meta"):
        network = fourstage.create_model("smt_tiny", img_size=384)
    theirs = timm_data.create_transform(**timm_data.resolve_model_data_config(network))
    ours = evaluated(PHOTO, 384, preparation_of(network))
    torch.testing.assert_close(theirs(Image.fromarray(PHOTO)), ours)


@pytest.mark.parametrize("mode", ["center", "squash"])
def test_an_analysis_prepares_images_as_the_evaluation_of_the_run_does(mode: Any, tmp_path: Path) -> None:
    path, _ = run_checkpoint(tmp_path / "best.pt", evaluation={"crop_pct": 0.75, "crop_mode": mode})
    known = load_network(path).preparation
    expected = eval_transform(
        32, mean=known.mean, std=known.std, crop_pct=0.75, crop_mode=mode, interpolation="bicubic"
    )
    found = evaluated(PHOTO, 32, known)
    wanted: Any = expected(Sample("a", PHOTO, PHOTO.shape[:2])).image
    torch.testing.assert_close(found, wanted)
    same_as_standard = torch.equal(found, standard_view(PHOTO, Protocol(known, 32)))
    assert same_as_standard == (mode == "center")


def test_a_network_by_name_predicts_on_such_images(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    network = fourstage.create_model("unified_pico", num_classes=3, img_size=384)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    monkeypatch.setattr(classification, "create_model", lambda *_args, **_kwargs: network)
    protocol, _ = ClassificationProtocol.from_name("unified_pico", tmp_path / "weights.pth")
    assert protocol.recipe.evaluation.crop_mode == "squash"


@pytest.mark.parametrize(("mode", "share"), [("center", 0.75), ("squash", 1.0)])
def test_a_saved_run_says_so_to_timm(mode: str, share: float, tmp_path: Path) -> None:
    """The squash of timm enlarges the square by crop_pct first, ours does not."""
    path, _ = run_checkpoint(tmp_path / "best.pt", evaluation={"crop_pct": 0.75, "crop_mode": mode})
    predictor: Any = fourstage.load(path)
    predictor.save_pretrained(tmp_path / "saved")
    cfg = json.loads((tmp_path / "saved" / "config.json").read_text())["pretrained_cfg"]
    assert (cfg["crop_mode"], cfg["crop_pct"]) == (mode, share)


def test_maps_have_timms_name_of_their_layout() -> None:
    for create in (fourstage.create_model, fourstage.create_backbone):
        assert create("visformer_digits").output_fmt == "NCHW"
