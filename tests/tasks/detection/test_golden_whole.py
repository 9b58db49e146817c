"""Whole detectors, images in and objects out, filled from checkpoints by the originals' names."""

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden.dense import load
from golden.fill import fill, fill_head, read_manifest
from goldens import assert_sampled, batch_of, check_detections, check_losses, keep_all_anchors
from torch import Tensor

import fourstage
from fourstage.data.sample import Batch
from fourstage.tasks.detection.mask_rcnn import MaskRCNN

FOLDER = Path(__file__).parents[2] / "golden" / "e2e"
DETECTORS = {
    "mask_rcnn_swin_t": "swin_tiny",
    "mask_rcnn_stm_convnext_micro": "unified_convnext_micro",
}


def original_state(manifest: dict) -> dict[str, Tensor]:
    state = {}
    for key, (shape, dtype, kind, rule, crc32) in manifest["params"].items():
        if rule == "backbone":
            value = fill(key, tuple(shape), kind)
        else:
            value = fill_head(key, tuple(shape), kind, manifest["kind_scale"])
        if value is None:
            value = np.zeros(shape, dtype)  # what follows from sizes
        else:
            assert zlib.crc32(value.tobytes()) == crc32, key
        state[key] = torch.from_numpy(np.asarray(value))
    return state


def whole(name: str) -> tuple[MaskRCNN, Batch, dict[str, Any], dict[str, np.ndarray]]:
    manifest = read_manifest(FOLDER / f"{name}.json.gz")
    with np.load(FOLDER / f"{name}.npz") as file:
        golden = dict(file)
    detector = MaskRCNN(fourstage.create_backbone(DETECTORS[name]), 80, regions=10**6)
    keep_all_anchors(detector).eval()
    load(detector, original_state(manifest), "mask_rcnn")
    x = np.random.default_rng(7).standard_normal((2, 3, 224, 320)).astype(np.float32)
    x[1, :, 200:, :] = 0
    x[1, :, :, 300:] = 0
    return detector, batch_of(manifest, golden, torch.from_numpy(x)), manifest, golden


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_finds_what_the_original_finds(name: str) -> None:
    detector, batch, _, golden = whole(name)
    seen: list[Tensor] = []
    forward = detector.neck.forward
    detector.neck.forward = lambda maps: seen.extend(forward(maps)) or list(seen)
    check_detections(detector.detect(batch), golden, "pred_ori")
    for i, x_BCHW in enumerate(seen):
        assert_sampled(x_BCHW, golden, f"raw/neck.{i}")


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.torture) for name in DETECTORS])
def test_a_detector_learns_what_the_original_learns(name: str) -> None:
    detector, batch, manifest, golden = whole(name)
    check_losses(detector, batch, golden, manifest)
