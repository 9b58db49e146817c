"""Networks of timm with a fixed image size serve as backbones of any size, or say in a sentence that they cannot."""

from pathlib import Path
from typing import Any

import pytest
import torch
from golden.fill import image

import fourstage
from fourstage.timm_backbone import TimmBackbone

pytest.importorskip("timm")
SWIN, VIT = "timm/swin_tiny_patch4_window7_224", "timm/vit_tiny_patch16_224"


@pytest.mark.parametrize(("name", "strides"), [(SWIN, [4, 8, 16, 32]), (VIT, [16, 16, 16])])
@torch.inference_mode()
def test_networks_of_a_fixed_size_take_any(name: str, strides: list[int]) -> None:
    backbone = fourstage.create_backbone(name).eval()
    assert [level.stride for level in backbone.levels] == strides  # pyright: ignore[reportGeneralTypeIssues]
    for height, width in ((64, 64), (70, 101)):
        maps = backbone(torch.from_numpy(image((1, 3, height, width))))
        assert [x.shape[2:] for x in maps] == [(-(-height // s), -(-width // s)) for s in strides]


def test_maps_are_described_by_the_names_of_transformers() -> None:
    backbone: Any = fourstage.create_backbone("timm/resnet18", out_indices=(-1, 1)).eval()
    assert backbone.out_features == ["stage2", "stage4"]
    assert backbone.channels == [x.shape[1] for x in backbone(torch.zeros(1, 3, 64, 64))]


@torch.inference_mode()
def test_the_native_size_is_timms_own_function() -> None:
    backbone = fourstage.create_backbone(SWIN).eval()
    assert isinstance(backbone, TimmBackbone)
    x_BCHW = torch.from_numpy(image((1, 3, 224, 224)))
    for mine, theirs in zip(backbone(x_BCHW), backbone.model(x_BCHW), strict=True):
        assert torch.equal(mine, theirs.movedim(-1, 1))


def test_given_arguments_win() -> None:
    backbone = fourstage.create_backbone(SWIN, strict_img_size=True).eval()
    with pytest.raises(ValueError, match=r"cannot take images of 64 x 96 pixels .*give its own size as img_size"):
        backbone(torch.zeros(1, 3, 64, 96))


@pytest.mark.parametrize("name", ["timm/maxvit_pico_rw_256", "timm/hiera_tiny_224"])
def test_what_cannot_take_another_size_says_so(name: str) -> None:
    with torch.inference_mode(), pytest.raises(ValueError, match=rf"{name} cannot take images of 96 x 130 pixels \("):
        fourstage.create_backbone(name).eval()(torch.zeros(1, 3, 96, 130))


def test_flexible_networks_stay_as_they_are() -> None:
    backbone = fourstage.create_backbone("timm/resnet10t").eval()
    assert isinstance(backbone, TimmBackbone)
    assert backbone.multiple == 1


@pytest.mark.parametrize("method", ["retinanet", "mask_rcnn"])
def test_maps_of_one_stride_are_no_pyramid(method: str) -> None:
    with torch.device("meta"):
        backbone = fourstage.create_backbone(VIT)
        with pytest.raises(ValueError, match=r"maps of strides 16, 16, 16 are not a pyramid, .*out_indices"):
            fourstage.create_detector(method, backbone, 3)


@pytest.mark.parametrize(
    "name", ["resnet10t", "swin_tiny_patch4_window7_224", "vit_tiny_patch16_224", "convnext_atto", "resnetv2_18"]
)
@torch.inference_mode()
def test_timms_own_classifier_files_fill_a_backbone(name: str, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    theirs = timm.create_model(name, num_classes=5).eval()
    state = {f"model.{key}": value for key, value in theirs.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "lightning.ckpt")
    torch.save(theirs.state_dict(), tmp_path / "plain.pth")
    expected = timm.create_model(name, features_only=True)
    mine = fourstage.create_backbone(f"timm/{name}", checkpoint_path=tmp_path / "plain.pth").eval()
    assert isinstance(mine, TimmBackbone)
    own = theirs.state_dict()
    for file in ("plain.pth", "lightning.ckpt"):
        backbone = fourstage.create_backbone(f"timm/{name}").eval()
        report = fourstage.load_checkpoint(backbone, tmp_path / file)
        assert report.read == len(backbone.state_dict())
        assert any("head" in key or "fc" in key for key in report.dropped)
        pairs = zip(backbone.state_dict().values(), mine.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    assert len(expected.state_dict()) == len(mine.state_dict()) <= len(own)
    x_BCHW = torch.from_numpy(image((1, 3, 224, 224)))
    last = theirs.forward_intermediates(x_BCHW, norm=False, intermediates_only=True)[-1]
    assert torch.allclose(mine(x_BCHW)[-1], last, atol=1e-5)


def test_a_timm_backbone_takes_its_own_file_and_refuses_others(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    backbone = fourstage.create_backbone("timm/resnet10t")
    torch.save(backbone.state_dict(), tmp_path / "own.pth")
    assert fourstage.load_checkpoint(backbone, tmp_path / "own.pth").dropped == ()
    grey = fourstage.create_backbone("timm/resnet10t", in_chans=1)
    assert "summed to 1 channel" in str(fourstage.load_checkpoint(grey, tmp_path / "own.pth"))
    state = timm.create_model("resnet10t").state_dict()
    torch.save({**state, "extra.weight": torch.zeros(3)}, tmp_path / "more.pth")
    torch.save({"state_dict": timm.create_model("resnet18").state_dict()}, tmp_path / "other.pth")
    for file, reason in (("more.pth", "extra.weight is not in it"), ("other.pth", "conv1.0.weight is missing")):
        with pytest.raises(ValueError, match=rf"{file} does not fit timm/resnet10t \(.*{reason}"):
            fourstage.create_backbone("timm/resnet10t", checkpoint_path=tmp_path / file)
