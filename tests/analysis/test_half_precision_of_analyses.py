"""Networks in half precision are analysed as those in float32 are, on images of any type."""

import pytest
import torch
from torch import nn

from fourstage import create_model
from fourstage.analysis import cam, cka
from fourstage.analysis.cam_targets import class_target
from fourstage.analysis.erf import receptive_field
from fourstage.analysis.maps import mixer_maps

IMAGE = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def pair() -> tuple[nn.Module, nn.Module]:
    """The same network in float32 and in bfloat16."""
    torch.manual_seed(0)
    network = create_model("unified_pico", num_classes=4).eval()
    half = create_model("unified_pico", num_classes=4).bfloat16().eval()
    half.load_state_dict(network.state_dict())
    network.load_state_dict(half.state_dict())  # rounded
    return network, half


def test_class_activation_maps(pair: tuple[nn.Module, nn.Module]) -> None:
    full, half = (cam.activations(network, IMAGE, class_target(1)) for network in pair)
    for method in cam.METHODS:
        expected, found = (cam.class_activation_map(one, method).map_BHW for one in (full, half))
        assert found.dtype == torch.float32
        assert (found - expected).abs().mean() < 0.1, method
    found = cam.score_cam(pair[1], IMAGE, half, class_target(1)).map_BHW
    assert found.dtype == torch.float32


@pytest.mark.parametrize("name", ["swin_tiny", "scalable_vit_small", "smt_tiny", "unified_halo_micro"])
def test_maps_of_mixers(name: str) -> None:
    network = create_model(name).eval()
    full = mixer_maps(network, IMAGE, last_of_stage=True, grid=2)
    half = mixer_maps(network.bfloat16(), IMAGE, last_of_stage=True, grid=2)
    for expected, found in zip(full, half, strict=True):
        assert found.distances_h == pytest.approx(expected.distances_h, rel=0.05)


def test_fields_and_similarities(pair: tuple[nn.Module, nn.Module]) -> None:
    expected, found = (receptive_field(network, [IMAGE[0]]) for network in pair)
    assert found.sums_N == pytest.approx(found.map_HW.sum(), rel=1e-9)  # not rounded as the network is
    assert found.sums_N == pytest.approx(expected.sums_N, rel=0.1)
    images = torch.randn(5, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    expected, found = (cka.grams_of(network, images, ["stage1"], "flatten") for network in pair)
    assert found == pytest.approx(expected, rel=0.05)
