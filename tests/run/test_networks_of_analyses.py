"""What analyses do with the networks, words and numbers that they are given in Python."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fourstage
from fourstage.run.analyze.cam import CamSetting, analyze_cam
from fourstage.run.analyze.cka import CkaSetting
from fourstage.run.analyze.erf import ErfSetting, analyze_erf
from fourstage.run.analyze.invariance import InvarianceSetting, analyze_invariance
from fourstage.run.analyze.maps import MapsSetting
from fourstage.run.analyze.robustness import RobustnessSetting

FEW = ErfSetting(size=32, images=2)


def network() -> nn.Module:
    torch.manual_seed(0)
    return fourstage.create_model("visformer_digits", num_classes=10)


@pytest.mark.parametrize("name", ["erf", "cam", "invariance", "failure"])
def test_a_module_ends_in_the_mode_in_which_it_came(name: str, tmp_path: Path) -> None:
    module: Any = network().train()
    module.stages[0].eval()
    before = [one.training for one in module.modules()]
    if name == "erf":
        analyze_erf([module], "digits", tmp_path, FEW, show=False)
    elif name == "cam":
        analyze_cam([module], "digits", tmp_path, CamSetting(images=1, methods=("gradcam",)), show=False)
    elif name == "invariance":
        analyze_invariance([module], "digits", tmp_path, InvarianceSetting(images=1), show=False)
    else:
        with pytest.raises(ValueError, match="no stage9"):
            analyze_erf([module], "digits", tmp_path, ErfSetting(size=32, images=2, tap="stage9"), show=False)
    assert [one.training for one in module.modules()] == before


@pytest.mark.parametrize("source", ["visformer_digits", network()], ids=["name", "module"])
def test_a_network_may_come_alone(source: Any, tmp_path: Path) -> None:
    alone = analyze_erf(source, "digits", tmp_path / "a", FEW, show=False)
    listed = analyze_erf([source], "digits", tmp_path / "b", FEW, show=False)
    assert alone.rows == listed.rows


def test_no_network_and_no_folder_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="no network was given"):
        analyze_erf([], "digits", "out", FEW, show=False)
    with pytest.raises(ValueError, match="--out is empty"):
        analyze_erf("visformer_digits", "digits", "", FEW, show=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("setting", "wrong"),
    [
        *(
            (setting, {"order": "x"})
            for setting in (ErfSetting, CamSetting, CkaSetting, MapsSetting, RobustnessSetting)
        ),
        (ErfSetting, {"centre": "x"}),
        (ErfSetting, {"resize": "x"}),
        (CkaSetting, {"by": "x"}),
        (CkaSetting, {"pooling": "x"}),
        (CkaSetting, {"estimator": "x"}),
        (InvarianceSetting, {"directions": "x"}),
        *((setting, {"size": side}) for setting in (ErfSetting, CamSetting, MapsSetting) for side in (32.5, "64")),
    ],
)
def test_words_and_sides_of_settings_are_checked(setting: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is .*got"):
        setting(**wrong)


@pytest.mark.parametrize("count", [0, 1.5])
def test_the_number_of_images_is_whole(count: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one image; got"):
        analyze_erf("visformer_digits", "digits", tmp_path, ErfSetting(size=32, images=count), show=False)
