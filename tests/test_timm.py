"""`import fourstage.timm`: timm itself builds, wraps, resets and loads our classifiers, by its own names."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

timm = pytest.importorskip("timm")

import fourstage  # noqa: E402
import fourstage.timm as ours  # noqa: E402

QUICK = ("visformer_digits", "unified_swin_micro", "unified_halo_micro", "unified_pvt_v2_micro")


def test_every_network_has_a_name_and_no_name_of_timm_is_taken() -> None:
    assert len(ours.NAMES) == len(set(ours.NAMES.values()))
    assert set(ours.NAMES) <= set(timm.list_models())
    assert ours.NAMES["smt_tiny"] == "smt_tiny"
    assert ours.NAMES["fs_visformer_tiny"] == "visformer_tiny"
    assert set(ours.NAMES.values()) <= set(fourstage.list_models())
    assert {"smt_base", "smt_large", "smt_small", "smt_tiny"} <= set(timm.list_models("smt_*"))
    code = (
        "import warnings; warnings.simplefilter('error'); import timm; before = timm.create_model('visformer_tiny');"
        "import fourstage.timm; print(type(timm.create_model('visformer_tiny')) is type(before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


@pytest.mark.parametrize("name", QUICK)
def test_forward_backward_and_reset(name: str) -> None:
    model: Any = timm.create_model(name, num_classes=7, drop_path_rate=0.1).train()
    side = model.default_cfg["input_size"][-1]
    images = torch.randn(2, 3, side, side)
    model(images).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.default_cfg["architecture"] == name
    assert timm.data.resolve_model_data_config(model)["input_size"] == (3, side, side)
    model.reset_classifier(3)
    assert model.eval()(images).shape == (2, 3)
    reference: Any = fourstage.create_model(ours.NAMES[name], num_classes=3).eval()
    reference.load_state_dict(model.state_dict())
    torch.testing.assert_close(reference(images), model(images))


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("out_indices", [None, (0, 2), (-1, -2), 2])
def test_features(name: str, out_indices: Any) -> None:
    features: Any = timm.create_model(name, features_only=True, out_indices=out_indices).eval()
    whole: Any = fourstage.create_model(ours.NAMES[name], features_only=True).eval()
    images = torch.randn(1, 3, 64, 64)
    count = len(whole.feature_info)
    given = range(count) if out_indices is None else range(-2, 0) if out_indices == 2 else out_indices
    kept = sorted(i % count for i in given)
    info = features.feature_info
    assert info.channels() == [whole.feature_info.channels()[i] for i in kept]
    assert [row["reduction"] for row in info.get_dicts()] == info.reduction()
    assert info.reduction() == [whole.feature_info.reduction()[i] for i in kept]
    assert list(info.out_indices) == kept
    assert len(info.info) == count
    maps = features(images)
    assert [x.shape[1] for x in maps] == info.channels()
    assert not [key for key in features.state_dict() if "head" in key]
    state = {key.removeprefix("model."): value for key, value in features.state_dict().items()}
    filled = {key: state.get(key, value) for key, value in whole.model.state_dict().items()}
    whole.model.load_state_dict(filled)
    for a, b in zip(maps, (whole(images)[i] for i in kept), strict=True):
        torch.testing.assert_close(a, b)


def test_three_maps_stay_three_and_a_fourth_is_refused() -> None:
    features: Any = timm.create_model("fs_visformer_tiny", features_only=True)
    assert features.feature_info.reduction() == [8, 16, 32]
    with pytest.raises(ValueError, match="must name different maps out of 0 to 2"):
        timm.create_model("fs_visformer_tiny", features_only=True, out_indices=(1, 2, 3))


def test_wrong_arguments_are_refused_with_a_suggestion() -> None:
    with pytest.raises(ValueError, match="smt_tiny has no argument droprate; did you mean drop_rate"):
        timm.create_model("smt_tiny", droprate=0.1)


@pytest.mark.parametrize(
    "name", ["smt_tiny", "scalable_vit_small", "fs_swin_tiny_patch4_window7_224", "swin_visformer_small"]
)
def test_networks_build_without_memory(name: str) -> None:
    with torch.device("meta"):
        model: Any = timm.create_model(name, in_chans=1)
        assert model(torch.empty(1, 1, 224, 224)).shape == (1, 1000)


def test_timm_loads_files_and_saves_them_for_the_hub(tmp_path: Path) -> None:
    source: Any = timm.create_model("visformer_digits")
    torch.save(source.state_dict(), tmp_path / "w.pth")
    model = timm.create_model("visformer_digits", checkpoint_path=tmp_path / "w.pth")
    given: Any = {"pretrained_cfg": {}, "pretrained_cfg_overlay": {"file": str(tmp_path / "w.pth")}}
    again = timm.create_model("visformer_digits", pretrained=True, **given)
    folder = tmp_path / "hub"
    timm.models.save_for_hf(source, folder)
    local = timm.create_model(f"local-dir:{folder}", pretrained=True)
    for other in (model, again, local):
        for key, value in source.state_dict().items():
            torch.testing.assert_close(other.state_dict()[key], value)


def test_our_published_weights_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def build(name: str, pretrained: bool = False, **arguments: Any) -> nn.Module:
        asked.append((name, pretrained))
        return fourstage.create_model(name, **arguments)

    monkeypatch.setattr(ours, "create_model", build)
    timm.create_model("visformer_digits", pretrained=True)
    assert ("visformer_digits", True) in asked
