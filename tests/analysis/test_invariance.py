"""Invariance: views and measures are those of the authors' code, and both ends of the scale are exact."""

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden.fill import fill
from torch import Tensor, nn

from fourstage import create_detector
from fourstage.analysis.invariance import (
    DIRECTIONS,
    FAMILIES,
    SETTINGS,
    Protocol,
    evaluate_invariance,
    measures,
    rotated_view,
    shifted_view,
    standard_view,
)
from fourstage.analysis.networks import Preparation
from fourstage.analysis.statistics import bootstrap_means, resamples

RECIPES = Path(__file__).parents[1] / "golden" / "recipes"
ORIGINAL = Protocol(original=True)
RAW = Preparation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # pixels in [0, 1]


def manifest() -> dict[str, Any]:
    with gzip.open(RECIPES / "stm_invariance.json.gz", "rt") as file:
        return json.load(file)


def photograph() -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (300, 400, 3)).astype(np.uint8)


def view_of(name: str) -> Tensor:
    """Return the view that a golden name stands for: `scale_0.7`, `translation_16_seed3`, ..."""
    words = name.split("_")
    if words[0] == "translation":
        mode = np.random.RandomState(int(words[2].removeprefix("seed"))).randint(7)
        assert mode == manifest()[name]["mode"]
        return shifted_view(photograph(), int(words[1]), DIRECTIONS[mode], ORIGINAL)
    if words[0] == "scale":
        return standard_view(photograph(), ORIGINAL, float(words[1]))
    if words[0] == "standard":
        return standard_view(photograph(), ORIGINAL)
    return rotated_view(photograph(), float(words[2]), ORIGINAL, before_crop=words[0] == "pre")


GOLDEN_VIEWS = sorted(np.load(RECIPES / "stm_invariance.npz").files)


@pytest.mark.parametrize("name", GOLDEN_VIEWS)
def test_a_view_is_that_of_the_original_code(name: str) -> None:
    view = view_of(name).numpy()
    at = np.random.default_rng(1).integers(0, view.size, 256)
    np.testing.assert_allclose(view.reshape(-1)[at], np.load(RECIPES / "stm_invariance.npz")[name], atol=1e-5)
    assert view.mean() == pytest.approx(manifest()[name]["mean"], abs=1e-5)
    assert view.std() == pytest.approx(manifest()[name]["std"], rel=1e-4)


@pytest.mark.parametrize("side", [32, 33, 57, 97, 224])
@pytest.mark.parametrize("mode", range(7))
def test_a_shift_is_the_slice_of_the_original_code_at_any_side(side: int, mode: int) -> None:
    protocol = Protocol(RAW, side=side, original=True)
    square_HW3 = photograph()[:, :300]
    resized_3HW = standard_view(square_HW3, replace(protocol, side=protocol.resized), 1.0)
    down, right = DIRECTIONS[mode]
    near, middle = side // 2, protocol.resized // 2
    for pixels in (*range(0, 65, 16), near + middle):  # the last one ends where the image begins
        y, x = middle + down * pixels, middle + right * pixels
        rows = slice(max(y - near, 0), min(y + near, protocol.resized))  # a negative end counts from the other side
        columns = slice(max(x - near, 0), min(x + near, protocol.resized))
        crop_3HW = resized_3HW[:, rows, columns]
        missing = [side - length for length in crop_3HW.shape[1:]]
        (above, left), (below, behind) = ([n // 2 for n in missing], [(n + 1) // 2 for n in missing])
        expected_3HW = F.pad(crop_3HW, (left, behind, above, below))
        assert torch.equal(shifted_view(square_HW3, pixels, (down, right), protocol), expected_3HW)


@pytest.mark.parametrize("direction", [(-1, -1), (-1, 0), (0, 1), (1, 1)])
def test_our_crop_is_black_beyond_the_image(direction: tuple[int, int]) -> None:
    protocol = Protocol(RAW, side=32)
    for pixels in (32, 40, 60):  # the centre of 36 pixels, and half a side, are 34
        view_3HW = shifted_view(photograph()[:, :300], pixels, direction, protocol)
        assert view_3HW.shape == (3, 32, 32)
        assert bool(view_3HW.any()) is (pixels < 34)


def test_measures_are_those_of_the_original_code() -> None:
    toy = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 10))
    weights = {"2.weight": fill("toy.weight", (10, 48), "weight"), "2.bias": fill("toy.bias", (10,), "bias")}
    toy.load_state_dict({key: torch.from_numpy(value) for key, value in weights.items() if value is not None})
    rng, found = np.random.default_rng(11), {"a": [], "b": [], "": []}
    for _ in range(3):
        standard, a, b = (torch.from_numpy(rng.standard_normal((8, 3, 16, 16)).astype(np.float32)) for _ in range(3))
        labels_B = torch.from_numpy(rng.integers(0, 10, 8))
        with torch.no_grad():
            own = toy(standard)
            for name, view in (("a", a), ("b", b), ("", standard)):
                found[name].append(torch.stack(measures(toy(view), own, labels_B)).mean(dim=1))
    expected = manifest()["evaluate_invariance_toy"]
    for name, batches in found.items():
        loss, top1, top5, consistent = torch.stack(batches).mean(dim=0).tolist()
        start = f"{name} " if name else ""
        assert 100 * top1 == pytest.approx(expected[f"{start}acc1"]["global_avg"])
        assert 100 * top5 == pytest.approx(expected[f"{start}acc5"]["global_avg"])
        if name:
            assert loss == pytest.approx(expected[f"{name} loss"]["global_avg"], rel=1e-6)
            assert 100 * consistent == pytest.approx(expected[f"{name} consistency"]["global_avg"])


def test_settings_are_those_of_the_paper() -> None:
    assert [len(SETTINGS[family]) for family in FAMILIES] == [17, 19, 19, 15]
    assert SETTINGS["scale"][:2] == (0.2, 0.325)
    assert SETTINGS["scale"][-1] == 1.95
    assert len({tuple(step) for step in DIRECTIONS}) == 8


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_shift_moves_the_content_and_lets_black_in(direction: tuple[int, int]) -> None:
    protocol = Protocol(RAW, side=64)  # resized to 73, four or five pixels of margin
    image_HW3 = np.random.default_rng(0).integers(1, 256, (73, 73, 3)).astype(np.uint8)
    own, moved = standard_view(image_HW3, protocol), shifted_view(image_HW3, 20, direction, protocol)
    down, right = (20 * step for step in direction)
    rolled = torch.roll(own, (-down, -right), dims=(1, 2))
    kept = [slice(max(-d, 0), 64 - max(d, 0)) for d in (down, right)]
    torch.testing.assert_close(moved[:, kept[0], kept[1]], rolled[:, kept[0], kept[1]])
    assert (moved == 0).all(dim=0).sum() > 0
    if down > 0:
        assert (moved[:, -(20 - 5) :] == 0).all()
    torch.testing.assert_close(shifted_view(image_HW3, 0, direction, protocol), own)


class Constant(nn.Module):
    """Logits that do not depend on the image."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return torch.arange(7.0).expand(len(x_BCHW), 7)


class Corner(nn.Module):
    """Class 1 where the upper left pixel is not black, else class 0."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        lit_B = (x_BCHW[:, :, 0, 0] > 0).any(dim=1).float()
        return torch.stack([1 - lit_B, lit_B], dim=1) * 50


def test_a_constant_network_is_invariant_and_a_corner_detector_is_not() -> None:
    protocol = Protocol(RAW, side=32)
    images = [(np.full((36, 36, 3), 200, np.uint8), 6), (np.full((36, 36, 3), 90, np.uint8), None)]
    constant = evaluate_invariance(Constant(), images, FAMILIES, protocol)
    for curves in constant.values():
        assert (curves.consistent_SN == 1).all()
        assert (curves.top1_SN[:, 0] == 1).all()
        assert np.isnan(curves.top1_SN[:, 1]).all()
    corner = evaluate_invariance(Corner(), [(image, 1) for image, _ in images], ["translation"], protocol)
    curves = corner["translation"]
    assert (curves.consistent_SN[0] == 1).all()
    # at the largest shift, 9 pixels, every direction with a part up or left brings black into the corner: five of eight
    np.testing.assert_allclose(curves.consistent_SN[-1], 3 / 8)


def test_one_direction_is_drawn_for_each_image_and_repeats() -> None:
    protocol = Protocol(RAW, side=32, directions="one")
    images = [(np.full((36, 36, 3), 200, np.uint8), 1)] * 24
    first, second = (evaluate_invariance(Corner(), images, ["translation"], protocol)["translation"] for _ in range(2))
    np.testing.assert_array_equal(first.consistent_SN, second.consistent_SN)
    assert set(first.consistent_SN[-1]) == {0.0, 1.0}
    drawn = {tuple(first.consistent_SN[:, i]) for i in range(24)}
    assert len(drawn) > 1


def test_a_network_without_logits_and_no_images_are_one_sentence() -> None:
    with pytest.raises(ValueError, match="invariance is for classifiers"):
        evaluate_invariance(nn.Conv2d(3, 4, 1), [(photograph(), 0)], ["scale"], Protocol(side=32))
    detector = create_detector("retinanet", "visformer_digits", num_classes=2)
    with pytest.raises(ValueError, match="RetinaNet is a detector; invariance is for classifiers"):
        evaluate_invariance(detector, [(photograph(), 0)], ["scale"], Protocol(side=32))
    with pytest.raises(ValueError, match="at least one image"):
        evaluate_invariance(Constant(), [], ["scale"])


def test_bootstrap_intervals_cover_the_mean() -> None:
    rng, inside = np.random.default_rng(1), 0
    for study in range(600):
        low, high = bootstrap_means(rng.standard_normal((1, 60)), draws=400, seed=10_000 + study)
        inside += bool(low[0] <= 0 <= high[0])
    assert 0.92 <= inside / 600 <= 0.97
    assert (resamples(5, draws=10).sum(axis=1) == 5).all()
    assert np.isnan(bootstrap_means(np.ones((2, 1)))[0]).all()


def test_families_twice_count_once_and_none_is_a_sentence() -> None:
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = [(photograph(), 1)]
    once, twice = (evaluate_invariance(network, images, ("scale",) * n, Protocol(side=32))["scale"] for n in (1, 2))
    np.testing.assert_array_equal(twice.loss_SN, once.loss_SN)
    with pytest.raises(ValueError, match="needs at least one family; choose from translation"):
        evaluate_invariance(network, images, ())


@pytest.mark.parametrize("seed", [-1, 2**40])
def test_any_seed_draws_directions(seed: int) -> None:
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for original in (False, True):
        protocol = Protocol(side=32, directions="one", original=original, seed=seed)
        found = evaluate_invariance(network, [(photograph(), 1)], ("translation",), protocol)
        assert np.isfinite(found["translation"].loss_SN).all()
