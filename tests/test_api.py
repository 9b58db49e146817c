"""What a user types, and what a wrong word is answered with."""

import operator
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

import fourstage
from fourstage import registry
from fourstage.backbones import visformer
from fourstage.backbones.base import Classifier


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, fourstage; assert 'torch' not in sys.modules; print(fourstage.__version__, *dir(fourstage))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "create_model" in out


def test_unknown_attributes_of_the_package_are_errors() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'create_modle'"):
        operator.attrgetter("create_modle")(fourstage)


def test_names_are_listed_by_wildcard() -> None:
    assert fourstage.list_models("visformer_[ts]*") == ["visformer_small", "visformer_tiny"]
    assert {"swin_tiny", "swin_tiny_patch4_window7_224", "visformer_digits"} <= set(fourstage.list_models())


@pytest.mark.parametrize("name", ["visformer_tiny", "visformer_small", "swin_tiny"])
def test_parameters_are_as_many_as_published(name: str) -> None:
    counts = {"visformer_tiny": 10_321_368, "visformer_small": 40_219_592, "swin_tiny": 28_288_354}
    with torch.device("meta"):
        assert sum(p.numel() for p in fourstage.create_model(name).parameters()) == counts[name]


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: fourstage.create_model("visformer_tinny"),
            "no model is called 'visformer_tinny'; did you mean visfor",
        ),
        (lambda: fourstage.create_model("zzz"), r"`fourstage models` and list_models\(\) list all names"),
        (lambda: fourstage.create_model("timm/resnet18"), "networks of timm are backbones of detectors and segmentors"),
        (
            lambda: fourstage.create_model("swin_tiny", drop_pth_rate=0.1),
            "swin_tiny has no argument drop_pth_rate; did you mean drop_path_rate",
        ),
        (
            lambda: fourstage.create_model("swin_tiny", qqq=1),
            "it takes num_classes, in_chans, img_size, drop_rate, drop_p",
        ),
        (lambda: fourstage.create_backbone("swin_tiny", num_classes=3), "no argument num_classes"),
        (lambda: fourstage.create_model("swin_tiny", drop_path_rate=1.5), "drop_path_rate is the share"),
        (lambda: fourstage.create_model("swin_tiny", drop_rate=-1), "drop_rate is the share"),
        (lambda: fourstage.create_model("swin_tiny", img_size=16), "img_size 16 x 16 is below"),
        (lambda: fourstage.create_model("swin_tiny", out_indices=(1,)), "features_only=True"),
        (lambda: fourstage.create_model("swin_tiny", features_only=True, out_indices=(4,)), "out_indices"),
        (
            lambda: fourstage.create_model("swin_tiny", features_only=True, out_indices=cast(Any, "2")),
            "out_indices must be integers",
        ),
        (lambda: fourstage.create_model("swin_tiny", num_classes="10"), "num_classes must be an integer of at least 0"),
        (lambda: fourstage.create_model("swin_tiny", img_size=224.0), "img_size is one side in pixels"),
        (lambda: fourstage.create_backbone(cast(Any, 5)), "a model's name is a string"),
        (lambda: fourstage.create_model("visformer_tiny", pretrained=True), "checkpoint_path='visformer_tiny.pth'"),
        (lambda: fourstage.create_model("swin_tiny.in1", pretrained=True), "did you mean swin_tiny.in1k"),
        (
            lambda: fourstage.create_model("visformer_digits", pretrained=True),
            "no weights of visformer_digits are published",
        ),
        (
            lambda: fourstage.create_backbone(nn.Linear(1, 1)),
            "Linear has no attribute `levels` that describes its maps",
        ),
        (lambda: fourstage.create_backbone("timm/resnet_zzz"), "timm has no model called 'resnet_zzz'"),
        (
            lambda: fourstage.create_backbone("timm/resnet10t", foo=1),
            "timm/resnet10t cannot be built with foo=1 .*keyword argument 'foo'.*; correct or leave them out",
        ),
    ],
)
def test_a_mistake_is_answered_with_one_sentence(call: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()


def test_none_means_the_default_and_the_head_may_be_missing() -> None:
    model = fourstage.create_model("visformer_digits", num_classes=None, img_size=None)
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert fourstage.create_model("visformer_digits", num_classes=0)(torch.zeros(1, 3, 32, 32)).shape == (1, 256)
    assert fourstage.create_model("visformer_digits", in_chans=1)(torch.zeros(1, 1, 32, 32)).shape == (1, 10)


def test_features_only_gives_maps_as_timm_does() -> None:
    model = fourstage.create_model("visformer_digits", features_only=True, out_indices=(-2, 0))
    info: Any = model.feature_info
    assert info.channels() == [64, 128]
    assert info.reduction() == [4, 8]
    assert info.module_name() == ["stages.0", "stages.1"]
    maps = model(torch.randn(2, 3, 40, 48))
    assert [tuple(x.shape) for x in maps] == [(2, 64, 10, 12), (2, 128, 5, 6)]
    torch.stack([x.sum() for x in maps]).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_default_cfg_says_how_to_prepare_images() -> None:
    cfg: Any = fourstage.create_model("swin_tiny_patch4_window7_224", num_classes=5).default_cfg
    assert (cfg["architecture"], cfg["num_classes"], cfg["input_size"]) == ("swin_tiny", 5, (3, 224, 224))
    assert (cfg["crop_pct"], cfg["interpolation"], len(cfg["mean"]), len(cfg["std"])) == (0.875, "bicubic", 3, 3)
    model = fourstage.create_model("swin_tiny")
    assert isinstance(model.get_submodule(cfg["first_conv"]), nn.Conv2d)
    assert isinstance(model.get_submodule(cfg["classifier"]), nn.Linear)


class Own(nn.Module):
    levels = (fourstage.Level(3, 4),)

    def forward(self, image_BCHW: Tensor) -> list[Tensor]:
        return [image_BCHW[..., ::4, ::4]]


def test_a_users_backbone_is_reached_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))

    @fourstage.register
    def my_own_backbone(scale: float = 1.0) -> nn.Module:
        return Own()

    assert isinstance(fourstage.create_backbone("my_own_backbone", scale=2.0), Own)
    assert "my_own_backbone" in fourstage.list_models("my_*")
    with pytest.raises(ValueError, match="did you mean scale"):
        fourstage.create_backbone("my_own_backbone", sclae=2.0)
    fourstage.register(my_own_backbone)  # the same place may register again
    with pytest.raises(ValueError, match="two models are called 'my_own_backbone'"):
        fourstage.register(type("my_own_backbone", (Own,), {}))


def test_a_name_of_ours_is_taken_before_its_family_is_imported() -> None:
    code = "import fourstage\ndef visformer_tiny(): ...\nfourstage.register(visformer_tiny)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "two models are called 'visformer_tiny'" in out.stderr


def test_a_module_with_levels_passes_through() -> None:
    own = Own()
    assert fourstage.create_backbone(own) is own
    with pytest.raises(ValueError, match="built already"):
        fourstage.create_backbone(own, in_chans=4)


@pytest.mark.parametrize(
    ("name", "strides"), [("resnet10t", [4, 8, 16, 32]), ("swin_tiny_patch4_window7_224", [8, 16])]
)
def test_timm_networks_serve_as_backbones(name: str, strides: list[int]) -> None:
    chosen = None if name == "resnet10t" else (1, 2)
    backbone = fourstage.create_backbone(f"timm/{name}", out_indices=chosen)
    maps = backbone(torch.zeros(1, 3, 224, 224))
    levels: Any = backbone.levels
    assert [level.stride for level in levels] == strides
    assert [tuple(x.shape) for x in maps] == [(1, x.channels, 224 // x.stride, 224 // x.stride) for x in levels]


def test_checkpoint_path_fills_what_it_builds(tmp_path: Path) -> None:
    model = fourstage.create_model("visformer_digits")
    path = tmp_path / "digits.pth"
    torch.save({"model": model.state_dict()}, path)
    again = fourstage.create_model("visformer_digits", checkpoint_path=path).eval()
    image_BCHW = torch.randn(1, 3, 32, 32)
    assert torch.equal(again(image_BCHW), model.eval()(image_BCHW))
    tuned = fourstage.create_model("visformer_digits", num_classes=4, checkpoint_path=path)
    assert tuned(torch.zeros(1, 3, 32, 32)).shape == (1, 4)
    backbone = fourstage.create_backbone("visformer_digits", checkpoint_path=str(path))
    assert torch.equal(backbone.state_dict()["stem.0.weight"], model.state_dict()["stem.0.weight"])
    maps = fourstage.create_model("visformer_digits", features_only=True, checkpoint_path=path).eval()
    assert isinstance(model, Classifier)
    assert torch.equal(maps(image_BCHW)[-1], model.forward_maps(image_BCHW)[-1])


def test_families_register_what_they_build() -> None:
    assert registry.find("visformer_small").name == "visformer_small"
    assert visformer.FAMILY.name in registry.FAMILIES.values()
