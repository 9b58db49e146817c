"""Swin as timm, torchvision and transformers save it gives the same logits and maps here."""

import gzip
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden.fill import fill, image
from safetensors.torch import save_file
from torch import Tensor, nn

import fourstage
from fourstage import registry
from fourstage.backbones import swin
from fourstage.backbones.feature_maps import FeatureMaps
from fourstage.weights.load import load_state, unwrap, which_models

DESIGN = swin.Design(width=8, depths=(1, 2, 1, 2), heads=(1, 2, 4, 8), window=2, img_size=64)
SIZES: dict[str, Any] = {"embed_dim": 8, "depths": (1, 2, 1, 2), "num_heads": (1, 2, 4, 8)}


def spread(network: Any) -> Any:
    """Give each parameter values that show where two of them are exchanged."""
    torch.manual_seed(0)
    for name, parameter in network.named_parameters():
        nn.init.normal_(parameter, mean=1.0 if "norm" in name and name.endswith("weight") else 0.0, std=0.3)
    return network.eval()


def golden() -> dict[str, Any]:
    with gzip.open(Path(__file__).parents[1] / "golden/foreign/swin_transformers.json.gz", "rt") as file:
        return json.load(file)


def values(manifest: dict[str, list[Any]]) -> dict[str, Tensor]:
    filled = {key: fill(key, tuple(shape), kind) for key, (shape, kind) in manifest.items()}
    return {key: torch.from_numpy(value) for key, value in filled.items() if value is not None}


def assert_same_map(mine_BCHW: Tensor, theirs_BCHW: Tensor) -> None:
    """Compare maps, whose values grow with depth, within 1e-5 of the largest one."""
    torch.testing.assert_close(mine_BCHW, theirs_BCHW, rtol=0, atol=1e-5 * max(1.0, float(theirs_BCHW.abs().max())))


@torch.inference_mode()
def test_timms_swin_is_the_same_function() -> None:
    timm = pytest.importorskip("timm")
    peer = spread(timm.models.SwinTransformer(img_size=64, window_size=2, num_classes=7, **SIZES))
    ours, x_BCHW = swin.classifier(DESIGN, num_classes=7).eval(), torch.randn(2, 3, 64, 64)
    report = load_state(ours, peer.state_dict(), source="timm.pth")
    assert (report.read, report.dropped, report.fresh) == (95, (), ())
    torch.testing.assert_close(ours(x_BCHW), peer(x_BCHW), rtol=0, atol=1e-5)
    maps = peer.forward_intermediates(x_BCHW, intermediates_only=True)
    for mine, theirs in zip(FeatureMaps(ours)(x_BCHW), maps, strict=True):
        assert_same_map(mine, theirs)
    headless = {key: value for key, value in peer.state_dict().items() if not key.startswith("head.")}
    pooled = load_state(swin.classifier(DESIGN, num_classes=0), headless, source="timm.pth")
    assert (pooled.read, pooled.fresh) == (93, ())  # a merge is not taken for that of Microsoft's next stage


def test_timms_feature_extractor_fills_ours() -> None:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        names = timm.create_model("swin_tiny_patch4_window7_224", features_only=True).state_dict()
        state = {key: torch.empty_like(value) for key, value in names.items()}
    assert which_models(state) == ["swin_tiny"]
    model = fourstage.create_model("swin_tiny", features_only=True)
    filled = {key: torch.full(value.shape, 2.0) for key, value in state.items()}
    assert str(load_state(model, filled, source="maps.pth")) == "maps.pth: 169 read"
    assert all(bool((value == 2).all()) for value in model.state_dict().values())


@torch.inference_mode()
def test_torchvisions_swin_is_the_same_function() -> None:
    models = pytest.importorskip("torchvision.models")
    peer = spread(models.SwinTransformer([4, 4], 8, [1, 2, 1, 2], [1, 2, 4, 8], [2, 2], num_classes=7))
    ours, x_BCHW = swin.classifier(DESIGN, num_classes=7).eval(), torch.randn(2, 3, 64, 64)
    report = load_state(ours, peer.state_dict(), source="tv.pth")
    assert (report.read, report.dropped, report.fresh) == (95, report.rebuilt, ())
    torch.testing.assert_close(ours(x_BCHW), peer(x_BCHW), rtol=0, atol=1e-5)
    x_BHWC, maps = x_BCHW, []
    for i, layer in enumerate(peer.features):
        x_BHWC = layer(x_BHWC)
        maps += [x_BHWC.movedim(-1, 1)] if i % 2 else []
    for mine, theirs in zip(FeatureMaps(ours)(x_BCHW), maps, strict=True):
        assert_same_map(mine, theirs)


@pytest.mark.parametrize("names", ["of files", "of version 5 in memory"])
@torch.inference_mode()
def test_the_classifier_of_transformers_is_the_same_function(names: str, tmp_path: Path) -> None:
    known = golden()
    state = values(known["classifier"])
    if names != "of files":
        state = {key: state[_in_file(key)] for key in known["names_in_memory"]}
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "swin"}')
    ours = swin.classifier(DESIGN, num_classes=7).eval()
    report = fourstage.load_checkpoint(ours, tmp_path)
    assert str(report) == "model.safetensors: 95 read"
    logits = ours(torch.from_numpy(image((2, 3, 64, 64))))
    torch.testing.assert_close(logits, torch.tensor(known["logits"]), rtol=0, atol=1e-5)


def _in_file(key: str) -> str:
    for new, old in (
        ("q_proj", "self.query"),
        ("k_proj", "self.key"),
        ("v_proj", "self.value"),
        ("o_proj", "output.dense"),
        ("relative_position_bias.rel", "self.rel"),
        ("mlp.fc1", "intermediate.dense"),
        ("mlp.fc2", "output.dense"),
    ):
        key = key.replace(new, old)
    return key


@pytest.mark.parametrize("prefix", ["", "model.backbone."])
@torch.inference_mode()
def test_the_backbone_of_transformers_is_the_same_function(prefix: str) -> None:
    known = golden()
    state = {prefix + key: value for key, value in values(known["backbone"]).items()}
    dense = swin.dense(DESIGN).eval()
    report = load_state(dense, state, source="hf.safetensors")
    assert (report.read, sorted(report.dropped), report.fresh) == (99, ["final.bias", "final.weight"], ())
    for size, expected in known["maps"].items():
        maps = dense(torch.from_numpy(image((1, 3, *map(int, size.split("x"))))))
        for x_BCHW, wanted in zip(maps, expected, strict=True):
            found = x_BCHW.flatten()[:: max(1, x_BCHW.numel() // 50)]
            np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=1e-5)


def test_what_transformers_adds_is_left_out_and_said() -> None:
    state = values(golden()["backbone"])
    extra = {"swin.embeddings.mask_token": torch.zeros(1, 1, 8), "hidden_states_norms.stem.weight": torch.ones(8)}
    report = load_state(swin.dense(DESIGN), state | extra, source="hf")
    assert report.dropped[:2] == tuple(extra)
    assert not report.rebuilt
    shuffled = list((state | extra).items())
    random.Random(0).shuffle(shuffled)
    assert load_state(swin.dense(DESIGN), dict(shuffled), source="hf").read == report.read


@pytest.mark.parametrize(
    "damage",
    [
        lambda s: s.pop("encoder.layers.0.blocks.0.attention.self.key.weight"),
        lambda s: s.update({"encoder.layers.0.blocks.0.attention.self.key.weight": torch.zeros(8, 7)}),
        lambda s: s.update(
            {f"encoder.layers.0.blocks.0.attention.self.{x}.bias": torch.zeros(()) for x in ("query", "key", "value")}
        ),
    ],
)
def test_attention_that_cannot_be_joined_is_refused(damage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "FAMILIES", {})  # do not search for a network that it fits
    state = values(golden()["backbone"])
    damage(state)
    with pytest.raises(ValueError, match="does not fit"):
        load_state(swin.dense(DESIGN), state, source="hf.bin")


@torch.inference_mode()
def test_timms_visformer_is_the_same_function() -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    peer = timm.create_model("visformer_tiny", num_classes=7).eval()
    for module in peer.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    peer.train()(torch.randn(2, 3, 224, 224))  # statistics that keep the logits small
    peer.eval()
    ours: Any = fourstage.create_model("visformer_tiny", num_classes=7).eval()
    x_BCHW = torch.randn(1, 3, 224, 224)
    assert str(load_state(ours, peer.state_dict(), source="v.pth")) == "v.pth: 205 read"
    expected = peer(x_BCHW)
    assert float(expected.std()) > 0.01
    torch.testing.assert_close(ours(x_BCHW), expected, rtol=0, atol=1e-5)
    maps = peer.forward_intermediates(x_BCHW, intermediates_only=True)
    for mine, theirs in zip(ours.forward_maps(x_BCHW), maps, strict=True):
        assert_same_map(mine, theirs)


@pytest.mark.parametrize(
    ("peer", "sentence"),
    [
        ("pvt_v2_b0", "official_pvt_v2_b0: it is a PVTv2, and no network here computes the same"),
        (
            "convnext_atto",
            "it is a ConvNeXt, and no network here computes the same .*create_backbone.'timm/convnext",
        ),
        ("swinv2_cr_tiny_ns_224", "does not fit official_pvt_v2_b0, nor any other network here"),
        ("swinv2_tiny_window8_256", "it is a Swin V2"),
    ],
)
def test_other_functions_are_refused_by_what_they_are(peer: str, sentence: str) -> None:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        state = timm.create_model(peer).state_dict()
        model = fourstage.create_model("official_pvt_v2_b0")
    with pytest.raises(ValueError, match=sentence):
        load_state(model, state, source="file.pth")


def test_torchvisions_names_are_known_behind_prefixes() -> None:
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        state = {f"model.module.{key}": value for key, value in models.swin_t().state_dict().items()}
    inner, outside = unwrap({**state, "loss.weight": torch.zeros(1)})
    assert (which_models(inner), outside) == (["swin_tiny"], ["loss.weight"])
