"""Networks of timm with a fixed image size serve as backbones of any size, or say in a sentence that they cannot."""

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
        with pytest.raises(ValueError, match=r"maps of strides 16, 16, 16 are no pyramid, .*out_indices"):
            fourstage.create_detector(method, backbone, 3)
