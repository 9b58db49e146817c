"""Backbones and heads give the original code's numbers on the device, in float32 and, more loosely, in half."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backbones.test_golden_backbones import FILES, assert_matches, our_model
from golden.dense import load
from golden.fill import image, original_state, read_manifest, sampled
from tasks.detection.goldens import (
    BUILD,
    FixedMaps,
    batch_of,
    check_losses,
    keep_all_anchors,
    method_of,
    original_head,
    read_golden,
)
from tasks.segmentation import heads
from torch import Tensor, nn

import fourstage
from fourstage.backbones.mixers.window import WindowAttention

LOOSE = {torch.float16: 1e-2, torch.bfloat16: 6e-2}  # of the norm of a map: about ten units in the last place
LABELLED = (slice(None), slice(100, 140), slice(50, 90))


def network_of(path: Path, folder: Path) -> tuple[nn.Module, dict[str, Any], dict[str, np.ndarray]]:
    manifest = read_manifest(path.with_suffix(".json.gz"))
    checkpoint = folder / "original.pth"
    torch.save({"model": {k: torch.from_numpy(v) for k, v in original_state(manifest).items()}}, checkpoint)
    model = our_model(manifest).eval()
    fourstage.load_checkpoint(model, checkpoint)
    with np.load(path) as golden:
        return model, manifest, dict(golden)


def named_outputs(out: Tensor | list[Tensor]) -> dict[str, Tensor]:
    return {"logits": out} if isinstance(out, Tensor) else {f"out{i}": x for i, x in enumerate(out)}


def check_outputs(outs: dict[str, Tensor], manifest: dict[str, Any], golden: dict[str, np.ndarray]) -> None:
    checked = 0
    for name, x in outs.items():
        if (info := manifest["tensors"].get(name)) is not None:
            actual = x.detach().float().cpu().numpy()
            actual = actual if info.get("full") else sampled(actual, info["n"])
            assert_matches(actual, golden[name], name, info["std"])
            checked += 1
    assert checked == len(outs)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_backbone_in_float32(path: Path, tmp_path: Path, device: torch.device) -> None:
    model, manifest, golden = network_of(path, tmp_path)
    x_BCHW = torch.from_numpy(image(tuple(manifest["input_shape"]))).to(device).requires_grad_()
    outs = named_outputs(model.to(device)(x_BCHW))
    check_outputs(outs, manifest, golden)
    probes = [np.random.default_rng(100 + i).standard_normal(tuple(x.shape)) for i, x in enumerate(outs.values())]
    terms = [(x.double() * torch.from_numpy(p).to(device)).sum() for x, p in zip(outs.values(), probes, strict=True)]
    torch.stack(terms).sum().backward()
    assert x_BCHW.grad is not None
    np.testing.assert_allclose(float(x_BCHW.grad.norm()), golden["grad_norm"], rtol=1e-3)


@pytest.mark.parametrize("dtype", LOOSE, ids=str)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_backbone_in_half_precision(path: Path, dtype: torch.dtype, tmp_path: Path, device: torch.device) -> None:
    model, manifest, _ = network_of(path, tmp_path)
    x_BCHW = torch.from_numpy(image(tuple(manifest["input_shape"]))).to(device)
    with torch.inference_mode():
        expected = named_outputs(model.to(device)(x_BCHW))
        with torch.autocast(device.type, dtype=dtype):
            actual = named_outputs(model(x_BCHW))
    for name, x in expected.items():
        error = float((actual[name].float() - x).norm() / x.norm())
        assert error <= LOOSE[dtype], f"{name} differs by {error:.2g} of its norm"


class MovedMaps(FixedMaps):
    """The fixed maps of the goldens, on the image's device."""

    def forward(self, image_BCHW: Tensor) -> list[Tensor]:
        return [x.to(image_BCHW.device) for x in super().forward(image_BCHW)]


@pytest.mark.parametrize("name", BUILD)
def test_a_detector_head(name: str, device: torch.device) -> None:
    if name == "sparse_rcnn":
        pytest.importorskip("scipy", reason="queries are matched by scipy")
    manifest, golden = read_golden(name)
    detector = keep_all_anchors(BUILD[name](MovedMaps())).eval()
    load(detector, original_head(manifest), method_of(detector))
    batch = batch_of(manifest, golden, torch.zeros(2, 3, 256, 320)).to(device)
    check_losses(detector.to(device), batch, golden, manifest)
    with torch.inference_mode():
        for i, found in enumerate(detector.detect(batch, rescale=False)):
            count = len(golden[f"pred_net/{i}/scores"])
            assert len(found) == count
            np.testing.assert_allclose(found.scores_N.cpu(), golden[f"pred_net/{i}/scores"], rtol=0, atol=1e-4)


class MovedSegmentorMaps(heads.FixedMaps):
    """The fixed maps of the goldens, on the image's device."""

    def forward(self, image_BCHW: Tensor) -> list[Tensor]:
        return [x.to(image_BCHW.device) for x in super().forward(image_BCHW)]


@pytest.mark.parametrize("name", heads.METHODS)
def test_a_segmentor_head(name: str, device: torch.device) -> None:
    manifest, arrays = heads.golden(f"heads/{name}")
    model = heads.METHODS[name](MovedSegmentorMaps(), 150, dropout=0.0).eval()
    load(model, heads.state_of(manifest), name)
    model.to(device)
    labels_BHW = heads.labels_of(arrays, [LABELLED]).to(device)
    losses = model.losses(torch.zeros(2, 3, 256, 320, device=device), labels_BHW)
    names = {"loss_seg": "loss/decode.loss_ce", "loss_aux": "loss/aux.loss_ce"}
    expected = {ours: float(arrays[key][0]) for ours, key in names.items() if key in arrays}
    assert {key: loss.item() for key, loss in losses.items()} == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, *LOOSE], ids=str)
@pytest.mark.parametrize("shifted", [False, True])
def test_more_windows_than_a_grid_has_places(shifted: bool, dtype: torch.dtype, device: torch.device) -> None:
    """2^16 windows: a batch of 1,024 images of 224 pixels in the first stage of Swin, or one of 7,168 pixels."""
    if device.type != "cuda":
        pytest.skip("CPUs have no grid")
    torch.manual_seed(0)
    images, side = (16, 64 * 7) if not shifted else (1, 256 * 7)
    attention = WindowAttention(8, 1, 7, shifted=shifted, dense=True).to(device)
    x_BHWC = torch.randn(images, side, side, 8, device=device)
    for learns in (True, False):
        with torch.set_grad_enabled(learns), torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            out_BHWC = attention(x_BHWC)
        if learns:
            out_BHWC.float().square().mean().backward()
            assert attention.table.grad is not None
            assert attention.table.grad.isfinite().all()
        inner = slice(0, 70)  # ten windows, far from the end, whose shift differs
        few = attention(x_BHWC[:1, :77, :77]).float()[:, inner, inner]
        unit = LOOSE.get(dtype, 1e-4)
        error = (out_BHWC[:1, inner, inner].float() - few).norm() / few.norm()
        assert error < unit
