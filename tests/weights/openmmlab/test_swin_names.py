"""Files of OpenMMLab's detectors and segmentors, and of others who put a backbone into something larger."""

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden.fill import fill, fill_head, read_manifest
from safetensors.torch import save_file
from tiny_networks import SWIN, tiny_dense
from torch import Tensor
from weights.foreign import MICROSOFT, MMDETECTION, renamed

import fourstage
from fourstage.backbones import swin
from fourstage.weights.load import load_state
from fourstage.weights.openmmlab.swin_names import NEIGHBOURS, merged_columns

FOLDER = Path(__file__).parents[2] / "golden" / "e2e"
BACKBONES = {
    "mask_rcnn_swin_t": "swin_tiny",
    "upernet_swin_t": "swin_tiny",
    "mask_rcnn_stm_convnext_micro": "unified_convnext_micro",
}


def detector(manifest: dict) -> dict[str, Tensor]:
    """The state dict of a whole detector or segmentor."""
    state = {}
    for key, (shape, dtype, kind, rule, crc32) in manifest["params"].items():
        if rule == "backbone":
            value = fill(key, tuple(shape), kind)
        elif key.startswith(("neck", "rpn_head")):  # enough of the rest
            value = fill_head(key, tuple(shape), kind, manifest["kind_scale"])
        else:
            continue
        if value is None:
            value = np.zeros(shape, dtype)
        else:
            assert zlib.crc32(value.tobytes()) == crc32, key
        state[key] = torch.from_numpy(value)
    return state


def images() -> Tensor:
    x = np.random.default_rng(7).standard_normal((2, 3, 224, 320)).astype(np.float32)
    x[1, :, 200:, :] = 0
    x[1, :, :, 300:] = 0
    return torch.from_numpy(x)


@pytest.mark.parametrize("name", BACKBONES)
def test_a_detectors_backbone_gives_the_detectors_maps(name: str, tmp_path: Path) -> None:
    manifest = read_manifest(FOLDER / f"{name}.json.gz")
    state = detector(manifest)
    torch.save({"meta": {"epoch": 12}, "state_dict": state}, tmp_path / "epoch_12.pth")
    backbone = fourstage.create_backbone(BACKBONES[name]).eval()
    report = fourstage.load_checkpoint(backbone, tmp_path / "epoch_12.pth")
    assert not report.fresh
    assert not report.resized
    assert all(key.endswith("relative_position_index") for key in report.dropped if key.startswith("backbone"))
    with torch.inference_mode():
        maps = backbone(images())
    with np.load(FOLDER / f"{name}.npz") as golden:
        for i, x_BCHW in enumerate(maps):
            shape, stats, at, expected = (
                golden[f"raw/backbone.{i}/{what}"] for what in ("shape", "stats", "idx", "val")
            )
            assert x_BCHW.shape == tuple(shape)
            actual = x_BCHW.reshape(-1)[torch.from_numpy(at).long()]
            torch.testing.assert_close(actual, torch.from_numpy(expected), rtol=1e-4, atol=1e-4 * float(stats[1]))


def test_the_goldens_name_what_else_a_detectors_file_holds() -> None:
    contents = json.loads((FOLDER / "index.json").read_text())["checkpoint_contents"]["mask_rcnn_swin_t_original_names"]
    backbone = fourstage.create_backbone("swin_tiny")
    state = renamed(backbone.state_dict(), MICROSOFT, "backbone.")
    state |= {key: torch.zeros(1) for key in contents["non_parameter_state_dict_keys"]}
    assert len(load_state(backbone, state, source="fork.pth").dropped) == 12


def test_their_patch_merging_with_columns_reordered_is_ours() -> None:
    torch.manual_seed(0)
    merge = swin.PatchMerge(5)
    gain, bias, weight = torch.randn(20), torch.randn(20), torch.randn(10, 20)
    x_BCHW = torch.randn(2, 5, 6, 8)
    theirs_BLC = F.unfold(x_BCHW, kernel_size=2, stride=2).mT  # (channel, row, column) of a group, the channel first
    expected_BLC = F.linear(F.layer_norm(theirs_BLC, (20,), gain, bias), weight)
    state = {"norm.weight": gain, "norm.bias": bias, "reduce.weight": weight}
    merge.load_state_dict({key: merged_columns(value) for key, value in state.items()})
    torch.testing.assert_close(merge(x_BCHW.movedim(1, -1)).flatten(1, 2), expected_BLC)


def to_theirs(weight: Tensor) -> Tensor:
    """The inverse of `merged_columns`."""
    return weight.unflatten(-1, (4, -1))[..., NEIGHBOURS, :].transpose(-1, -2).flatten(-2)


def mmdetection(state: dict[str, Tensor]) -> dict[str, Tensor]:
    theirs = {k: to_theirs(v) if ".embed.norm" in k or ".embed.reduce" in k else v for k, v in state.items()}
    return renamed(theirs, MMDETECTION)


@pytest.mark.parametrize("names", [mmdetection, lambda state: renamed(state, MICROSOFT)], ids=["mmdet", "microsoft"])
@pytest.mark.parametrize("tokens", [True, False])
def test_position_embeddings_come_as_maps_or_as_tokens(names: Callable, tokens: bool) -> None:
    source, model = (swin.dense(SWIN, img_size=64, ape=True) for _ in range(2))
    state = names(source.state_dict())
    if tokens:
        state["absolute_pos_embed"] = state["absolute_pos_embed"].flatten(2).mT
    assert not load_state(model, state, source="s.pth").resized
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in source.state_dict().items())
    larger = swin.dense(SWIN, img_size=(96, 64), ape=True)
    assert load_state(larger, state, source="s.pth").resized == ("stages.0.embed.position",)
    image_BCHW = torch.randn(1, 3, 96, 64)
    for a, b in zip(larger(image_BCHW), source(image_BCHW), strict=True):  # resized once, or at run time
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_network_that_was_built_otherwise_is_told_apart_from_another_network() -> None:
    with torch.device("meta"):
        plain, position = fourstage.create_backbone("swin_tiny"), fourstage.create_backbone("swin_tiny", ape=True)
    file = renamed(plain.state_dict(), MICROSOFT)
    sentence = (
        r"s\.pth is a swin_tiny, but .* \(stages\.0\.embed\.position is missing from the file\): build it without"
    )
    with pytest.raises(ValueError, match=sentence):
        load_state(position, file, source="s.pth")
    file = renamed(position.state_dict(), MICROSOFT)
    sentence = r"is a swin_tiny that was built with other arguments \(stages\.0\.embed\.position is not in it\)"
    with pytest.raises(ValueError, match=sentence):
        load_state(plain, file, source="s.pth")


ONE = torch.ones(1)


def with_prefix(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


def averages_beside(state: dict[str, Tensor], averages: dict[str, Tensor]) -> dict[str, Tensor]:
    """As mmcv 1 keeps them."""
    return state | {"ema_" + key.replace(".", "_"): value for key, value in averages.items()}


# what a trainer writes from the weights and from their average, and whether it holds the average
FORMS: dict[str, Callable[[dict[str, Tensor], dict[str, Tensor]], dict[str, Any]]] = {
    "bare": lambda state, _: state,
    "model": lambda state, _: {"model": state, "optimizer": {"state": {}}, "epoch": 3},
    "state_dict": lambda state, _: {"state_dict": state},
    "parallel": lambda state, _: {"model": with_prefix(state, "module.")},
    "compiled": lambda state, _: {"model": with_prefix(state, "_orig_mod.module.")},
    "model_ema": lambda state, average: {"model": state, "model_ema": average},
    "detector": lambda state, _: {"state_dict": with_prefix(state, "backbone.") | {"neck.a": ONE, "rpn_head.b": ONE}},
    "parallel detector": lambda state, _: {
        "state_dict": with_prefix(with_prefix(state, "backbone.") | {"decode_head.a": ONE}, "module.")
    },
    "mmcv 1 with averages": lambda state, average: {
        "meta": {},
        "state_dict": averages_beside(with_prefix(state, "backbone."), with_prefix(average, "backbone.")),
    },
    "mmengine with averages": lambda state, average: {
        "message_hub": {},
        "state_dict": with_prefix(average, "backbone."),
        "ema_state_dict": {"steps": ONE, **with_prefix(state, "module.backbone.")},
    },
    "MoBY": lambda state, _: {
        "model": with_prefix(state, "encoder.")
        | with_prefix(state, "encoder_k.")
        | {"queue": ONE, "projector.0.weight": ONE}
    },
}
HOLDS_AVERAGE = ("model_ema", "mmcv 1 with averages", "mmengine with averages")


@pytest.mark.parametrize("names", [mmdetection, lambda state: renamed(state, MICROSOFT)], ids=["mmdet", "microsoft"])
@pytest.mark.parametrize("form", FORMS)
def test_every_wrapping_is_taken_off(form: str, names: Callable, tmp_path: Path) -> None:
    weights, average = (tiny_dense("swin").state_dict() for _ in range(2))
    path = tmp_path / "file.pth"
    torch.save(FORMS[form](names(weights), names(average)), path)
    model = tiny_dense("swin")
    report = fourstage.load_checkpoint(model, path)
    expected = average if "mmengine" in form else weights  # mmengine swaps the two when it saves
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in expected.items())
    assert (report.read, report.fresh, report.resized) == (len(weights), (), ())
    if form in HOLDS_AVERAGE:
        fourstage.load_checkpoint(model, path, which="ema")
        assert all(torch.equal(value, model.state_dict()[key]) for key, value in average.items())


@pytest.mark.parametrize("prefix", ["", "backbone.", "module.backbone."])
def test_safetensors_are_read_by_the_same_names(prefix: str, tmp_path: Path) -> None:
    weights = tiny_dense("swin").state_dict()
    state = with_prefix(mmdetection(weights), prefix)
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "file.safetensors")
    model = tiny_dense("swin")
    fourstage.load_checkpoint(model, tmp_path / "file.safetensors")
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in weights.items())


def test_a_network_whose_own_names_look_like_wrappings_is_read_as_it_is() -> None:
    class Mine(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.out = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)

    source, model = Mine(), Mine()
    assert str(load_state(model, source.state_dict(), source="mine.pth")) == "mine.pth: 4 read"
    assert torch.equal(model.out.weight, source.out.weight)
