"""Robustness: the mCE's arithmetic, accuracy among some classes, and corruptions where their package is installed."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fourstage.analysis import robustness as rb

MEANS = {  # of AlexNet's errors over severities, as they are widely copied
    "gaussian_noise": 0.886428, "shot_noise": 0.894468, "impulse_noise": 0.92264, "defocus_blur": 0.81988,
    "glass_blur": 0.826268, "motion_blur": 0.785948, "zoom_blur": 0.79836, "snow": 0.866816, "frost": 0.826572,
    "fog": 0.819324, "brightness": 0.564592, "contrast": 0.853204, "elastic_transform": 0.646056,
    "pixelate": 0.71784, "jpeg_compression": 0.6065,
}  # fmt: skip


def test_the_constants_have_the_means_that_are_widely_copied() -> None:
    assert set(MEANS) == set(rb.CORRUPTIONS)
    for name, mean in MEANS.items():
        assert np.mean(rb.ALEXNET[name]) == pytest.approx(mean, abs=1e-6)


def test_alexnet_has_an_mce_of_one_hundred_and_half_its_errors_give_fifty() -> None:
    own = {(name, s): error for name, errors in rb.ALEXNET.items() for s, error in enumerate(errors, 1)}
    assert rb.corruption_errors(own).mce == pytest.approx(100)
    halved = rb.corruption_errors({key: error / 2 for key, error in own.items()})
    assert halved.mce == pytest.approx(50)
    own[("noise_of_mine", 1)] = 1.0  # others do not count
    own[("speckle_noise", 1)] = 1.0
    assert rb.corruption_errors(own).mce == pytest.approx(100)


def test_the_relative_mce_is_of_what_corruptions_add_to_the_error() -> None:
    alexnet = {(name, s): error for name, errors in rb.ALEXNET.items() for s, error in enumerate(errors, 1)}
    assert rb.corruption_errors(alexnet).relative_mce is None
    found = rb.corruption_errors(alexnet, clean=0.435)
    assert found.relative_mce == pytest.approx(100)
    assert found.mce == pytest.approx(100)
    halved = {key: 0.2 + (error - 0.435) / 2 for key, error in alexnet.items()}
    found = rb.corruption_errors(halved, clean=0.2)
    assert found.relative_mce == pytest.approx(50)
    assert found.relative_ce == {name: pytest.approx(50) for name in rb.CORRUPTIONS}


def test_there_is_no_mce_of_some_corruptions() -> None:
    own = {(name, s): 0.5 for name in rb.CORRUPTIONS[1:] for s in rb.SEVERITIES}
    own.pop(("fog", 3))
    found = rb.corruption_errors(own)
    assert found.mce is None
    assert found.missing == ("gaussian_noise", "fog 3")
    assert found.ce["contrast"] == pytest.approx(100 * 2.5 / sum(rb.ALEXNET["contrast"]))


class Channels(nn.Module):
    """Logits are the means of the first row's pixels: class i is column i."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW[:, 0, 0]


def test_predictions_among_some_classes_ignore_the_others() -> None:
    images = torch.zeros(2, 3, 4, 6)
    images[0, 0, 0] = torch.tensor([0.0, 3, 5, 1, 4, 2])
    images[1, 0, 0] = torch.tensor([9.0, 3, 5, 7, 4, 2])
    assert rb.best_classes(Channels(), images).tolist() == [2, 0]
    assert rb.best_classes(Channels(), images, among=(1, 3, 4)).tolist() == [4, 3]
    with pytest.raises(ValueError, match="robustness is for classifiers"):
        rb.best_classes(nn.Identity(), images)


def test_an_unknown_corruption_is_one_sentence() -> None:
    with pytest.raises(ValueError, match="there is no corruption 'rain'; choose from gaussian_noise"):
        rb.check_corruptions(["rain"])


def test_without_the_package_the_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    with pytest.raises(ValueError, match="pip install"):
        rb.check_corruptions(["fog"])


@pytest.mark.parametrize("name", ["impulse_noise", "frost", "jpeg_compression"])
def test_corruptions_repeat_for_a_seed_and_grow_with_severity(name: str) -> None:
    pytest.importorskip("imagecorruptions")
    image = np.random.default_rng(0).integers(60, 180, (48, 40, 3)).astype(np.uint8)
    np.random.seed(5)  # noqa: NPY002
    expected = np.random.random()  # noqa: NPY002
    np.random.seed(5)  # noqa: NPY002
    one, again, other = (rb.corrupted(image, name, 3, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert np.random.random() == expected  # noqa: NPY002 - the caller's draws go on as before
    if name != "jpeg_compression":
        assert (one != other).any()
    if name != "frost":  # a random texture hides more or less of the image
        changes = [np.abs(rb.corrupted(image, name, s, 1).astype(int) - image).mean() for s in (1, 5)]
        assert changes[0] < changes[1]
    with pytest.raises(ValueError, match="need images of 32 pixels a side"):
        rb.corrupted(image[:20], name, 1)


@pytest.mark.parametrize("seed", [-1, 5000 * 1_000_003])
def test_any_seed_corrupts(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def corrupt(image: np.ndarray, **given: Any) -> np.ndarray:
        return image + given["seed"] % 251

    monkeypatch.setattr(rb, "_package", lambda: corrupt)
    image = np.zeros((32, 32, 3), np.uint8)
    one, again = (rb.corrupted(image, "impulse_noise", 1, seed) for _ in range(2))
    np.testing.assert_array_equal(one, again)


def test_an_accuracy_has_wilsons_interval() -> None:
    accuracy = rb.Accuracy(np.repeat([1.0, 0.0], [81, 19]))
    assert accuracy.top1 == pytest.approx(81)
    assert accuracy.error == pytest.approx(0.19)
    assert accuracy.interval == pytest.approx((72.2212, 87.4852), abs=1e-4)
