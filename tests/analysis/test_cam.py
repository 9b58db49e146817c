"""Class activation maps: the golden numbers, the laws of layers, targets of all tasks, and the scores of maps."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from golden.fill import image
from golden_networks import GOLDEN, filled_classifier
from torch import Tensor, nn

from fourstage import create_detector, create_model, create_segmentor
from fourstage.analysis.cam import (
    Activations,
    Cam,
    activations,
    choose_tap,
    class_activation_map,
    enlarge,
    scale,
    score_cam,
)
from fourstage.analysis.cam_methods import FIVE, METHODS, gradcam_weights, plus_plus_weights, xgrad_weights
from fourstage.analysis.cam_scores import area, below, blurred, faithfulness, imputed, road
from fourstage.analysis.cam_smoothing import VIEWS, aug_smoothed
from fourstage.analysis.cam_targets import (
    NotDetected,
    box_target,
    class_target,
    detect_with_gradient,
    region_target,
    run_of,
)
from fourstage.data.sample import Batch

WEIGHTS = {"gradcam": gradcam_weights, "gradcam++": plus_plus_weights, "xgradcam": xgrad_weights}


@cache
def golden() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / "cam.npz"))


def raw_keys() -> list[str]:
    names = ("resnet18__", "convnext_atto__")
    return sorted(k for k in golden() if k.startswith(names) and k.endswith("__raw") and "scorecam" not in k)


@cache
def found(name: str, layers: str, label: int, softmax: bool) -> Activations:
    taps = [f"stage{number}" for number in layers.removeprefix("stage").split("+")]
    images = torch.from_numpy(image((2, 3, 224, 224)))
    return activations(filled_classifier(name), images, class_target(label, softmax=softmax), taps)


def parts(key: str) -> tuple[str, str, str, int]:
    name, layer, method, *rest = key.split("__")
    label = int(rest[0].removeprefix("class")) if rest[0].startswith("class") else 281
    return name, layer, method, label


@pytest.mark.parametrize("key", raw_keys())
def test_raw_maps_are_those_of_the_package(key: str) -> None:
    name, layer, method, label = parts(key)
    softmax = method.endswith("_softmax_target")
    method = method.removesuffix("_softmax_target")
    activated = found(name, layer, label, softmax)
    [raw] = class_activation_map(activated, method).raw
    expected = golden()[key]
    tolerance = (1e-4 if method == "xgradcam" else 2e-5) * np.abs(expected).max()
    same = raw.numpy()
    if method == "eigencam":  # the sign of a singular vector is arbitrary
        same = same * np.sign((same * expected).sum(axis=(1, 2), keepdims=True))
    np.testing.assert_allclose(same, expected, rtol=0, atol=tolerance)
    weights = key.replace("__raw", "__weights")
    if weights in golden():
        own = WEIGHTS[method](activated.values[0], activated.gradients[0]).numpy()
        np.testing.assert_allclose(own, golden()[weights], rtol=0, atol=1e-4 * np.abs(golden()[weights]).max())


@pytest.mark.parametrize(
    "key", sorted(k for k in golden() if "__final_" in k and "scorecam" not in k and "eigen" not in k)
)
def test_final_maps_are_those_of_the_package(key: str) -> None:
    name, layer, method, label = parts(key)
    final = class_activation_map(found(name, layer, label, False), method).map_BHW[:, 4::8, 4::8]
    np.testing.assert_allclose(final.numpy(), golden()[key], rtol=0, atol=1e-4 if method == "xgradcam" else 2e-5)


def test_score_cam_is_that_of_the_package() -> None:
    network, images = filled_classifier("convnext_atto"), torch.from_numpy(image((1, 3, 64, 64)))
    target = class_target(281)
    found = score_cam(network, images, activations(network, images, target, ["stage4"]), target)
    expected = golden()["convnext_atto__stage4__scorecam_64px__raw"]
    np.testing.assert_allclose(found.raw[0].numpy(), expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@cache
def smoothed() -> dict[str, np.ndarray]:
    """Maps of class 76 at every ninth pixel, by grad-cam 1.5.7."""
    return dict(np.load(GOLDEN / "cam_smooth.npz"))


@pytest.mark.parametrize("key", sorted(key for key in smoothed() if key.endswith("__aug")))
def test_maps_of_changed_copies_are_those_of_the_package(key: str) -> None:
    name, layer, method, _ = key.split("__")

    def cams_of(images: Tensor, _flipped: bool) -> dict[str, Cam]:
        return {
            method: class_activation_map(
                activations(filled_classifier(name), images, class_target(76), [layer]), method
            )
        }

    own = aug_smoothed(cams_of, torch.from_numpy(image((2, 3, 224, 224))))[method].map_BHW
    np.testing.assert_allclose(own[:, 4::9, 4::9].numpy(), smoothed()[key], rtol=0, atol=2e-6)


@pytest.mark.parametrize("key", sorted(key for key in smoothed() if key.endswith("__eigen")))
def test_principal_components_are_those_of_the_package_but_for_their_signs(key: str) -> None:
    name, layer, method, _ = key.split("__")
    activated = found(name, layer, 76, False)
    cam = class_activation_map(activated, method, eigen_smooth=True)
    np.testing.assert_array_equal(cam.map_BHW.numpy(), scale(enlarge(scale(cam.raw[0].relu()), (224, 224))).numpy())
    both = [scale(enlarge(scale(raw.relu()), (224, 224)))[:, 4::9, 4::9].numpy() for raw in (cam.raw[0], -cam.raw[0])]
    for i, expected in enumerate(smoothed()[key]):
        assert min(np.abs(one[i] - expected).max() for one in both) < 5e-6
    plain = class_activation_map(activated, method).raw[0]
    for one, sums in zip(cam.raw[0], plain, strict=True):
        assert np.corrcoef(one.flatten(), sums.flatten())[0, 1] > 0


def test_a_component_whose_sum_vanishes_has_no_sign_and_no_map() -> None:
    """Behind a LayerNorm over channels, the terms of HiResCAM cancel at each position."""
    torch.manual_seed(0)
    a_BChw, g_BChw = torch.rand(1, 8, 5, 5), torch.randn(1, 8, 5, 5)
    g_BChw -= (g_BChw * a_BChw).sum(dim=1, keepdim=True) / (a_BChw**2).sum(dim=1, keepdim=True) * a_BChw
    activated = Activations(("a",), (a_BChw,), (g_BChw,), torch.ones(1), (10, 10))
    cam = class_activation_map(activated, "hirescam", eigen_smooth=True)
    assert (cam.map_BHW == 0).all()
    assert "HiResCAM of a is zero everywhere" in cam.notes[0]
    assert class_activation_map(activated, "gradcam", eigen_smooth=True).notes == ()
    assert class_activation_map(activated, "layercam", eigen_smooth=True).map_BHW.max() > 0.9


def test_score_cam_is_smoothed_by_the_component_of_its_weighed_channels() -> None:
    network, images = filled_classifier("resnet18"), torch.from_numpy(image((1, 3, 64, 64)))
    activated = activations(network, images, class_target(76), ["stage2"])
    plain, smooth = (score_cam(network, images, activated, class_target(76), eigen_smooth=on) for on in (False, True))
    assert (plain.raw[0] * smooth.raw[0]).sum() > 0
    assert abs(float(smooth.raw[0].sum())) < 1e-4 * float(smooth.raw[0].abs().sum())  # channels are centred
    assert (plain.map_BHW - smooth.map_BHW).abs().max() > 0.01


def test_eigen_cam_is_its_component_with_and_without_smoothing() -> None:
    torch.manual_seed(1)
    a_BChw = torch.rand(4, 8, 5, 5) * torch.tensor([5.0, *[0.1] * 7])[:, None, None]
    a_BChw[:, 1:] -= a_BChw[:, :1]  # the sum falls where the component grows
    activated = Activations(("a",), (a_BChw,), (torch.ones_like(a_BChw),), torch.ones(4), (5, 5))
    plain, smooth = (class_activation_map(activated, "eigencam", eigen_smooth=on).raw[0] for on in (False, True))
    torch.testing.assert_close(smooth, plain, rtol=0, atol=0)
    assert (plain.amax(dim=(1, 2)) >= -plain.amin(dim=(1, 2))).all()
    hires = class_activation_map(activated, "hirescam", eigen_smooth=True).raw[0]
    assert (hires - plain).abs().amax(dim=(1, 2)).max() > 0.1  # another sign in some image


def test_copies_that_lose_the_object_are_left_out_and_noted() -> None:
    """The map of a copy is its first channel; darker copies lose the object."""
    images = torch.rand(1, 3, 4, 6) + 1

    def cams_of(images_BCHW: Tensor, flipped: bool) -> dict[str, Cam]:
        if images_BCHW.mean() < 0.95 * images.mean():
            raise NotDetected("no object")
        assert flipped == bool(
            (images_BCHW[0, 0, 0, 0] / images_BCHW[0, 0, 0, -1] - images[0, 0, 0, 0] / images[0, 0, 0, -1]).abs() > 1e-6
        )
        return {"layercam": Cam(images_BCHW[:, 0], (images_BCHW[:, 0],), ("a",), "layercam")}

    own = aug_smoothed(cams_of, images)["layercam"]
    torch.testing.assert_close(own.map_BHW, 1.05 * images[:, 0])
    torch.testing.assert_close(own.raw[0], images[:, 0])
    assert own.notes == ("the object is not detected in 2 changed copies of the image",)
    assert len(VIEWS) == 6


def test_a_map_without_positive_evidence_is_zero_and_not_nan() -> None:
    final = class_activation_map(found("resnet18", "stage4", 281, False), "gradcam").map_BHW
    assert (final == 0).all()


def test_scaling_and_enlarging_are_those_of_the_package() -> None:
    inputs = [key for key in golden() if key.startswith("scale_cam_image")]
    assert inputs
    small = torch.from_numpy(next(golden()[key] for key in inputs if golden()[key].shape[-1] == 4)).float()
    large = next(golden()[key] for key in inputs if golden()[key].shape[-1] == 16)
    np.testing.assert_allclose(enlarge(scale(small.relu()), (12, 16)).numpy(), large, atol=2e-6)


def test_imputation_is_that_of_road() -> None:
    keys = {key.removeprefix("road__"): golden()[key] for key in golden() if key.startswith("road__")}
    picture = torch.from_numpy(next(v for k, v in keys.items() if "image" in k or "input" in k))
    keep = torch.from_numpy(next(v for k, v in keys.items() if "mask" in k)) > 0.5
    expected = next(v for k, v in keys.items() if "imputed" in k or "out" in k)
    own = imputed(picture.reshape(picture.shape[-3:]), keep.reshape(keep.shape[-2:]), noise=0.0)
    np.testing.assert_allclose(own.numpy(), expected.reshape(own.shape), atol=1e-5)


def test_hirescam_before_a_layer_norm_is_zero_and_behind_it_is_not() -> None:
    network = create_model("swin_tiny", num_classes=5).eval()
    images = torch.randn(1, 3, 64, 64)
    before = class_activation_map(activations(network, images, class_target(1), ["stage4"]), "hirescam")
    assert (before.map_BHW == 0).all()
    assert "zero everywhere" in before.notes[0]
    both = class_activation_map(activations(network, images, class_target(1), ["stage4", "final"]), "hirescam")
    alone = class_activation_map(activations(network, images, class_target(1), ["final"]), "hirescam")
    torch.testing.assert_close(both.map_BHW, alone.map_BHW, rtol=0, atol=1e-5)  # the noise of one layer adds nothing
    behind = class_activation_map(activations(network, images, class_target(1)), "hirescam")
    assert behind.map_BHW.max() > 0.9
    assert behind.notes == ()
    assert behind.taps == ("final",)


def test_a_layer_norm_behind_the_pooling_makes_grad_cam_sum_to_zero_and_that_is_reported() -> None:
    activated = found("convnext_atto", "stage4", 281, False)
    assert "sums to zero" in class_activation_map(activated, "gradcam").notes[0]
    assert class_activation_map(found("resnet18", "stage4", 76, False), "gradcam").notes == ()


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("timm/resnet18", "layer4"),
        ("timm/swin_tiny_patch4_window7_224", "norm"),
        ("smt_tiny", None),
        ("visformer_tiny", None),
    ],
)
def test_the_layer_is_the_last_map_before_the_pooling(name: str, layer: str | None) -> None:
    import timm

    network = timm.create_model(name[5:]) if name.startswith("timm/") else create_model(name)
    tap = choose_tap(network.eval(), torch.randn(1, 3, 224, 224))
    assert tap == (layer or "final")


def test_behind_pooling_and_a_linear_layer_three_methods_agree() -> None:
    activated = found("resnet18", "stage4", 76, False)
    maps = [class_activation_map(activated, method).map_BHW for method in ("gradcam", "hirescam", "xgradcam")]
    torch.testing.assert_close(maps[0], maps[1], atol=1e-4, rtol=0)


def test_segmentors_explain_a_class_in_a_region() -> None:
    network = create_segmentor("semantic_fpn", "visformer_digits", 4).eval()
    images, region = torch.randn(1, 3, 64, 64), torch.zeros(64, 64, dtype=torch.bool)
    region[40:, 40:] = True
    activated = activations(network, images, region_target(2, region))
    assert activated.taps[0].startswith("backbone")
    with torch.no_grad():
        expected = network(images)[0, 2][region].sum()
    torch.testing.assert_close(activated.scores_B[0], expected, rtol=1e-4, atol=1e-5)
    for method in FIVE:
        assert torch.isfinite(class_activation_map(activated, method).map_BHW).all()
    with pytest.raises(ValueError, match="there is no class 9; the network has classes 0 to 3"):
        activations(network, images, region_target(9, region))


NARROW = {"channels": 32, "fc_channels": 32, "mask_channels": 8}  # heads of full width take ten times as long
DETECTORS = {
    "retinanet": {},
    "atss": {},
    "mask_rcnn": NARROW,
    "cascade_mask_rcnn": NARROW,
    "sparse_rcnn": {"proposals": 20, "stages": 2, "channels": 32, "hidden": 64, "filter_channels": 8},
    "dino": {},
}


@pytest.mark.parametrize("method", sorted(DETECTORS))
def test_detectors_explain_a_box(method: str) -> None:
    backbone = "swin_tiny" if method == "dino" else "visformer_digits"
    network: Any = create_detector(method, backbone, num_classes=3, **DETECTORS[method]).eval()
    images = torch.randn(1, 3, 64, 64)
    batch = Batch(("a",), images, ((64, 64),), ((64, 64),))
    network.spread_scores(batch)
    with torch.no_grad():
        [plain] = network.detect(batch)
    [tracked] = detect_with_gradient(network, images)
    torch.testing.assert_close(tracked.scores_N.detach(), plain.scores_N)
    assert tracked.scores_N.requires_grad
    x1, y1, x2, y2 = plain.boxes_N4[1].tolist()
    target = box_target((x1, y1, x2, y2), int(plain.labels_N[1]))
    activated = activations(network, images, target, run=run_of(network))
    assert activated.gradients[0].abs().max() > 0
    assert torch.isfinite(class_activation_map(activated, "layercam").map_BHW).all()
    with pytest.raises(ValueError, match="no detection overlaps the box"):
        activations(network, images, box_target((-50.0, -50.0, -40.0, -40.0)), run=run_of(network))


class Spot(nn.Module):
    """The mean of a square of pixels, as the probability of class 1."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW[:, :, 8:16, 8:16].mean(dim=(1, 2, 3))


def test_scores_prefer_the_map_that_marks_the_evidence() -> None:
    rng = torch.Generator().manual_seed(0)
    picture = torch.rand(3, 32, 32, generator=rng) * 0.1
    picture[:, 8:16, 8:16] = 1.0
    right, wrong = torch.zeros(32, 32), torch.zeros(32, 32)
    right[8:16, 8:16] = 1
    right, wrong = right + torch.rand(32, 32, generator=rng) * 0.1, wrong + torch.rand(32, 32, generator=rng) * 0.1
    wrong[20:28, 20:28] += 1
    good, bad = (faithfulness(Spot(), picture, one, steps=32) for one in (right, wrong))
    assert good.road > bad.road
    assert good.deletion < bad.deletion
    assert good.insertion > bad.insertion
    assert good.morf < bad.morf
    own, seen = (float(Spot()(one[None])[0]) for one in (picture, picture * right / 2))
    dimmed = faithfulness(Spot(), picture, right / 2, steps=4)
    assert (dimmed.drop, dimmed.increase) == (pytest.approx(own - seen), 0.0)
    raised = faithfulness(lambda x: 2 - Spot()(x), picture, right / 2, steps=4)
    assert (raised.drop, raised.increase) == (0.0, 1.0)


def test_maps_of_few_values_can_be_scored_and_empty_ones_have_no_score() -> None:
    picture, spot = torch.rand(3, 16, 16), torch.zeros(16, 16)
    assert np.isnan(faithfulness(Spot(), picture, spot).road)
    spot[8:12, 8:12] = 1
    assert np.isfinite(faithfulness(Spot(), picture, spot, steps=16).road)
    assert below(spot.numpy(), 90).sum() == 230  # all others are equal: the first ones are kept
    assert below(np.arange(100.0).reshape(10, 10), 90).sum() == 90


def test_areas_have_their_exact_values() -> None:
    ones = torch.ones(1, 8, 8)
    order = np.arange(64.0).reshape(8, 8)
    assert area(lambda x: x.mean(dim=(1, 2, 3)), ones, order, steps=8) == pytest.approx(0.5)
    assert area(lambda x: torch.full((len(x),), 0.3), ones, order, steps=8) == pytest.approx(0.3)
    torch.testing.assert_close(blurred(torch.full((3, 20, 20), 0.7)), torch.full((3, 20, 20), 0.7))
    assert road(lambda x: x.mean(dim=(1, 2, 3)), torch.full((1, 8, 8), 2.0), order, noise=0.0) == pytest.approx(
        0, abs=1e-6
    )


def test_what_cannot_be_explained_is_one_sentence() -> None:
    network, images = create_model("visformer_digits").eval(), torch.randn(1, 3, 32, 32)
    activated = activations(network, images, class_target(), ["stage1"])
    with pytest.raises(ValueError, match="there is no method 'scam'; choose from gradcam"):
        class_activation_map(activated, "scam")
    with pytest.raises(ValueError, match="has no layer 'nothing'"):
        activations(network, images, class_target(), ["nothing"])
    with pytest.raises(ValueError, match="there is no stage8"):
        activations(network, images, class_target(), ["stage8"])
    with pytest.raises(ValueError, match="no logits"):
        activations(nn.Sequential(nn.Conv2d(3, 4, 1)), images, class_target())
    assert set(FIVE) <= set(METHODS)
