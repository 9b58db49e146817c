"""Effective receptive fields: the golden numbers, the theory of stacked convolutions, and what cannot be measured."""

import zlib

import numpy as np
import pytest
import torch
from golden.fill import image
from golden_networks import GOLDEN, filled_backbone, manifest
from torch import Tensor, nn

from fourstage import create_backbone, create_model
from fourstage.analysis.erf import Erf, Scale, luo_size, profile, receptive_field, scaled, square, squares
from fourstage.analysis.images import prepared
from fourstage.analysis.networks import Preparation
from fourstage.analysis.positions import strided_layers, unit_centre

FORMS: dict[Scale, str] = {"replknet": "r_log10p1", "raw": "r_raw", "power": "r_pow0.2"}

RAW = Preparation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # pixels in [0, 1]


def images() -> Tensor:
    return torch.from_numpy(image((4, 3, 224, 224)))


def field_of(map_HW: np.ndarray, unit_centre: tuple[float, float] | None = None) -> Erf:
    height, width = map_HW.shape
    return Erf(map_HW, np.ones(1), (7, 7), (3, 3), unit_centre or (height // 2, width // 2), 0, "last")


@pytest.mark.parametrize("name", ["convnext_atto", "resnet18"])
def test_maps_and_squares_are_those_of_replknets_code(name: str) -> None:
    network, golden = filled_backbone(name), np.load(GOLDEN / "erf.npz")
    for tap, expected in manifest("erf")["nets"][name]["maps"].items():
        found = receptive_field(network, [images()], tap=tap)
        map_HW = golden[f"{name}__{tap}"]
        np.testing.assert_allclose(found.map_HW, map_HW, rtol=0, atol=1e-5 * map_HW.max())
        np.testing.assert_allclose(found.map_HW.sum(), expected["sum"], rtol=1e-5)
        np.testing.assert_allclose(found.sums_N, expected["sum_per_image"], rtol=1e-5)
        assert list(found.unit) == expected["centre_index"]
        for scale, key in FORMS.items():
            sides = {str(t): None if one is None else one.side for t, one in squares(found, scale).items()}
            assert sides == {t: None if one is None else one[0] for t, one in expected[key].items()}
            ratios = [one.ratio for one in squares(found, scale).values() if one is not None]
            np.testing.assert_allclose(ratios, [one[1] for one in expected[key].values() if one is not None])


@pytest.mark.parametrize(("kernel", "layers"), [(3, 1), (3, 6), (5, 4), (7, 6)])
def test_stacked_uniform_convolutions_have_the_width_that_theory_says(kernel: int, layers: int) -> None:
    convs = [nn.Conv2d(1, 1, kernel, padding=kernel // 2, bias=False) for _ in range(layers)]
    for conv in convs:
        nn.init.constant_(conv.weight, 1 / kernel**2)
    network = nn.Sequential(*convs).double()
    found = receptive_field(network, [torch.ones(1, 101, 101, dtype=torch.float64)], tap=str(layers - 1))
    expected = (layers * (kernel**2 - 1) / 12) ** 0.5
    assert profile(found).deviation == pytest.approx(expected, rel=1e-9)
    if layers >= 6:  # the sum of enough uniform steps is a Gaussian
        assert profile(found).sigma == pytest.approx(expected, rel=0.05)
    assert found.map_HW.sum() == pytest.approx(1)


def test_a_uniform_map_has_squares_of_the_shares() -> None:
    found = {share: one.ratio for share, one in squares(field_of(np.ones((1024, 1024))), "replknet").items() if one}
    assert {share: round(ratio, 4) for share, ratio in found.items()} == {
        0.2: 0.2009,
        0.3: 0.3001,
        0.5: 0.5013,
        0.99: 0.9903,
    }


def test_squares_of_extreme_maps() -> None:
    delta_HW = np.zeros((64, 64))
    delta_HW[32, 32] = 1
    smallest = square(delta_HW, 0.99, (32, 32))
    assert smallest is not None
    assert (smallest.side, smallest.ratio) == (3, 9 / 64**2)
    border_HW = np.zeros((64, 64))
    border_HW[0] = 1
    assert square(border_HW, 0.2, (32, 32)) is None
    assert square(np.zeros((64, 64)), 0.2, (32, 32)) is None
    between = square(np.ones((64, 64)), 0.5, (31.5, 31.5))
    assert between is not None
    assert between.side == 46  # 46^2 is the first even square above half of 64^2


def test_a_map_that_is_wider_than_high_is_measured_in_squares() -> None:
    found = square(np.ones((32, 64)), 0.2, (16, 32))
    assert found is not None
    assert found.ratio == found.side**2 / (32 * 64) > 0.2


def test_raw_and_power_ratios_ignore_the_scale_and_replknets_do_not() -> None:
    map_HW = np.random.default_rng(0).random((64, 64)) ** 6
    one, thousand = field_of(map_HW), field_of(1000 * map_HW)
    assert squares(one, "raw") == squares(thousand, "raw")
    assert squares(one, "power") == squares(thousand, "power")
    assert scaled(one.map_HW, "replknet").max() < 1e3 * scaled(one.map_HW, "replknet").max()
    centred = field_of(np.exp(-np.hypot(*np.mgrid[-32:32, -32:32]) / 4))
    assert squares(centred, "replknet") != squares(field_of(1e4 * centred.map_HW), "replknet")


@pytest.mark.parametrize("sigma", [2.0, 9.5])
def test_the_profile_of_a_gaussian_has_its_width(sigma: float) -> None:
    y, x = np.mgrid[-100:100, -100:100]
    found = profile(field_of(3.0 * np.exp(-(x**2 + y**2) / (2 * sigma**2))))
    assert found.sigma == pytest.approx(sigma, rel=0.01)
    assert found.deviation == pytest.approx(sigma, rel=1e-6)
    assert found.amplitude == pytest.approx(3.0, rel=0.02)
    if sigma > 5:  # the pixels of a small disc are too few for its area
        expected = 2 * np.pi * sigma**2 * -np.log(1 - 0.9545)
        assert luo_size(field_of(np.exp(-(x**2 + y**2) / (2 * sigma**2)))) ** 2 == pytest.approx(expected, rel=0.03)


def test_the_size_by_luo_is_measured_against_the_centre_and_not_the_largest_value() -> None:
    map_HW = np.full((32, 32), 0.02)
    map_HW[3, 5], map_HW[16, 16], map_HW[15, 15] = 100.0, 1.0, 0.5
    assert luo_size(field_of(map_HW)) == pytest.approx(3**0.5)  # the largest value alone would give 1
    between = field_of(map_HW, (15.5, 15.5))
    mean = (1.0 + 0.5 + 2 * 0.02) / 4
    assert luo_size(between, centre="unit") == pytest.approx(float((map_HW > (1 - 0.9545) * mean).sum()) ** 0.5) == 32


@pytest.mark.parametrize(
    ("name", "centre"),
    [("swin_tiny", 111.5), ("timm/resnet18", 96.0), ("timm/convnext_atto", 111.5), ("timm/pvt_v2_b0", 96.0)],
)
def test_the_centre_of_a_unit_depends_on_the_patches(name: str, centre: float) -> None:
    network = create_backbone(name).eval()
    image_BCHW = torch.zeros(1, 3, 224, 224)
    sizes = [(224 // s, 224 // s) for s in (4, 8, 16, 32)]
    with strided_layers(network) as layers, torch.no_grad():
        network(image_BCHW)
    assert unit_centre(layers, (224, 224), sizes, (3, 3)) == (centre, centre)


def test_images_with_nan_are_counted_and_left_out() -> None:
    network = create_model("visformer_digits").eval()
    good = torch.randn(3, 3, 32, 32)
    bad = good[:1].clone()
    bad[:, 0, 3, 3] = torch.nan
    found = receptive_field(network, [torch.cat([bad, good[:2]]), bad, good[2:]], tap="stage2", count=2)
    assert (found.images, found.skipped) == (2, 1)
    np.testing.assert_allclose(found.map_HW, receptive_field(network, [good[:2]], tap="stage2").map_HW)
    with pytest.raises(ValueError, match="none of 1 images gave a finite map"):
        receptive_field(network, [bad])


def test_the_network_is_left_as_it_was() -> None:
    network = create_model("visformer_digits").train()
    next(network.parameters()).requires_grad_(False)
    wanted = [p.requires_grad for p in network.parameters()]
    receptive_field(network, [torch.randn(1, 3, 32, 32)])
    assert network.training
    assert [p.requires_grad for p in network.parameters()] == wanted
    assert all(p.grad is None for p in network.parameters())
    assert not any(module._forward_hooks for module in network.modules())


def test_layers_of_any_layout_have_a_field() -> None:
    network = create_model("swin_tiny", num_classes=5).eval()
    image_BCHW = torch.randn(1, 3, 64, 96)
    by_stage = receptive_field(network, [image_BCHW], tap="stage2")
    by_layer = receptive_field(network, [image_BCHW], tap="stages.1.blocks.1")  # (B, H, W, C)
    np.testing.assert_allclose(by_layer.map_HW, by_stage.map_HW, rtol=1e-4, atol=1e-6 * by_stage.map_HW.max())
    assert by_stage.cells == (8, 12)
    assert by_stage.unit_centre == (8 * 4.5 - 0.5, 8 * 6.5 - 0.5)
    assert by_stage.size == (64, 96)


@pytest.mark.parametrize(
    ("tap", "words"),
    [
        ("stages.9", "has no layer 'stages.9'; did you mean stages"),
        ("stage7", "there is no stage7; the network has the stages stage1 to stage"),
        ("head", "is not a feature map"),
    ],
)
def test_a_map_that_is_not_there_is_one_sentence(tap: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        receptive_field(create_model("visformer_digits"), [torch.randn(1, 3, 32, 32)], tap=tap)
    with pytest.raises(ValueError, match="no unit 99, 0"):
        receptive_field(create_model("visformer_digits"), [torch.randn(1, 3, 32, 32)], unit=(99, 0))


@pytest.mark.parametrize(
    ("resize", "key", "side"),
    [("exact", "replknet_resize_256x256", 256), ("short_side", "vmamba_resize_short256_crop256", 256)],
)
def test_images_are_prepared_as_both_papers_do(resize: str, key: str, side: int) -> None:
    data = pytest.importorskip("skimage.data")
    expected = manifest("erf")["preprocessing"][key]
    image_3SS = prepared(data.chelsea(), side, Preparation(), resize)  # pyright: ignore[reportArgumentType]
    np.testing.assert_allclose(
        image_3SS.mean(dim=(1, 2)) if image_3SS.ndim == 3 else 0, expected["normalised_mean"], rtol=1e-5
    )
    assert image_3SS.abs().sum().item() == pytest.approx(expected["normalised_sum_abs"], rel=1e-6)
    pixels = prepared(data.chelsea(), side, RAW, resize)  # pyright: ignore[reportArgumentType]
    bytes_SS3 = (pixels * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    assert zlib.crc32(bytes_SS3.tobytes()) == expected["crc32_uint8"]


def test_a_unit_in_the_padding_is_measured_from_beyond_the_image() -> None:
    """The middle unit of a padded map is centred beyond a small image: 40 pixels have 2 x 2 cells of 32 pixels."""
    found = receptive_field(create_backbone("swin_tiny"), [torch.randn(3, 40, 40)])
    assert found.unit_centre == (47.5, 47.5)
    assert 0 < luo_size(found, centre="unit") <= 40
    distance_HW = np.hypot(*np.mgrid[:40, :40] - 47.5)
    gaussian = field_of(np.exp(-(distance_HW**2) / (2 * 9.0**2)), (47.5, 47.5))
    assert profile(gaussian, centre="unit").sigma == pytest.approx(9, rel=0.05)
    assert luo_size(gaussian, centre="unit") == pytest.approx(
        np.sqrt((distance_HW**2 < 2 * 9**2 * np.log(1 / 0.0455) + 2 * 8.5**2).sum()), abs=0.5
    )


def test_a_map_that_is_not_finite_is_left_out() -> None:
    class Squares(nn.Module):
        """Its gradient is finite for each colour, and infinite for the sum of the three."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 1, 1, bias=False)
            nn.init.constant_(self.conv.weight, 1e38)

        def forward(self, image_BCHW: Tensor) -> Tensor:
            return self.conv(image_BCHW**2)

    images = [torch.full((3, 4, 4), value) for value in (0.1, 1.0)]
    found = receptive_field(Squares(), images, tap="conv")
    assert (found.images, found.skipped) == (1, 1)
    assert np.isfinite(found.map_HW).all()
    with pytest.raises(
        ValueError, match="none of 1 images gave a finite map; the weights or the images hold NaN or inf"
    ):
        receptive_field(Squares(), images[1:], tap="conv")
